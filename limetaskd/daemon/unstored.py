"""Ends of tasks that their workers have recorded and could not store: `<state_dir>/unstored.json` until they are.

Whoever waits for such a result hears of it when the result store is back, also from a later daemon.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from limetaskd.core.documents import loads
from limetaskd.daemon import files, outcome
from limetaskd.daemon.daemon import Daemon
from limetaskd.errors import CommandError

log = logging.getLogger("limetaskd.limits")

UNSTORED_VERSION = 1
RETRY_S = 2.0
SAVE_PAUSE_S = 0.5
LIFE_S = 86400.0
_MOST = 10_000


@dataclass(frozen=True)
class End:
    """`at`: unix seconds; the rest as the agent's `end_task` takes it."""

    id: str
    state: str
    reason: str
    text: str
    at: float


def to_json(ends: list[End]) -> str:
    return json.dumps({"version": UNSTORED_VERSION, "ends": [dataclasses.asdict(end) for end in ends]})


def from_json(text: str) -> list[End]:
    """Raises ValueError for another version or a damaged document."""
    document = loads(text)
    if not isinstance(document, dict) or document.get("version") != UNSTORED_VERSION:
        raise ValueError(f"not an unstored.json of version {UNSTORED_VERSION}")
    try:
        return [
            End(str(end["id"]), str(end["state"]), str(end["reason"]), str(end["text"]), float(end["at"]))
            for end in document["ends"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"damaged unstored.json: {error}") from error


class UnstoredEnds:
    """Of one daemon, in its loop."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._path = daemon.paths.unstored
        self._ends: deque[End] = deque()
        self._added = asyncio.Event()
        self._changed = asyncio.Event()
        self._closing = False  # the daemon ends; what its workers still say is saved at once

    def start(self) -> None:
        self._daemon.background(self._tell())

    def add(self, fields: dict[str, Any]) -> None:
        """`fields`: of a worker's event."""
        if len(self._ends) >= _MOST:
            log.error("%d ends wait for the result store: that of task %s is not kept", _MOST, fields.get("task_id"))
            return
        task_id, state, reason, text = (str(fields.get(key)) for key in ("task_id", "state", "reason", "text"))
        self._ends.append(End(task_id, state, reason, text, time.time()))
        self._added.set()
        self._changed.set()
        if self._closing:
            self._save(list(self._ends))

    async def _tell(self) -> None:
        await self._load()
        self._daemon.background(self._keep())
        said = False
        while True:
            while not self._ends:
                said = False
                self._added.clear()
                await self._added.wait()
            end = self._ends[0]
            try:
                await outcome.ask_agent(self._daemon, "end_task", dataclasses.asdict(end))
            except CommandError as error:
                if not said:
                    said = True
                    log.error("the ends of %d tasks are not stored yet, first %s: %s", len(self._ends), end.id, error)
                if time.time() - end.at > LIFE_S:
                    log.error("the end of task %s could not be stored: whoever waits for its result waits on", end.id)
                    self._ends.popleft()
                    self._changed.set()
                self._ends.rotate(-1)  # should it be the only one that cannot be stored
                await asyncio.sleep(RETRY_S)
            else:
                self._ends.popleft()
                self._changed.set()

    async def _load(self) -> None:
        try:
            text = await asyncio.to_thread(files.read, self._path)
            if text is not None:
                self._ends.extendleft(reversed(from_json(text)))
        except ValueError as error:
            aside = await asyncio.to_thread(files.set_aside, self._path)
            log.error("%s: %s; set aside as %s", self._path, error, aside, extra={"action": "set_aside"})
        except OSError as error:
            log.error("%s cannot be read: %s", self._path, error)

    async def _keep(self) -> None:
        """Save soon after each change, many changes at once."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                await asyncio.to_thread(self._save, list(self._ends))
                await asyncio.sleep(SAVE_PAUSE_S)
        finally:
            self._closing = True
            if self._changed.is_set():
                self._save(list(self._ends))

    def _save(self, ends: list[End]) -> None:
        try:
            if ends:
                files.write_atomically(self._path, to_json(ends))
            else:
                files.remove(self._path)
        except OSError as error:
            log.error("%s cannot be written: %s", self._path, error)
