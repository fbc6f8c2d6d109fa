"""Sends again the messages in `<state_dir>/kept` that nobody holds any more, see `limetaskd.tasks.kept`."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import amqp
from kombu import Producer

from limetaskd.core.redact import redact_text
from limetaskd.tasks.kept import Kept, Owner, folder_of, lives
from limetaskd.tasks.message import RESENT_HEADER
from limetaskd.tasks.publish import returned_messages

logger = logging.getLogger(__name__)

_STUCK_S = 60.0


@dataclass(frozen=True)
class _Seen:
    """What is remembered of a file, so that it is read once."""

    version: tuple[int, int]
    queue: str
    owner: Owner | None
    due: float


class KeptMessages:
    """Of one state_dir; None: there is none."""

    def __init__(self, state_dir: str | None) -> None:
        self._folder = None if state_dir is None else folder_of(state_dir)
        self._seen: dict[Path, _Seen] = {}
        self._stuck: dict[Path, float] = {}  # until when one that the broker refused is left alone

    def due(self) -> list[Path]:
        """The files to be sent now, the oldest first. One that cannot be read is set aside."""
        self._look()
        now = time.time()
        return sorted(
            path
            for path, seen in self._seen.items()
            if seen.due <= now
            and self._stuck.get(path, 0.0) <= time.monotonic()
            and (seen.owner is None or not lives(seen.owner))
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
                seen = self._read(path)
            except FileNotFoundError:
                continue  # its task has ended
            except OSError as error:
                self._trouble(path, f"cannot be read: {error}")
                continue
            if seen is not None:
                found[path] = seen
        self._seen = found
        self._stuck = {path: until for path, until in self._stuck.items() if path in set(paths)}

    def _read(self, path: Path) -> _Seen | None:
        """None: it is damaged, and set aside. Raises OSError."""
        status = path.stat()
        version = (status.st_mtime_ns, status.st_ino)
        seen = self._seen.get(path)
        if seen is not None and seen.version == version:
            return seen
        try:
            kept = Kept.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            aside = path.rename(path.with_suffix(".damaged"))
            logger.error("a kept message cannot be read and was set aside in %s: %s", aside, error)
            return None
        return _Seen(version, kept.queue, kept.owner, kept.due)

    def _trouble(self, path: Path, text: str) -> None:
        """Told once; the others go on, this one is tried again later."""
        level = logging.DEBUG if path in self._stuck else logging.ERROR
        self._stuck[path] = time.monotonic() + _STUCK_S
        logger.log(level, "the kept message %s %s", path, text)

    def send(self, path: Path, sending: Any) -> None:
        """Into its queue, as new, confirmed; then its file goes. `sending`: a connection.

        Raises what the broker raises when it is away; what it refuses stays where it is.
        """
        try:
            kept = Kept.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self._trouble(path, f"cannot be read: {error}")
            return
        channel = sending.channel()
        try:
            # The default exchange drops what has no queue, without a word unless it is mandatory.
            mandatory = isinstance(channel, amqp.Channel)
            with returned_messages(channel, mandatory) as returned:
                self._publish(channel, kept, mandatory)
            if returned:
                raise amqp.exceptions.NotFound(f"there is no queue {kept.queue} on the broker")
        except (amqp.exceptions.ChannelError, amqp.exceptions.MessageNacked, ValueError, TypeError) as error:
            self._trouble(path, f"(task {kept.task_name}[{kept.task_id}]) cannot be sent: {redact_text(str(error))}")
            return
        finally:
            channel.close()
        path.unlink(missing_ok=True)
        self._seen.pop(path, None)
        why = "its time is near" if kept.due else "the worker that held it is gone, or gave it back"
        logger.warning(
            "task %s[%s] was sent to %s again: %s", kept.task_name, kept.task_id, kept.queue, why,
            extra={"action": "resent", "task_id": kept.task_id, "task_name": kept.task_name, "queue": kept.queue},
        )  # fmt: skip

    @staticmethod
    def _publish(channel: Any, kept: Kept, mandatory: bool) -> None:
        options: dict[str, Any] = {**kept.properties, **({"mandatory": True} if mandatory else {})}
        Producer(channel).publish(
            kept.body, exchange="", routing_key=kept.queue, content_type=kept.content_type,
            content_encoding=kept.content_encoding, headers={**kept.headers, RESENT_HEADER: True}, delivery_mode=2,
            **options,
        )  # fmt: skip
