"""Autoscaled pools: measure, ask the policy, resize, and remember why."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

from limetaskd.core.jsonlog import timestamp
from limetaskd.daemon import scaling
from limetaskd.errors import CommandError
from limetaskd.policy.autoscale import Autoscaler, Bounds, Decision, Host, Sample

if TYPE_CHECKING:
    from limetaskd.daemon.daemon import Daemon
    from limetaskd.plan.model import PoolPlan

log = logging.getLogger("limetaskd.autoscale")

INTERVAL_S = 2.0
HISTORY = 50


@dataclass
class Scaled:
    """One autoscaled pool: its policy, and its last decisions as `why` tells them, the oldest first."""

    policy: Autoscaler = field(default_factory=Autoscaler)
    history: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=HISTORY))


class Autoscaling:
    """One for each daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._scaled: dict[str, Scaled] = {}

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            # A reload or a scale under way changes what there is to measure; it may take long.
            if self._daemon.state == "stopping" or self._daemon.change_lock.locked():
                continue
            try:
                await self._look()
            except Exception:
                # The edge: a fault here must not end all scaling.
                log.exception("autoscaling failed, it goes on")

    def _pools(self) -> list[PoolPlan]:
        """Those that scale by themselves now: autoscaled, not paused, not set by an operator."""
        daemon = self._daemon
        return [
            pool for pool in daemon.pools()
            if pool.autoscale is not None and not daemon.scales.fixed(pool.name)
            and not any(name in daemon.steering.pauses for name in pool.queues)
        ]  # fmt: skip

    async def _look(self) -> None:
        daemon = self._daemon
        for name in [name for name in self._scaled if (pool := daemon.plan.pool(name)) is None or not pool.autoscale]:
            del self._scaled[name]
        pools = self._pools()
        if not pools:
            return
        samples = {pool.name: self._sample(pool) for pool in pools}
        pids = {slot.pid for pool in pools for slot in self._slots(pool)}
        host = await asyncio.to_thread(measure_host, pids)
        for pool in pools:
            scaled = self._scaled.setdefault(pool.name, Scaled())
            assert pool.autoscale is not None
            bounds = Bounds(pool.autoscale.min, pool.autoscale.max, pool.autoscale.target_latency_s)
            sample = samples[pool.name]
            if sample is None:
                continue
            decision = scaled.policy.decide(sample, bounds, host)
            self._remember(scaled, sample, decision)
            if decision.slots > decision.before:
                # The next pool in this round finds less room.
                taken = (decision.slots - decision.before) * (host.slot_bytes or 0)
                host = Host(host.cpu, host.memory_available - taken, host.memory_total, host.slot_bytes)
            if decision.slots != decision.before:
                await self._apply(pool, decision)

    async def _apply(self, pool: PoolPlan, decision: Decision) -> None:
        daemon = self._daemon
        async with daemon.change_lock:
            if daemon.scales.fixed(pool.name) or daemon.plan.pool(pool.name) is None:
                return
            daemon.scales.automatic[pool.name] = decision.slots
            try:
                scaling.leave(await scaling.resize(daemon, daemon.pool(pool.name)))
            except CommandError as error:
                log.warning("%s: %s", pool.name, error)  # told again with the next report of the worker
        log.info(
            "%s: %d slots instead of %d: %s", pool.name, decision.slots, decision.before, decision.reason,
            extra={"action": "autoscaled", "pool": pool.name},
        )  # fmt: skip
        daemon.events.emit(
            "pool_autoscaled", pool=pool.name, concurrency=decision.slots, before=decision.before,
            reason=decision.reason,
        )  # fmt: skip

    def _slots(self, pool: PoolPlan) -> list[Any]:
        return [
            slot for unit in self._daemon.pool_units(pool.name)
            if unit.current is not None and unit.current.board is not None
            for slot in unit.current.board.read()
        ]  # fmt: skip

    def _sample(self, pool: PoolPlan) -> Sample | None:
        """None while no worker of the pool consumes: there is nothing to measure."""
        daemon = self._daemon
        if not any(unit.ready for unit in daemon.pool_units(pool.name)):
            return None
        slots = self._slots(pool)
        running = [slot.running for slot in slots if slot.running is not None]
        actual = {daemon.plan.settings.queue(name).actual for name in daemon.steering.queues_of(pool)}
        figures = [one for one in daemon.broker_figures.get("queues", []) if one["name"] in actual]
        depths = [one["depth"] for one in figures]
        waits = [one["oldest_wait_s"] for one in figures if one["oldest_wait_s"] is not None]
        now = time.time()
        return Sample(
            at=time.monotonic(),
            slots=pool.concurrency,
            depth=None if not depths or None in depths else sum(depths),
            running=len(running),
            running_s=sum(max(0.0, now - one.started) for one in running),
            completed=sum(slot.processed for slot in slots),
            busy_s=sum(slot.duration_sum_ms for slot in slots) / 1000,
            oldest_wait_s=max(waits, default=None),
        )

    def _remember(self, scaled: Scaled, sample: Sample, decision: Decision) -> None:
        entry = {
            "at": timestamp(time.time()),
            "from": decision.before,
            "to": decision.slots,
            "reason": decision.reason,
            "depth": sample.depth,
            "oldest_wait_s": sample.oldest_wait_s,
            "running": sample.running,
            "service_s": None if decision.service_s is None else round(decision.service_s, 4),
            "arrivals_per_s": None if decision.arrivals_per_s is None else round(decision.arrivals_per_s, 3),
            "needed": decision.needed,
        }
        # Of decisions that changed nothing only the newest is of interest.
        if scaled.history and scaled.history[-1]["from"] == scaled.history[-1]["to"]:
            scaled.history.pop()
        scaled.history.append(entry)

    def why(self, pool: PoolPlan) -> dict[str, Any]:
        """For `limetaskctl why`."""
        scaled = self._scaled.get(pool.name)
        scale = pool.autoscale
        fixed = self._daemon.scales.fixed(pool.name)
        bounds = {"min": scale.min, "max": scale.max, "target_latency_s": scale.target_latency_s} if scale else None
        return {
            "pool": pool.name,
            "concurrency": pool.concurrency,
            "workers": pool.workers,
            "autoscale": bounds,
            "set_by_operator": fixed,
            "paused": [name for name in pool.queues if name in self._daemon.steering.pauses],
            "decisions": list(scaled.history) if scaled is not None else [],
        }


def measure_host(pids: set[int]) -> Host:
    """CPU since the last call, memory, and the mean private memory of these processes. Reads /proc: in a thread."""
    private = []
    for pid in pids:
        try:
            memory = psutil.Process(pid).memory_info()
        except psutil.Error:
            continue
        private.append(max(0, memory.rss - memory.shared))
    host = psutil.virtual_memory()
    return Host(
        cpu=psutil.cpu_percent(interval=None) / 100,
        memory_available=host.available,
        memory_total=host.total,
        slot_bytes=sum(private) // len(private) if private else None,
    )
