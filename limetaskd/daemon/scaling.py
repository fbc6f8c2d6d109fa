"""Scale: from the pools that are there to the pools that are wanted. Nothing that runs is killed."""

from __future__ import annotations

import asyncio
import copy
import logging
from typing import Any

from limetaskd.daemon import files
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.unit import Unit
from limetaskd.errors import CommandError
from limetaskd.plan.model import PoolPlan

log = logging.getLogger("limetaskd.scaling")


async def scale(daemon: Daemon, wanted: dict[str, int | None], workers: bool, persist: bool) -> list[dict[str, Any]]:
    """Set what operators want and bring the pools there. Raises CommandError, with the pools as they were."""
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
                daemon.scales.set(plan, number, workers=workers, persist=persist)
            for name in wanted:
                await resize(daemon, daemon.pool(name))
        except CommandError:
            daemon.scales = before
            for name in wanted:
                if daemon.plan.pool(name) is not None:
                    await resize(daemon, daemon.pool(name))
            raise
        await asyncio.to_thread(files.write_atomically, daemon.paths.scale, daemon.scales.to_json())
    changed = []
    for name in wanted:
        pool = daemon.pool(name)
        daemon.events.emit("pool_scaled", pool=name, concurrency=pool.concurrency, workers=pool.workers)
        changed.append(
            {
                "name": name,
                "action": f"{pool.concurrency} slots in {pool.workers} worker process"
                + ("es" if pool.workers != 1 else ""),
                "state": "RUNNING" if all(unit.ready for unit in daemon.pool_units(name)) else "STARTING",
            }
        )
    return changed


async def resize(daemon: Daemon, pool: PoolPlan) -> None:
    """Worker processes first, then the slots of each. Raises CommandError when a worker refuses or dies."""
    present = daemon.pool_units(pool.name)
    for index in range(len(present), pool.workers):
        unit = daemon.add_worker(pool.name, index)
        unit.start()
        await unit.started()
    surplus = [unit for unit in present if int(unit.name.rsplit(":", 1)[1]) >= pool.workers]
    kept = [unit for unit in daemon.pool_units(pool.name) if unit not in surplus]
    await asyncio.gather(*(set_slots(unit, pool, index) for index, unit in enumerate(kept)))
    for unit in surplus:
        retire(daemon, unit)
    for unit in surplus:
        await unit.stopped()


def retire(daemon: Daemon, unit: Unit) -> None:
    """Drain a unit that is not wanted any more; its name goes with its last process."""
    unit.leftover = True
    unit.stop()
    if unit.current is None and not unit.leaving:
        daemon.remove_unit(unit.name)


async def set_slots(unit: Unit, pool: PoolPlan, index: int) -> None:
    """Grow or shrink one worker live; a worker that is down gets its slots at its next start."""
    current = unit.current
    if current is None or pool.kind != "prefork":
        return
    if current.connection is None or current.report is None:
        return  # it starts just now: its spec may be older than this change, so look again when it reports
    have = current.report.concurrency or current.launch.concurrency
    want = pool.slots(index)
    if want > have:
        await current.connection.call("grow", {"slots": want - have}, None)
    elif want < have:
        await current.connection.call("shrink", {"slots": have - want}, None)
