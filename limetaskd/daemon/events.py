"""Events: the one source that logs, `limetaskctl events` and later metrics, pages and audit subscribe to."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from limetaskd.core.jsonlog import timestamp

log = logging.getLogger("limetaskd.events")

HISTORY = 1000
EVENTS_VERSION = 1
Event = dict[str, Any]


class EventBus:
    """Keeps the newest `HISTORY` events and tells subscribers of each new one, in the loop."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._history: deque[Event] = deque(maxlen=HISTORY)
        self._subscribers: list[Callable[[Event], None]] = []
        self._news = asyncio.Event()

    def subscribe(self, subscriber: Callable[[Event], None]) -> None:
        self._subscribers.append(subscriber)

    def emit(self, event: str, **fields: Any) -> None:
        """Announce `event`; fields are JSON values."""
        record: Event = {
            "v": EVENTS_VERSION,
            "n": next(self._numbers),
            "@timestamp": timestamp(time.time()),
            "event": event,
            **fields,
        }
        self._history.append(record)
        for subscriber in self._subscribers:
            subscriber(record)
        self._news.set()
        self._news = asyncio.Event()

    def since(self, cursor: int) -> list[Event]:
        """Events after number `cursor`; those that left the history are gone."""
        return [event for event in self._history if event["n"] > cursor]

    @property
    def cursor(self) -> int:
        return int(self._history[-1]["n"]) if self._history else 0

    async def wait(self, timeout_s: float) -> None:
        """Until there is a new event, at most `timeout_s`."""
        news = self._news
        try:
            async with asyncio.timeout(timeout_s):
                await news.wait()
        except TimeoutError:
            return
