"""Queues that a reload has removed: which pool still consumes them, and when they may be let go (pure)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limetaskd.core.settings import Queue
from limetaskd.plan.model import Plan

EMPTY_S = 5.0


@dataclass(frozen=True)
class Departing:
    """A queue that is not configured any more, and the pool that consumes it until it is empty."""

    queue: Queue
    pool: str

    def as_document(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Departing:
        """Raises TypeError or KeyError."""
        return cls(Queue(**document["queue"]), document["pool"])


def heir(plan: Plan, pool: str | None) -> str:
    """The pool that consumes what `pool` consumed: itself while it is there, else that of the default queue."""
    if pool is not None and plan.pool(pool) is not None:
        return pool
    default = plan.settings.routing.default
    return next((one.name for one in plan.pools if default in one.queues), plan.pools[0].name)


def after_reload(before: Mapping[str, Departing], old: Plan, new: Plan) -> dict[str, Departing]:
    """What departs once `new` is in force: what departs already or was configured in `old`, and is not in `new`."""
    wanted = {queue.name for queue in new.settings.queues}
    found = {}
    for name, one in before.items():
        if name not in wanted:
            found[name] = dataclasses.replace(one, pool=heir(new, one.pool))
    for queue in old.settings.queues:
        if queue.name not in wanted:
            owner = next((pool.name for pool in old.pools if queue.name in pool.queues), None)
            found[queue.name] = Departing(queue, heir(new, owner))
    return found


class Emptiness:
    """Since when each queue has been seen empty; `now` in monotonic seconds."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def seen(self, queue: str, messages: int | None, now: float) -> bool:
        """Take note of one look (None: nobody knows); True when it has been empty for EMPTY_S."""
        if messages != 0:
            self._since.pop(queue, None)
            return False
        return now - self._since.setdefault(queue, now) >= EMPTY_S

    def forget(self, queue: str) -> None:
        self._since.pop(queue, None)
