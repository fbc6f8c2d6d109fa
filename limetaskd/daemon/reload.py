"""Reload: read, validate, plan, compare, apply. A file that is refused changes nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from typing import Any

from limetaskd.config.load import load
from limetaskd.daemon import engine, preview, scaling
from limetaskd.daemon.audit import Operator
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.launch import AGENT
from limetaskd.daemon.logpump import check_destination
from limetaskd.daemon.rolling import roll
from limetaskd.daemon.unit import Unit
from limetaskd.errors import CommandError, ConfigError, LimetaskError
from limetaskd.plan.diff import Change, PlanDiff, diff
from limetaskd.plan.held import build_held, values_of
from limetaskd.plan.model import Plan
from limetaskd.plan.render import render_diff

log = logging.getLogger("limetaskd.reload")

AGENT_TIMEOUT_S = 10.0


async def reload_on_request(daemon: Daemon) -> None:
    """For SIGHUP, for ever: nobody waits for the outcome, so it goes to the log (and `status`)."""
    while True:
        await daemon.reload_requested.wait()
        daemon.reload_requested.clear()
        try:
            daemon.require_running()
            await daemon.audit.carry_out(Operator("signal"), "reload", {"signal": "SIGHUP"}, reload(daemon))
        except (LimetaskError, OSError) as error:
            log.error("reload failed: %s", error, extra={"action": "reload_failed"})
        except Exception:
            # A fault of ours must not make every later SIGHUP unheard.
            log.exception("reload failed", extra={"action": "reload_failed"})


def read_plan(running: Plan) -> tuple[Plan, tuple[Change, ...]]:
    """The file as it is now, as a plan for this daemon, and what waits for the next one. Raises ConfigError."""
    # The path as it was given, not the file it led to then.
    loaded = load(running.config_file, os.environ)
    return build_held(loaded, os.environ, values_of(running), embedded=running.embedded)


async def reload(daemon: Daemon, *, only_plan: bool = False) -> dict[str, Any]:
    """Apply the file, or only show what would change. Raises CommandError; then the old plan goes on."""
    async with daemon.change_lock:
        try:
            new, waits = await asyncio.to_thread(read_plan, daemon.plan)
        except ConfigError as error:
            message = "the configuration is refused, the old one goes on:\n" + "\n".join(error.problems)
            if not only_plan:
                daemon.last_reload_error = message
                daemon.events.emit("reload_refused", problems=error.problems)
            raise CommandError(message) from error
        difference = dataclasses.replace(diff(daemon.plan, new), restart=waits)
        by_fate = preview.workers(daemon, new, difference)
        left = preview.waiting(daemon, new, difference)
        details = [] if difference.empty else preview.lines(by_fate, left)
        answer: dict[str, Any] = {
            "changed": not difference.empty,
            "generation": daemon.generation,
            "summary": [*render_diff(difference).splitlines(), *details],
            "diff": difference.as_document(),
            "workers": by_fate,
            "waiting": left,
        }
        if only_plan:
            return answer
        if difference.empty:
            daemon.last_reload_error = None
            daemon.events.emit("reload_started", summary=[])
            daemon.events.emit("reload_done", generation=daemon.generation)
            log.info("reloaded: nothing changed", extra={"action": "reloaded"})
            return answer
        await _check_destination(new)
        daemon.events.emit("reload_started", summary=answer["summary"])
        done = False
        try:
            await _apply(daemon, new, difference)
            done = True
        finally:
            # Whatever happens, pools do not consume the union of old and new for ever, and the service manager hears
            # that the reload is over.
            daemon.steering.end_move()
            daemon.events.emit("reload_done" if done else "reload_undone", generation=daemon.generation)
        daemon.last_reload_error = None
        log.info("reloaded: %s", "; ".join(answer["summary"]) or "nothing changed", extra={"action": "reloaded"})
        return answer | {"generation": daemon.generation}


async def _apply(daemon: Daemon, new: Plan, difference: PlanDiff) -> None:
    """What is new begins first; when all of it consumes, senders are told, and what is not wanted any more leaves.

    So each queue has a consumer at each moment, and nobody sends to a queue that never gets one. Undone when a new
    pool or process does not become ready, or the broker refuses a queue.
    """
    old, steering = daemon.plan, daemon.steering
    scales_before, departing_before = dict(daemon.scales.by_pool), dict(steering.departing)
    daemon.plan = new
    daemon.scales.after_reload(old, new)
    daemon.generation += 1
    steering.begin_move(old, new)
    try:
        await daemon.write_settings()
        if difference.settings:
            await daemon.nursery.refresh_image()
        await _bring_up(daemon, old, difference)
        await daemon.write_accepted()
    except (LimetaskError, OSError) as error:
        steering.departing = departing_before
        await _undo(daemon, old, scales_before, difference)
        message = f"the reload is undone, the old configuration goes on: {error}"
        daemon.last_reload_error = message
        raise CommandError(message) from error
    steering.end_move()
    if old.logging != daemon.plan.logging:
        daemon.logs.change(daemon.plan.logging)
        logging.getLogger().setLevel(daemon.plan.logging.level)
    for name in difference.pools_removed:
        for unit in daemon.pool_units(name):
            scaling.retire(daemon, unit)
    await _tell(daemon)
    try:
        await _move_beat(daemon, old, daemon.plan, difference)
    except CommandError as error:
        # All else is done and stays; the schedule has its own restarts.
        log.error("after the reload, the schedule: %s", error)


async def _bring_up(daemon: Daemon, old: Plan, difference: PlanDiff) -> None:
    """All that consumes more than before. Raises CommandError."""
    for name in difference.pools_added:
        pool = daemon.pool(name)
        for index in range(pool.workers):
            daemon.add_worker(name, index).start()
        await asyncio.gather(*(unit.started() for unit in daemon.pool_units(name)))
    await daemon.steering.settle()
    for pool in daemon.plan.pools:
        before = old.pool(pool.name)
        if before is not None and set(pool.queues) - set(before.queues):
            # Nobody gives a queue away before its new owner consumes, or waits for the broker like everybody else.
            waiting = [unit for unit in daemon.pool_units(pool.name) if unit.state not in engine.ENDED_STATES]
            consuming = [unit for unit in waiting if not (unit.current and unit.current.waits_for_broker)]
            await asyncio.gather(*(unit.started() for unit in consuming))
    for name in difference.rolled:
        for unit in daemon.pool_units(name):
            await _renew(daemon, unit)
        scaling.leave(await scaling.resize(daemon, daemon.pool(name)))
    for name in difference.in_place:
        scaling.leave(await scaling.resize(daemon, daemon.pool(name)))


async def _tell(daemon: Daemon) -> None:
    """Pauses, queues that depart and the agent's list of queues; what fails here is tried again by itself."""
    steering = daemon.steering
    try:
        await steering.save()
        await steering.settle()
        agent = daemon.units[AGENT].current
        if agent is not None and agent.connection is not None:
            await agent.connection.call("settings", {}, AGENT_TIMEOUT_S)
    except CommandError as error:
        log.warning("after the reload: %s", error)


