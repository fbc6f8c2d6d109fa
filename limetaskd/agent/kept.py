"""Sends again the messages in `<state_dir>/kept` that nobody holds any more, see `limetaskd.tasks.kept`."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kombu import Connection, Producer

from limetaskd.tasks.kept import RESENT_HEADER, Kept, folder_of
from limetaskd.tasks.redis_owners import process_alive

if TYPE_CHECKING:
    from limetaskd.agent.brokers import Broker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Seen:
    """What is remembered of a file, so that it is read once."""

    version: tuple[int, int]
    queue: str
    owner: tuple[int, int] | None
    due: float


class KeptMessages:
    """Of one state_dir; None: there is none."""

    def __init__(self, state_dir: str | None) -> None:
        self._folder = None if state_dir is None else folder_of(state_dir)
        self._seen: dict[Path, _Seen] = {}
        self._stuck: set[Path] = set()

    def due(self) -> list[Path]:
        """The files to be sent now, the oldest first. One that cannot be read is set aside."""
        self._look()
        now = time.time()
        return sorted(
            path
            for path, seen in self._seen.items()
            if seen.due <= now and (seen.owner is None or not process_alive(*seen.owner))
        )

    def next_due(self) -> float:
        """When the next one without an owner will be due, on the monotonic clock; infinite: none is known."""
        now = time.time()
        waits = [seen.due - now for seen in self._seen.values() if seen.owner is None and seen.due > now]
        return time.monotonic() + min(waits, default=math.inf)

    def waiting(self, queue: str) -> int:
        """How many of a queue (actual name) nobody holds."""
        return sum(1 for seen in self._seen.values() if seen.queue == queue and seen.owner is None)

    def _look(self) -> None:
        try:
            paths = [] if self._folder is None else list(self._folder.glob("*.json"))
        except OSError as error:
            logger.error("the kept messages in %s cannot be listed: %s", self._folder, error)
            return
        found = {}
        for path in paths:
            try:
                status = path.stat()
                version = (status.st_mtime_ns, status.st_ino)
                seen = self._seen.get(path)
                if seen is None or seen.version != version:
                    kept = Kept.from_json(path.read_text(encoding="utf-8"))
                    seen = _Seen(version, kept.queue, kept.owner, kept.due)
                found[path] = seen
            except FileNotFoundError:
                continue  # its task has ended
            except ValueError as error:
                aside = path.rename(path.with_suffix(".damaged"))
                logger.error("a kept message cannot be read and was set aside in %s: %s", aside, error)
            except OSError as error:
                logger.error("the kept message %s cannot be read: %s", path, error)
        self._seen = found
        self._stuck &= found.keys()

    def send(self, path: Path, broker: Broker, sending: Connection) -> None:
        """Into its queue, as new, confirmed; then its file goes. Raises what the broker raises."""
        try:
            kept = Kept.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        if not broker.exists(kept.queue):
            # The default exchange would drop it without a word.
            level = logging.DEBUG if path in self._stuck else logging.ERROR
            self._stuck.add(path)
            logger.log(
                level, "task %s[%s] waits in %s: there is no queue %s on the broker",
                kept.task_name, kept.task_id, path, kept.queue,
            )  # fmt: skip
            return
        properties: dict[str, Any] = dict(kept.properties)
        Producer(sending).publish(
            kept.body, exchange="", routing_key=kept.queue, content_type=kept.content_type,
            content_encoding=kept.content_encoding, headers={**kept.headers, RESENT_HEADER: True}, delivery_mode=2,
            **properties,
        )  # fmt: skip
        path.unlink(missing_ok=True)
        self._seen.pop(path, None)
        why = "its time is near" if kept.due else "the worker that ran it is gone, or gave it back"
        logger.warning(
            "task %s[%s] was sent to %s again: %s", kept.task_name, kept.task_id, kept.queue, why,
            extra={"action": "resent", "task_id": kept.task_id, "task_name": kept.task_name, "queue": kept.queue},
        )  # fmt: skip
