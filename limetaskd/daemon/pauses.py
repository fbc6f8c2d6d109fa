"""Queues that this host does not consume for now (pure): who paused them, when, why, and until when."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from limetaskd.core.jsonlog import timestamp


@dataclass(frozen=True)
class Pause:
    """One queue, by its configured name. `since`, `until`: unix seconds; `by`: who, as `Operator.as_document`."""

    queue: str
    since: float
    until: float | None = None
    reason: str | None = None
    by: dict[str, Any] = field(default_factory=dict)

    def as_document(self, actual: str) -> dict[str, Any]:
        """For `status`: the actual name, times as text."""
        return {
            "queue": actual,
            "since": timestamp(self.since),
            "until": None if self.until is None else timestamp(self.until),
            "reason": self.reason,
            "by": self.by,
        }


class Pauses:
    """The pauses in force, by configured name."""

    def __init__(self, pauses: dict[str, Pause] | None = None) -> None:
        self._by_queue = dict(pauses or {})

    def __contains__(self, queue: str) -> bool:
        return queue in self._by_queue

    def get(self, queue: str) -> Pause | None:
        return self._by_queue.get(queue)

    def put(self, pause: Pause) -> None:
        """Pause a queue; one that is paused already gets the new reason and end."""
        self._by_queue[pause.queue] = pause

    def drop(self, queue: str) -> bool:
        """Resume a queue; False when it was not paused."""
        return self._by_queue.pop(queue, None) is not None

    def keep(self, queues: Collection[str]) -> None:
        """Drop the pauses of all other queues."""
        self._by_queue = {name: pause for name, pause in self._by_queue.items() if name in queues}

    def expired(self, now: float) -> list[str]:
        """Queues whose pause is over at `now` (unix seconds)."""
        return [pause.queue for pause in self._by_queue.values() if pause.until is not None and pause.until <= now]

    def next_end(self) -> float | None:
        """When the next pause is over (unix seconds); None: never by itself."""
        return min((pause.until for pause in self._by_queue.values() if pause.until is not None), default=None)

    def as_list(self) -> list[dict[str, Any]]:
        """For the saved state."""
        return [dataclasses.asdict(pause) for pause in self._by_queue.values()]

    @classmethod
    def from_list(cls, items: list[dict[str, Any]]) -> Pauses:
        """Raises TypeError or KeyError for what `as_list` does not make."""
        pauses = [Pause(**item) for item in items]
        for pause in pauses:
            times = (pause.since, pause.until if pause.until is not None else 0.0)
            if not isinstance(pause.queue, str) or not all(isinstance(moment, int | float) for moment in times):
                raise TypeError(f"{pause} is no pause of ours")
        return cls({pause.queue: pause for pause in pauses})