async def _check_destination(new: Plan) -> None:
    """Raises CommandError when the logs could not go where the new file wants them."""
    try:
        await asyncio.to_thread(check_destination, new.logging)
    except OSError as error:
        raise CommandError(
            f"limetaskd.logging.destination: {new.logging.destination} cannot be opened: {error.strerror}"
        ) from error


async def _renew(daemon: Daemon, unit: Unit) -> None:
    """Give a unit processes of the new plan. What an operator stopped stays so; what is FATAL has nothing to lose."""
    if unit.state in {engine.STOPPED, engine.STOPPING}:
        return
    if unit.state in {engine.FATAL, engine.BACKOFF}:
        unit.start()
        return
    await roll(daemon, unit)


async def _undo(daemon: Daemon, old: Plan, scales: dict[str, Any], difference: PlanDiff) -> None:
    daemon.plan = old
    daemon.scales.by_pool = scales
    daemon.generation += 1
    daemon.steering.end_move()
    await daemon.write_settings()
    await daemon.write_accepted()
    for name in difference.pools_added:
        for unit in [unit for unit in daemon.units.values() if unit.name.split(":")[0] == name]:
            scaling.retire(daemon, unit)
    try:
        await daemon.nursery.refresh_image()
    except CommandError as error:
        log.warning("the image of the old configuration could not be made again: %s", error)
    for name in (*difference.rolled, *difference.in_place):
        try:
            for unit in daemon.pool_units(name):
                current = unit.current
                if current is not None and current.launch.fingerprint != unit.launch(unit.generation).fingerprint:
                    await _renew(daemon, unit)
            scaling.leave(await scaling.resize(daemon, daemon.pool(name)))
        except CommandError as error:
            log.error("undoing the reload, pool %s: %s", name, error)  # the other pools come back all the same
    await _tell(daemon)


async def _move_beat(daemon: Daemon, old: Plan, new: Plan, difference: PlanDiff) -> None:
    """Exactly one schedule: the old one is gone before the new one starts."""
    before = daemon.units.get(f"{old.beat_pool}:beat") if old.beat_pool is not None else None
    if new.beat_pool == old.beat_pool:
        if before is not None and before.current is not None:
            wanted = before.launch(before.generation).fingerprint
            if before.current.launch.fingerprint != wanted or difference.schedule_changed:
                await roll(daemon, before)
        return
    schedules = [unit for unit in daemon.units.values() if unit.kind == "beat"]  # of the daemon before us, too
    if before is not None:
        scaling.retire(daemon, before)
    for schedule in schedules:
        await schedule.stopped()
    if new.beat_pool is not None:
        beat = daemon.add_beat(new.beat_pool)
        beat.start()
