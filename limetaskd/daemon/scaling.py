"""Scale: from the pools that are there to the pools that are wanted. Nothing that runs is killed."""

from __future__ import annotations

import asyncio
import copy
import logging
import resource
from typing import TYPE_CHECKING, Any

from limetaskd.daemon import engine, files
from limetaskd.daemon.slots import have_slots, set_slots, wanted_slots
from limetaskd.errors import CommandError

if TYPE_CHECKING:
    from limetaskd.daemon.daemon import Daemon
    from limetaskd.daemon.unit import Unit
    from limetaskd.plan.model import PoolPlan

log = logging.getLogger("limetaskd.scaling")

MOST_SLOTS = 10_000  # as in the configuration


async def scale(daemon: Daemon, wanted: dict[str, int | None], workers: bool, persist: bool) -> list[dict[str, Any]]:
    """Set what operators want and bring the pools there. Raises CommandError, with the pools as they were."""
    going: list[asyncio.Task[Any]] = []
    async with daemon.change_lock:
        before = copy.deepcopy(daemon.scales)
        try:
            for name, number in wanted.items():
                plan = daemon.plan.pool(name)
                if plan is None:
                    raise CommandError(f"no pool {name!r}")
                if plan.kind != "prefork" and not workers and number is not None:
                    raise CommandError(
                        f"{name}: slots of a {plan.kind} pool are fixed at its start: scale --workers, "
                        f"or change limetaskd.pools.{name}.concurrency and restart it"
                    )
                most = MOST_SLOTS if workers else min(MOST_SLOTS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8)
                if number is not None and number > most:
                    raise CommandError(
                        f"{name}={number}: at most {most} on this host (each slot needs open files: see ulimit -n)"
                    )
                daemon.scales.set(plan, number, workers=workers, persist=persist)
            for name in wanted:
                going += await resize(daemon, daemon.pool(name))
        except CommandError:
            daemon.scales = before
            leave(going)
            for name in wanted:
                if daemon.plan.pool(name) is not None:
                    leave(await resize(daemon, daemon.pool(name)))
            raise
        await asyncio.to_thread(files.write_atomically, daemon.paths.scale, daemon.scales.to_json())
        for name in wanted:
            pool = daemon.pool(name)
            daemon.events.emit("pool_scaled", pool=name, concurrency=pool.concurrency, workers=pool.workers)
    # Not under the lock: a task may take hours, and meanwhile another change may be wanted.
    await gone(going)
    changed = []
    for name in wanted:
        pool = daemon.pool(name)
        changed.append(
            {
                "name": name,
                "action": f"{pool.concurrency} slots in {pool.workers} worker process"
                + ("es" if pool.workers != 1 else ""),
                "state": _state_of(daemon.pool_units(name)),
            }
        )
    return changed


def _state_of(units: list[Unit]) -> str:
    if _stopped(units):
        return "STOPPED"
    return "RUNNING" if all(unit.ready for unit in units) else "STARTING"


def _stopped(units: list[Unit]) -> bool:
    """Whether an operator has stopped the whole pool: what is added to it stays stopped, too."""
    return bool(units) and all(unit.state in {engine.STOPPED, engine.STOPPING} for unit in units)


async def resize(daemon: Daemon, pool: PoolPlan) -> list[asyncio.Task[Any]]:
    """Worker processes first, then the slots of each. Raises CommandError when a worker refuses or dies.

    Returns what goes on: slots and workers that go when their tasks have ended. Nobody has to wait for it.
    """
    present = daemon.pool_units(pool.name)
    known = {unit.name for unit in present}
    stopped = _stopped(present)
    for index in range(pool.workers):
        if f"{pool.name}:{index}" not in known:
            unit = daemon.add_worker(pool.name, index)
            if not stopped:
                unit.start()
                await unit.started()
    surplus = [unit for unit in present if int(unit.name.rsplit(":", 1)[1]) >= pool.workers]
    kept = [unit for unit in daemon.pool_units(pool.name) if unit not in surplus]
    shrinking = [unit for unit in kept if _shrinks(unit, pool)]
    going = [daemon.background(set_slots(unit, pool), report=False) for unit in shrinking]
    await asyncio.gather(*(set_slots(unit, pool) for unit in kept if unit not in shrinking))
    for unit in surplus:
        retire(daemon, unit)
    going += [daemon.background(unit.stopped(), report=False) for unit in surplus]
    return going


def _shrinks(unit: Unit, pool: PoolPlan) -> bool:
    want, current = wanted_slots(unit, pool), unit.current
    return want is not None and current is not None and want < have_slots(current)


async def gone(tasks: list[asyncio.Task[Any]]) -> None:
    """Wait for what `resize` has set going. Raises CommandError when a worker refuses, dies or is told otherwise."""
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            raise error


def leave(tasks: list[asyncio.Task[Any]]) -> None:
    """Nobody waits for what `resize` has set going; what fails is told again with the next report of its worker."""

    def look(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.info("resizing: %s", task.exception())

    for task in tasks:
        task.add_done_callback(look)


def retire(daemon: Daemon, unit: Unit) -> None:
    """Drain a unit that is not wanted any more; its name goes with its last process."""
    unit.leftover = True
    unit.stop()
    if not unit.busy:
        daemon.remove_unit(unit.name)
