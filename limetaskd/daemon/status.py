"""What `status`, `tasks` and `queues` tell. Unknown figures are null, never 0."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Any

import psutil

from limetaskd.core.board import Slot
from limetaskd.core.process import process_start_ticks
from limetaskd.core.redact import redact_text
from limetaskd.daemon import engine
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.incarnation import Incarnation
from limetaskd.daemon.unit import Unit
from limetaskd.plan.model import PoolPlan
from limetaskd.version import __version__

# psutil measures CPU between two calls on one object, so the objects are kept between two calls of `status`.
_processes: dict[int, psutil.Process] = {}


async def document(daemon: Daemon, only: str | None) -> dict[str, Any]:
    """The result of `status`, of all pools or of `only` one."""
    pools = [pool for pool in daemon.pools() if only is None or pool.name == only]
    units = [unit for pool in pools for unit in daemon.pool_units(pool.name)]
    pids = {unit.current.pid for unit in units if unit.current is not None}
    for unit in units:
        pids |= {slot.pid for slot in _slots(unit.current)}
    figures = await asyncio.to_thread(_measure, pids)
    return {
        "daemon": _daemon(daemon),
        "pools": [_pool(daemon, pool, figures) for pool in pools],
        "queues": [
            figure for figure in queue_figures(daemon)
            if only is None or figure["name"] in _names_of(daemon, pools)
        ],
    }  # fmt: skip


def _names_of(daemon: Daemon, pools: list[PoolPlan]) -> set[str]:
    """Actual names of what these pools consume or have paused."""
    return {_actual(daemon, name) for pool in pools for name in daemon.steering.queues_of(pool)}


def _actual(daemon: Daemon, name: str) -> str:
    return daemon.plan.settings.queue(name).actual


def _daemon(daemon: Daemon) -> dict[str, Any]:
    owner = daemon.plan.beat_pool
    beat = daemon.units.get(f"{owner}:beat") if owner is not None else None
    host = socket.gethostname()
    return {
        "pid": os.getpid(),
        "version": __version__,
        "uptime_s": round(time.monotonic() - daemon.started_at, 3),
        "state": daemon.state,
        "config": daemon.plan.settings.config_path,
        "generation": daemon.generation,
        "strategy": daemon.plan.strategy,
        "application": daemon.plan.settings.application,
        "host": host,
        "beat_owner": {"host": host, "pool": owner, "here": True} if owner is not None else None,
        "beat": {"name": beat.name, **_process(beat)} if beat is not None else None,
        "helpers": [
            {"name": unit.name, **_process(unit)}
            for unit in daemon.units.values()
            if unit.kind in {"agent", "broker", "image"}
        ],
        "broker": daemon.broker_figures.get("broker"),
        "status": daemon.status_text(),
        "warnings": list(daemon.plan.warnings),
        "last_reload_error": daemon.last_reload_error,
        "last_upgrade_error": daemon.last_upgrade_error,
    }


def _process(unit: Unit) -> dict[str, Any]:
    return {
        "pid": unit.current.pid if unit.current is not None else None,
        "state": unit.state_name,
        "restarts": unit.restarts,
        "reason": redact_text(unit.reason) if unit.reason else None,
    }


def _pool(daemon: Daemon, pool: PoolPlan, figures: dict[int, dict[str, float]]) -> dict[str, Any]:
    units = daemon.pool_units(pool.name)
    states = {unit.state for unit in units}
    # One word for the pool: the state that its workers share, else the one that needs eyes most.
    order = (
        engine.FATAL, engine.BACKOFF, engine.UNKNOWN, engine.EXITED, engine.STARTING, engine.STOPPING,
        engine.RUNNING, engine.STOPPED,
    )  # fmt: skip
    state = next((candidate for candidate in order if candidate in states), engine.STOPPED)
    queues = daemon.steering.queues_of(pool)
    pauses = [pause for name in queues if (pause := daemon.steering.pauses.get(name)) is not None]
    return {
        "name": pool.name,
        "queues": [_actual(daemon, name) for name in queues],
        "state": engine.state_name(state),
        "concurrency": pool.concurrency,
        "paused": [_actual(daemon, pause.queue) for pause in pauses],
        "departing": [_actual(daemon, name) for name in queues if name in daemon.steering.departing],
        "pauses": [pause.as_document(_actual(daemon, pause.queue)) for pause in pauses],
        "workers": [_worker(unit, figures) for unit in units],
    }


def _worker(unit: Unit, figures: dict[int, dict[str, float]]) -> dict[str, Any]:
    current = unit.current
    slots = _slots(current)
    report = current.report if current is not None else None
    main = figures.get(current.pid, {}) if current is not None else {}
    pids = {slot.pid for slot in slots} | ({current.pid} if current is not None else set())
    known = [figures[pid] for pid in pids if pid in figures]
    counted = _counted(current)
    concurrency = None
    if current is not None:
        concurrency = report.concurrency if report is not None else current.launch.concurrency
    return {
        "name": unit.name,
        **_process(unit),
        "ready": unit.ready,
        "origin": current.origin if current is not None else None,
        "uptime_s": round(time.monotonic() - current.started, 3) if current is not None else None,
        "memory_bytes": int(sum(figure["memory"] for figure in known)) if main else None,
        "cpu_percent": round(sum(figure["cpu"] for figure in known if "cpu" in figure), 1) if "cpu" in main else None,
        "concurrency": concurrency,
        "active": sum(1 for slot in slots if slot.running is not None) if current is not None else None,
        "processed": sum(slot.processed for slot in counted) if current is not None else None,
        "failed": sum(slot.failed for slot in counted) if current is not None else None,
        "draining": [incarnation.pid for incarnation in unit.leaving],
        "children": [_child(slot, figures) for slot in slots],
    }


def _child(slot: Slot, figures: dict[int, dict[str, float]]) -> dict[str, Any]:
    memory = figures.get(slot.pid, {}).get("memory")
    task = None
    if slot.running is not None:
        task = {
            "id": slot.running.id,
            "name": slot.running.name,
            "running_s": round(max(0.0, time.time() - slot.running.started), 3),
            "waits": slot.running.waits,
        }
    return {"pid": slot.pid, "memory_bytes": int(memory) if memory is not None else None, "task": task}


def _counted(incarnation: Incarnation | None) -> list[Slot]:
    return incarnation.board.read() if incarnation is not None and incarnation.board is not None else []


def _slots(incarnation: Incarnation | None) -> list[Slot]:
    """Slots whose process is alive; totals of the dead stay on the board for `_counted`."""
    return [slot for slot in _counted(incarnation) if process_start_ticks(slot.pid) == slot.start_ticks]


def running_tasks(daemon: Daemon, only: str | None) -> list[dict[str, Any]]:
    """Every task that runs now, the longest first; workers that drain are included."""
    found = []
    for unit in daemon.units.values():
        pool = unit.name.split(":")[0]
        if unit.kind != "worker" or (only is not None and pool != only):
            continue
        for incarnation in unit.processes():
            for slot in _slots(incarnation):
                if slot.running is None:
                    continue
                found.append(
                    {
                        "id": slot.running.id,
                        "name": slot.running.name,
                        "queue": slot.running.queue,
                        "user": slot.running.user,
                        "pool": pool,
                        "worker": unit.name,
                        "pid": slot.pid,
                        "running_s": round(max(0.0, time.time() - slot.running.started), 3),
                        "waits": slot.running.waits,
                    }
                )
    return sorted(found, key=lambda task: -task["running_s"])


def queue_figures(daemon: Daemon) -> list[dict[str, Any]]:
    """Every configured queue; figures that the agent has not seen are null."""
    seen = {figure["name"]: figure for figure in daemon.broker_figures.get("queues", [])}
    return [
        {
            "name": queue.actual,
            "depth": seen.get(queue.actual, {}).get("depth"),
            "consumers": seen.get(queue.actual, {}).get("consumers"),
            "oldest_wait_s": seen.get(queue.actual, {}).get("oldest_wait_s"),
        }
        for queue in daemon.steering.settings().queues
    ]


def _measure(pids: set[int]) -> dict[int, dict[str, float]]:
    """PSS in bytes and CPU in percent; reads /proc, half a millisecond a process, so it runs in a thread.

    PSS counts each shared page in shares. With RSS, a pool that was forked would look several times its size.
    """
    for pid in list(_processes):
        if pid not in pids:
            _processes.pop(pid, None)  # two calls may be under way
    figures: dict[int, dict[str, float]] = {}
    for pid in pids:
        known = _processes.get(pid)
        try:
            process = known if known is not None else psutil.Process(pid)
            memory = process.memory_full_info().pss
            cpu = process.cpu_percent(interval=None)
        except psutil.Error:
            _processes.pop(pid, None)
            continue
        _processes[pid] = process
        figures[pid] = {"memory": memory}
        if known is not None:  # the first measurement has nothing to compare with
            figures[pid]["cpu"] = cpu
    return figures
