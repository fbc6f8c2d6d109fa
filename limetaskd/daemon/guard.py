"""Watches every slot of every worker from outside: limits of time and memory, and its health.

Works when worker and broker do not.

A look costs a few reads of shared memory for each slot; a slot is read whole only when it has changed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from limetaskd.core.board import BY_DAEMON, BY_DAEMON_DONE, BY_NOBODY, TIME_LIMIT, WORKER_LOST, Slot
from limetaskd.core.process import process_start_ticks
from limetaskd.core.units import format_duration
from limetaskd.daemon import health, outcome, postmortem
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.incarnation import Incarnation
from limetaskd.daemon.memory import MemoryWatch
from limetaskd.daemon.orphans import Remains
from limetaskd.daemon.unit import Unit
from limetaskd.daemon.unstored import UnstoredEnds
from limetaskd.plan.model import LimitsPlan, PoolPlan
from limetaskd.policy.limits import next_look_s, overtime_s

log = logging.getLogger("limetaskd.limits")


class Watched:
    """The slots of one incarnation as they were last read."""

    def __init__(self, incarnation: Incarnation) -> None:
        self.incarnation = incarnation
        self._slots: dict[int, tuple[int, Slot | None]] = {}

    def slots(self) -> list[Slot]:
        """Every claimed slot. They are claimed from the first on, so the first free one is the end."""
        board = self.incarnation.board
        found: list[Slot] = []
        if board is None:
            return found
        for index in range(board.slots):
            sequence, claimed, _ = board.glance(index)
            if not claimed:
                break
            known = self._slots.get(index)
            if known is None or known[0] != sequence:
                known = self._slots[index] = (sequence, board.read_slot(index))
            if known[1] is not None:
                found.append(known[1])
        return found


class Guard:
    """Runs in the daemon's loop, from `start` on."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        daemon.guard = self
        self._watched: dict[int, Watched] = {}
        self._ending: set[tuple[int, int, float]] = set()
        self._memory = MemoryWatch(daemon, self.end)
        self._health = health.Health(daemon)
        self._unstored = UnstoredEnds(daemon)

    def start(self) -> None:
        self._unstored.start()
        for unit, incarnation in incarnations(self._daemon):
            for slot in incarnation.board.read() if incarnation.board is not None else ():
                self._carry_on(unit, incarnation, slot)
        self._daemon.background(self._run())

    def _carry_on(self, unit: Unit, incarnation: Incarnation, slot: Slot) -> None:
        """A daemon that died may have left a sentence that it had not carried out."""
        sentence = incarnation.board.sentence(slot) if incarnation.board is not None else None
        if sentence is None:
            return
        text, reason = "was about to be ended by the daemon before this one", sentence.reason or WORKER_LOST
        if sentence.settled == BY_NOBODY:
            self._end(unit, incarnation, slot, reason, text, {}, resumed=True)
        elif sentence.settled in (BY_DAEMON, BY_DAEMON_DONE):
            self._daemon.background(outcome.resume(self._daemon, unit, incarnation, slot, reason, text))

    async def account(self, unit: Unit, incarnation: Incarnation) -> None:
        """After the death of a process."""
        how = str(incarnation.exited.result())
        if unit.kind == "worker" and incarnation.board is not None:
            await outcome.account(self._daemon, unit, incarnation, how)
        elif incarnation.ending is None and incarnation.hung_for is None:
            await postmortem.report(self._daemon, unit.name, "crash", how, incarnation.pid, tasks=[], exit_text=how)

    async def account_absent(self, dead: list[Remains]) -> None:
        """Of workers that died while no daemon ran."""
        await outcome.account_absent(self._daemon, dead)

    def child_died(self, name: str, fields: dict[str, Any]) -> None:
        """A worker says that a pool child died by itself."""
        tasks = [{"id": fields.get("task_id"), "name": fields.get("task_name"), "queue": fields.get("task_queue")}]
        how, pid = str(fields.get("exit")), int(fields.get("pid") or 0)
        self._daemon.background(
            postmortem.report(self._daemon, name, "child_crash", how, pid, tasks=tasks, exit_text=how)
        )

    def end_not_stored(self, fields: dict[str, Any]) -> None:
        """A worker has ended a task, and recorded that, but its result store is away."""
        self._unstored.add(fields)

    # Health.

    def excuse(self) -> None:
        self._health.excuse()

    def check_health(self, now: float) -> None:
        """Look for what hangs. Silence, a loop that stands still, deafness."""
        for unit in list(self._daemon.units.values()):
            current = unit.current
            if current is None or current.ending is not None or current.hung_for is not None:
                continue
            if unit.kind == "worker":
                ailment = self._health.ailment(unit, current, now)
            else:
                ailment = f"silent for {current.silent_s():.0f} s" if current.hung() else None
            if ailment is not None:
                current.hung_for = ailment
                self._daemon.background(self._cure(unit, current, ailment))

    async def _cure(self, unit: Unit, incarnation: Incarnation, ailment: str) -> None:
        log.error(
            "%s (pid %d): %s; its stacks are dumped into its log, it is killed and replaced",
            unit.name, incarnation.pid, ailment, extra={"action": "hung", "worker": unit.name},
        )  # fmt: skip
        self._daemon.events.emit("process_hung", process=unit.name, pid=incarnation.pid, reason=ailment)
        try:
            status = await asyncio.to_thread(postmortem.status_of, incarnation.pid)
            stacks = await health.dump(self._daemon, unit, incarnation) if unit.kind == "worker" else None
            slots = incarnation.board.read() if incarnation.board is not None else []
            tasks = [postmortem.task_of(slot.running) for slot in slots if slot.running is not None]
        finally:
            # Whatever the evidence: it has been sentenced, and nobody would look at it again.
            if incarnation.alive and incarnation.ending is None:
                await incarnation.kill()
        await postmortem.report(
            self._daemon, unit.name, "hung", ailment, incarnation.pid, tasks=tasks, status=status, stacks=stacks,
            exit_text="killed by SIGKILL",
        )  # fmt: skip

    async def _run(self) -> None:
        while True:
            intervals = [pool.limits.sample_interval_s for pool in self._daemon.plan.pools]
            await asyncio.sleep(next_look_s(min(intervals, default=1.0), self._memory.hurry))
            try:
                self.look()
            except Exception:
                # A fault of ours must not end the watch over all workers.
                log.exception("the limits could not be looked at")

    def look(self) -> None:
        """One look at everything."""
        seen: dict[int, Watched] = {}
        self._memory.begin()
        for unit, incarnation in incarnations(self._daemon):
            watched = self._watched.get(id(incarnation)) or Watched(incarnation)
            seen[id(incarnation)] = watched
            self._look_at(unit, watched, limits_of(self._daemon, unit))
        self._watched = seen
        self._memory.finish()

    def _look_at(self, unit: Unit, watched: Watched, limits: LimitsPlan) -> None:
        now = time.monotonic()
        slots = watched.slots()
        self._memory.look(unit, watched.incarnation, slots, limits, now)
        for slot in slots:
            running = slot.running
            if running is None or running.time_limit_s is None:
                continue
            over = overtime_s(running.started_monotonic, running.time_limit_s, limits.time_grace_s, now)
            if over is not None:
                lived = now - running.started_monotonic
                self.end(
                    unit, watched.incarnation, slot, TIME_LIMIT,
                    f"has run for {format_duration(lived)}, its limit is {format_duration(running.time_limit_s)}",
                    running_s=round(lived, 3), limit_s=running.time_limit_s, grace_s=limits.time_grace_s,
                )  # fmt: skip

    def end(
        self, unit: Unit, incarnation: Incarnation, slot: Slot, reason: str, text: str, **figures: object
    ) -> None:
        """End a task in the background, once."""
        if incarnation.board is not None and incarnation.board.sentence(slot) is None:
            self._end(unit, incarnation, slot, reason, text, figures)

    def _end(
        self, unit: Unit, incarnation: Incarnation, slot: Slot, reason: str, text: str, figures: dict[str, object],
        *, resumed: bool = False,
    ) -> None:  # fmt: skip
        running = slot.running
        if running is None:
            return
        key = (slot.pid, slot.start_ticks, running.started)
        if key in self._ending:
            return
        self._ending.add(key)
        task = self._daemon.background(
            outcome.end_task(self._daemon, unit, incarnation, slot, reason, text, resumed=resumed, **figures)
        )
        task.add_done_callback(lambda _task: self._ending.discard(key))


def incarnations(daemon: Daemon) -> list[tuple[Unit, Incarnation]]:
    """Every living process of a worker, those that come and go included."""
    return [
        (unit, incarnation)
        for unit in daemon.units.values()
        if unit.kind == "worker"
        for incarnation in (unit.current, unit.successor, *unit.leaving)
        if incarnation is not None and incarnation.alive and incarnation.board is not None
    ]


def pool_of(daemon: Daemon, unit: Unit) -> PoolPlan | None:
    """The pool of a worker as the plan has it now; None: it is not wanted any more."""
    return daemon.plan.pool(unit.name.partition(":")[0])


def limits_of(daemon: Daemon, unit: Unit) -> LimitsPlan:
    pool = pool_of(daemon, unit)
    return pool.limits if pool is not None else LimitsPlan()


def find_task(daemon: Daemon, task_id: str) -> tuple[Unit, Incarnation, Slot] | None:
    """Where a task runs on this host now; None: nowhere."""
    for unit, incarnation in incarnations(daemon):
        for slot in incarnation.board.read() if incarnation.board is not None else ():
            if slot.running is not None and slot.running.id == task_id[:64] and (
                process_start_ticks(slot.pid) == slot.start_ticks
            ):
                return unit, incarnation, slot
    return None
