"""Limits of memory: who is above, and what follows.

Every process is read cheaply at each look; exactly only who comes near a limit, in a thread. What is far from its
limits costs one read of a descriptor that is kept open.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from limetaskd.core.board import MEMORY_LIMIT, Slot
from limetaskd.core.memory import Statm, descendants, private_bytes
from limetaskd.core.process import process_start_ticks
from limetaskd.core.units import format_size
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.incarnation import Incarnation
from limetaskd.daemon.rolling import roll
from limetaskd.daemon.unit import Unit
from limetaskd.errors import CommandError
from limetaskd.plan.model import LimitsPlan
from limetaskd.policy.limits import DRIFT_S, NEAR_SHARE, Weight, must_read

log = logging.getLogger("limetaskd.limits")

# A worker that is above its limit again at once is not replaced again at once.
ROLL_PAUSE_S = 60.0
Key = tuple[int, int]  # pid, start time
EndTask = Callable[..., None]


@dataclass
class Load:
    """What one process weighs, and what was done about it."""

    statm: Statm
    weight: Weight = field(default_factory=lambda: Weight(0))
    retiring: bool = False
    seen: int = 0


@dataclass
class Tree:
    """A worker with all below it."""

    pids: list[int] = field(default_factory=list)
    listed_at: float = 0.0
    rolled_at: float | None = None


class MemoryWatch:
    """`end(unit, incarnation, slot, reason, text, **figures)` ends a task."""

    def __init__(self, daemon: Daemon, end: EndTask) -> None:
        self._daemon = daemon
        self._end = end
        self._loads: dict[Key, Load] = {}
        self._strays: dict[int, Load] = {}
        self._trees: dict[str, Tree] = {}
        self._round = 0
        self._busy = False
        self._wanted: list[tuple[Unit, Incarnation, LimitsPlan]] = []
        self._hopeless: set[tuple[str, int]] = set()
        self.hurry = False

    # The cheap look.

    def begin(self) -> None:
        """A new look at everything."""
        self._round += 1
        self._wanted = []
        self.hurry = False

    def look(self, unit: Unit, incarnation: Incarnation, slots: list[Slot], limits: LimitsPlan, now: float) -> None:
        """One worker. Nothing is done for one without limits."""
        lowest = min(
            (limit for limit in (limits.memory_soft_bytes, limits.memory_hard_bytes) if limit is not None), default=None
        )
        if lowest is None and limits.worker_memory_bytes is None:
            return
        total = 0
        read = False
        pids: dict[Key, None] = dict.fromkeys((slot.pid, slot.start_ticks) for slot in slots)
        for key in pids:
            load = self._load(key)
            if load is None:
                continue
            cheap = load.statm.cheap()
            if cheap is None:
                continue
            load.seen = self._round
            total += cheap
            if lowest is None or cheap < lowest * NEAR_SHARE:
                load.weight = dataclasses.replace(load.weight, cheap=cheap) if load.weight.exact else Weight(cheap)
                continue
            hard = limits.memory_hard_bytes
            self.hurry = self.hurry or (hard is not None and cheap > load.weight.cheap and cheap > hard / 2)
            load.weight = dataclasses.replace(load.weight, cheap=cheap)
            read = read or must_read(load.weight, limits.memory_soft_bytes, now) or must_read(load.weight, hard, now)
        if limits.worker_memory_bytes is not None:
            total += self._strays_of(unit, incarnation, {pid for pid, _ in pids}, now)
            read = read or total >= limits.worker_memory_bytes * NEAR_SHARE
        if read:
            self._wanted.append((unit, incarnation, limits))

    def finish(self) -> None:
        """After a look: forget the dead, and read exactly what came near."""
        for key in [key for key, load in self._loads.items() if load.seen < self._round - 10]:
            self._loads.pop(key).statm.close()
        for pid in [pid for pid, load in self._strays.items() if load.seen < self._round - 10]:
            self._strays.pop(pid).statm.close()
        if self._wanted and not self._busy:
            self._busy = True
            self._daemon.background(self._decide(self._wanted))

    def _load(self, key: Key) -> Load | None:
        load = self._loads.get(key)
        if load is None:
            try:
                load = Load(Statm(key[0]))
            except OSError:
                return None
            if process_start_ticks(key[0]) != key[1]:  # a dead slot's pid that is somebody else's now
                load.statm.close()
                return None
            self._loads[key] = load
        return load

    def _strays_of(self, unit: Unit, incarnation: Incarnation, known: set[int], now: float) -> int:
        """The main process, and what tasks have started: cheap bytes. The list is made anew every 10 s."""
        tree = self._trees.setdefault(unit.name, Tree())
        if now - tree.listed_at >= DRIFT_S and incarnation is unit.current:
            tree.listed_at = now
            self._daemon.background(self._list(tree, incarnation.pid))
        total = 0
        for pid in {incarnation.pid, *tree.pids} - known:
            load = self._strays.get(pid)
            if load is None:
                try:
                    load = self._strays[pid] = Load(Statm(pid))
                except OSError:
                    continue
            cheap = load.statm.cheap()
            if cheap is None:
                self._strays.pop(pid).statm.close()
                continue
            load.seen = self._round
            total += cheap
        return total

    async def _list(self, tree: Tree, pid: int) -> None:
        tree.pids = await asyncio.to_thread(descendants, pid)

    # The exact one.

    async def _decide(self, wanted: list[tuple[Unit, Incarnation, LimitsPlan]]) -> None:
        try:
            for unit, incarnation, limits in wanted:
                await self._decide_children(unit, incarnation, limits)
                if limits.worker_memory_bytes is not None and incarnation is unit.current:
                    await self._decide_worker(unit, incarnation, limits.worker_memory_bytes)
        finally:
            self._busy = False

    async def _decide_children(self, unit: Unit, incarnation: Incarnation, limits: LimitsPlan) -> None:
        now = time.monotonic()
        soft, hard = limits.memory_soft_bytes, limits.memory_hard_bytes
        slots = incarnation.board.read() if incarnation.board is not None else []
        keys = dict.fromkeys((slot.pid, slot.start_ticks) for slot in slots)
        near = [
            key for key in keys
            if (load := self._loads.get(key)) is not None
            and (must_read(load.weight, soft, now) or must_read(load.weight, hard, now))
        ]  # fmt: skip
        exact = await asyncio.to_thread(lambda: {key: private_bytes(key[0]) for key in near})
        for key, size in exact.items():
            load = self._loads.get(key)
            if load is None or size is None:
                continue
            load.weight = Weight(load.weight.cheap, size, load.weight.cheap, now)
            there = [slot for slot in slots if (slot.pid, slot.start_ticks) == key]
            if hard is not None and size >= hard:
                await self._too_heavy(unit, incarnation, there, size, hard)
            elif soft is not None and size >= soft and not load.retiring:
                self._retire(unit, incarnation, there[0], load, size, soft)

    async def _too_heavy(self, unit: Unit, incarnation: Incarnation, there: list[Slot], size: int, limit: int) -> None:
        """Above memory_hard. The task is at fault when it is the only one in that process."""
        board = incarnation.board
        running = []
        for slot in there:
            fresh = board.read_slot(slot.index) if board is not None else None
            if fresh is not None and fresh.running is not None and fresh.start_ticks == slot.start_ticks:
                running.append(fresh)
        figures = {"memory_bytes": size, "limit_bytes": limit, "base_bytes": there[0].base_bytes or None}
        if len(running) == 1:
            self._end(
                unit, incarnation, running[0], MEMORY_LIMIT,
                f"has brought its process to {format_size(size)}, memory_hard is {format_size(limit)}", **figures,
            )  # fmt: skip
        elif not running and there[0].pid != incarnation.pid:
            self._retire(unit, incarnation, there[0], self._loads[(there[0].pid, there[0].start_ticks)], size, limit)
        elif incarnation.ended_for is None:
            text = f"memory_hard: {format_size(size)} of {format_size(limit)}"
            log.error(
                "%s (pid %d) is at %s, memory_hard is %s, and %d tasks run in it: killed and replaced",
                unit.name, incarnation.pid, format_size(size), format_size(limit), len(running),
                extra={"action": "worker_killed", "worker": unit.name, **figures},
            )  # fmt: skip
            self._daemon.events.emit("worker_killed", process=unit.name, pid=incarnation.pid, reason=text, **figures)
            await incarnation.kill()

    def _retire(
        self, unit: Unit, incarnation: Incarnation, slot: Slot, load: Load, size: int, limit: int
    ) -> None:
        """Above memory_soft: replaced after its task. A process that shares its pid with the worker: the worker is."""
        figures = {"memory_bytes": size, "limit_bytes": limit, "base_bytes": slot.base_bytes or None}
        if slot.pid == incarnation.pid:
            self._roll(unit, incarnation, "memory_soft", size, limit)
            return
        if slot.base_bytes >= limit:
            if (unit.name, limit) not in self._hopeless:
                self._hopeless.add((unit.name, limit))
                log.error(
                    "%s: a new pool child weighs %s, more than its limit %s: replacing it is no use, raise the limit",
                    unit.name, format_size(slot.base_bytes), format_size(limit),
                    extra={"action": "limit_hopeless", "worker": unit.name, **figures},
                )  # fmt: skip
            return
        if load.retiring or incarnation.connection is None or incarnation.ending is not None:
            return
        load.retiring = True
        log.warning(
            "%s: pool child %d is at %s, its limit is %s (after its fork: %s): replaced after its task",
            unit.name, slot.pid, format_size(size), format_size(limit), format_size(slot.base_bytes),
            extra={"action": "child_recycled", "worker": unit.name, "victim": slot.pid, **figures},
        )  # fmt: skip
        self._daemon.events.emit("child_recycled", process=unit.name, pid=slot.pid, **figures)
        self._daemon.background(self._tell(unit, incarnation, slot.pid, load))

    async def _tell(self, unit: Unit, incarnation: Incarnation, pid: int, load: Load) -> None:
        try:
            assert incarnation.connection is not None
            await incarnation.connection.call("retire", {"pid": pid}, None)
        except CommandError as error:
            load.retiring = False
            log.warning("%s: pool child %d could not be replaced: %s", unit.name, pid, error)

    async def _decide_worker(self, unit: Unit, incarnation: Incarnation, limit: int) -> None:
        def weigh() -> int:
            pids = [incarnation.pid, *descendants(incarnation.pid)]
            return sum(private_bytes(pid) or 0 for pid in pids)

        size = await asyncio.to_thread(weigh)
        if size >= limit:
            self._roll(unit, incarnation, "worker_memory", size, limit)

    def _roll(self, unit: Unit, incarnation: Incarnation, name: str, size: int, limit: int) -> None:
        tree = self._trees.setdefault(unit.name, Tree())
        now = time.monotonic()
        if unit.rolling is not None or incarnation is not unit.current or incarnation.ending is not None:
            return
        if tree.rolled_at is not None and now - tree.rolled_at < ROLL_PAUSE_S:
            return
        tree.rolled_at = now
        figures = {"memory_bytes": size, "limit_bytes": limit, "limit": name}
        log.warning(
            "%s (pid %d) is at %s, its %s is %s: replaced by a rolling restart",
            unit.name, incarnation.pid, format_size(size), name, format_size(limit),
            extra={"action": "worker_recycled", "worker": unit.name, **figures},
        )  # fmt: skip
        self._daemon.events.emit("worker_recycled", process=unit.name, pid=incarnation.pid, **figures)
        self._daemon.background(self._rolled(unit))

    async def _rolled(self, unit: Unit) -> None:
        try:
            await roll(self._daemon, unit)
        except CommandError as error:
            log.error("%s could not be replaced: %s", unit.name, error)
