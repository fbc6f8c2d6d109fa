"""What running processes are told in place: their queues, their slots, their log level and their shutdown timeout.

What is wanted is a function of the plan, the pauses and the queues that a reload moves or removes. What a process has
is what it reports. Whenever the two differ it is told, so it does not matter how they came to differ: a command, a
reload, a process that was adopted or started a moment too early.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from limetaskd.core.channel import Phase
from limetaskd.core.documents import loads
from limetaskd.core.routing import find_queue
from limetaskd.core.settings import Queue, Settings
from limetaskd.daemon import departing as departure
from limetaskd.daemon import files
from limetaskd.daemon.audit import ITSELF
from limetaskd.daemon.departing import Departing, Emptiness
from limetaskd.daemon.launch import AGENT, STOP_MARGIN_S
from limetaskd.daemon.pauses import Pauses
from limetaskd.daemon.slots import set_slots, slots_differ
from limetaskd.errors import CommandError

if TYPE_CHECKING:
    from limetaskd.daemon.daemon import Daemon
    from limetaskd.daemon.incarnation import Incarnation
    from limetaskd.daemon.unit import Unit
    from limetaskd.plan.model import Plan, PoolPlan

log = logging.getLogger("limetaskd.steering")

QUEUES_VERSION = 1
# A worker that consumes answers at once, on Redis within a second.
SETTLE_S = 30.0
ASK_S = 10.0
LOOK_S = 1.0
# The wall clock may be set: the end of a pause is looked for at least this often.
CLOCK_S = 20.0
_TOLD = frozenset({"worker", "beat", "agent"})


def parse_saved(document: Any) -> tuple[Pauses, dict[str, Departing]]:
    """Pauses and departing queues of a queues.json. Raises ValueError, KeyError, TypeError, AttributeError."""
    if not isinstance(document, dict) or document.get("version") != QUEUES_VERSION:
        raise ValueError(f"not a queues.json of version {QUEUES_VERSION}")
    departing = map(Departing.from_document, document["departing"])
    return Pauses.from_list(document["paused"]), {one.queue.name: one for one in departing}


class Steering:
    """One for each daemon. `pauses` and `departing` are saved in state_dir."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.pauses = Pauses()
        self.departing: dict[str, Departing] = {}
        # While a reload is under way: pool -> queues that it consumes until others have taken over.
        self._moving: dict[str, tuple[str, ...]] | None = None
        self._emptiness = Emptiness()
        self._saving = asyncio.Lock()
        self._news = asyncio.Event()

    # What is wanted.

    def settings(self) -> Settings:
        """For workers and the agent: those of the plan, with the queues that depart."""
        settings = self._daemon.plan.settings
        if not self.departing:
            return settings
        return dataclasses.replace(
            settings, queues=[*settings.queues, *(one.queue for one in self.departing.values())]
        )

    def queue(self, name: str) -> Queue:
        """The queue of a configured or actual name. Raises CommandError for an unknown one, with the known ones."""
        queue = find_queue(self.settings(), name)
        if queue is None:
            known = ", ".join(queue.name for queue in self.settings().queues)
            raise CommandError(f"no queue {name!r} is configured: there are {known}")
        return queue

    def queues_of(self, pool: PoolPlan) -> tuple[str, ...]:
        """Configured names of what a pool is responsible for, paused ones included."""
        departing = [name for name, one in self.departing.items() if one.pool == pool.name]
        return tuple(dict.fromkeys([*pool.queues, *departing, *(self._moving or {}).get(pool.name, ())]))

    def wanted(self, pool: PoolPlan) -> tuple[str, ...]:
        """Configured names of what the workers of a pool consume now."""
        return tuple(name for name in self.queues_of(pool) if name not in self.pauses)

    def for_launch(self, pool: PoolPlan) -> PoolPlan:
        return dataclasses.replace(pool, queues=self.wanted(pool))

    # What processes are told.

    def reported(self, unit: Unit, incarnation: Incarnation) -> None:
        """A process said what it does; tell it what differs."""
        report = incarnation.report
        if report is not None and report.phase == Phase.CONSUMING:
            incarnation.queues = tuple(report.queues)  # what it comes back to after a lost connection
        if incarnation.steering.locked() or not self._steerable(unit, incarnation):
            return
        if self._configuration(unit, incarnation) is not None or self._difference(unit, incarnation):
            self._daemon.background(self._quietly(unit, incarnation))
        elif incarnation is unit.current and unit.kind == "worker":
            pool = self._pool(unit)
            if pool is not None and incarnation.report is not None and slots_differ(unit, pool):
                self._daemon.background(self._follow_slots(unit, pool))

    async def _follow_slots(self, unit: Unit, pool: PoolPlan) -> None:
        try:
            await set_slots(unit, pool)
        except CommandError as error:
            log.debug("%s: %s", unit.name, error)  # tried again with its next report

    def _steerable(self, unit: Unit, incarnation: Incarnation) -> bool:
        return (
            unit.kind in _TOLD and not unit.leftover and incarnation.alive and incarnation.ending is None
            and incarnation.connection is not None and incarnation.report is not None
            and incarnation.report.phase not in {Phase.DRAINING, Phase.FAILED}
        )  # fmt: skip

    def _pool(self, unit: Unit) -> PoolPlan | None:
        name = unit.name.split(":")[0]
        return self._daemon.pool(name) if self._daemon.plan.pool(name) is not None else None

    def _configuration(self, unit: Unit, incarnation: Incarnation) -> dict[str, Any] | None:
        """What it should be told of settings that change in place; None: it knows."""
        wanted: dict[str, Any] = {"log_level": self._daemon.plan.settings.log_level}
        pool = self._pool(unit)
        if unit.kind == "worker" and pool is not None:
            wanted["shutdown_timeout_s"] = pool.shutdown_timeout_s
        return None if wanted == incarnation.told else wanted

    def _difference(self, unit: Unit, incarnation: Incarnation) -> list[tuple[str, str]]:
        """(command, queue) to be sent, beginnings first: each queue keeps a consumer."""
        pool, report = self._pool(unit), incarnation.report
        if unit.kind != "worker" or pool is None or report is None:
            return []
        if report.phase == Phase.CONSUMING:
            have = set(report.queues)
        elif incarnation.queues is not None:
            have = set(incarnation.queues)
        else:
            return []  # adopted without a connection: it says what it consumes when it does
        settings = self.settings()
        wanted = {settings.queue(name).actual: name for name in self.wanted(pool)}
        # `worker_direct` of Celery: a queue of the worker's own, which nobody configures.
        own = {actual for actual in have if actual.endswith(".dq")}
        begin = [("consume", name) for actual, name in wanted.items() if actual not in have]
        return begin + [("cancel", actual) for actual in sorted(have - wanted.keys() - own)]

    async def steer(self, unit: Unit, incarnation: Incarnation) -> None:
        """Tell one process all that differs. Raises CommandError when it refuses or goes away."""
        async with incarnation.steering:
            connection = incarnation.connection
            configuration = self._configuration(unit, incarnation)
            if configuration is not None and connection is not None:
                incarnation.told = configuration
                try:
                    await connection.call("configure", configuration, ASK_S)
                except CommandError:
                    incarnation.told = None  # not heard: told again with its next report
                    raise
                timeout_s = configuration.get("shutdown_timeout_s")
                if timeout_s is not None:
                    incarnation.launch = dataclasses.replace(
                        incarnation.launch, stop_timeout_s=timeout_s + STOP_MARGIN_S
                    )
            while self._steerable(unit, incarnation) and (todo := self._difference(unit, incarnation)):
                command, queue = todo[0]
                assert incarnation.connection is not None
                # No limit of time: before it has its broker it answers when it tries to connect.
                reply = await incarnation.connection.call(command, {"queue": queue}, None)
                incarnation.queues = tuple(reply["queues"])
                report = incarnation.report
                if report is not None and report.phase == Phase.CONSUMING:
                    incarnation.report = dataclasses.replace(report, queues=list(reply["queues"]))

    async def _quietly(self, unit: Unit, incarnation: Incarnation) -> None:
        try:
            await self.steer(unit, incarnation)
        except CommandError as error:
            if incarnation.alive and incarnation.connection is not None:
                log.warning("%s: %s", unit.name, error, extra={"action": "steering", "worker": unit.name})

    async def settle(self, pools: Iterable[str] | None = None) -> None:
        """Tell every worker (of `pools`); returns when all that consume have done it, others do it before they begin.

        Raises CommandError with the reasons of those that did not.
        """
        chosen = None if pools is None else set(pools)
        tasks: dict[asyncio.Task[Any], Unit] = {}
        for unit in list(self._daemon.units.values()):
            if unit.kind != "worker" or (chosen is not None and unit.name.split(":")[0] not in chosen):
                continue
            for incarnation in (unit.current, unit.successor):
                if incarnation is None or not self._steerable(unit, incarnation):
                    continue
                if incarnation.report is not None and incarnation.report.phase == Phase.CONSUMING:
                    tasks[self._daemon.background(self._checked(unit, incarnation), report=False)] = unit
                else:
                    self._daemon.background(self._quietly(unit, incarnation))
        if not tasks:
            return
        done, late = await asyncio.wait(tasks, timeout=SETTLE_S)
        failures = [f"{tasks[task].name}: {task.exception()}" for task in done if task.exception() is not None]
        failures += [f"{tasks[task].name} does not answer; it is told as soon as it does" for task in late]
        if failures:
            raise CommandError("; ".join(failures))

    async def _checked(self, unit: Unit, incarnation: Incarnation) -> None:
        try:
            await self.steer(unit, incarnation)
        except CommandError:
            if incarnation.alive and incarnation.connection is not None:
                raise  # one that died or lost us meanwhile is told when it comes (back)

    # Reload.

    def begin_move(self, old: Plan, new: Plan) -> None:
        """`new` is about to be carried out: what pools consume they go on to consume until `end_move`."""
        self._moving = {pool.name: pool.queues for pool in old.pools if new.pool(pool.name) is not None}
        self.departing = departure.after_reload(self.departing, old, new)

    def end_move(self) -> None:
        """Every queue has its new consumers (or, undone, its old ones)."""
        self._moving = None
        self._forget_pauses()
        self._news.set()

    # Saved state.

    async def load(self) -> None:
        """Pauses and departing queues of the last daemon; a damaged file is set aside."""
        path = self._daemon.paths.queues
        try:
            text = await asyncio.to_thread(files.read, path)
            if text is not None:
                self._take(loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            aside = await asyncio.to_thread(files.set_aside, path)
            log.error("%s: %s; set aside as %s: no queue is paused", path, error, aside)

    def _take(self, document: Any) -> None:
        pauses, found = parse_saved(document)
        self.departing = departure.after_reload(found, self._daemon.plan, self._daemon.plan)
        self.pauses = pauses
        self._forget_pauses()

    def _forget_pauses(self) -> None:
        """Of queues that do not exist any more."""
        known = {queue.name for queue in self.settings().queues}
        self.pauses.keep(known)

    async def save(self) -> None:
        """Written as it is when the disk's turn comes, so that the last state wins. Raises CommandError."""
        async with self._saving:
            document = {
                "version": QUEUES_VERSION,
                "paused": self.pauses.as_list(),
                "departing": [one.as_document() for one in self.departing.values()],
            }
            try:
                await asyncio.to_thread(files.write_atomically, self._daemon.paths.queues, json.dumps(document))
            except OSError as error:
                raise CommandError(f"{self._daemon.paths.queues} cannot be written: {error}") from error
        self._news.set()

    # Time.

    async def watch(self) -> None:
        """For ever: pauses end when they should, and queues that depart are let go when they are empty."""
        while True:
            self._news.clear()
            try:
                await self._end_pauses()
                if self._moving is None:
                    for name in list(self.departing):
                        await self._look_at(name)
            except Exception:
                # The edge: a fault here must not end every later pause too.
                log.exception("watching the queues failed, it goes on")
            timeout_s = LOOK_S if self.departing else CLOCK_S
            end = self.pauses.next_end()
            if end is not None:
                timeout_s = min(timeout_s, max(0.1, end - time.time() + 0.01))
            try:
                async with asyncio.timeout(timeout_s):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _end_pauses(self) -> None:
        from limetaskd.daemon import pausing

        over = self.pauses.expired(time.time())
        if over:
            # Whatever becomes of it, it is over.
            try:
                await self._daemon.audit.carry_out(
                    ITSELF, "resume", {"queues": over}, pausing.resume(self._daemon, over)
                )
            except CommandError as error:
                for name in over:
                    self.pauses.drop(name)
                log.error("the pause of %s is over, but: %s", ", ".join(over), error)

    async def _look_at(self, name: str) -> None:
        messages = None if name in self.pauses else await self._messages(self.departing[name].queue)
        if name in self.departing and self._emptiness.seen(name, messages, time.monotonic()):
            await self._let_go(name)

    async def _messages(self, queue: Queue) -> int | None:
        """How many messages of a queue wait or are held by somebody, as far as can be known; None: unknown."""
        daemon = self._daemon
        agent = daemon.units[AGENT].current
        if agent is None or agent.connection is None:
            return None
        try:
            # Of a quorum queue, delayed messages wait in queues of the broker's own, whose target nobody can tell.
            asked = {"queue": queue.actual, "delayed": queue.queue_type == "quorum"}
            figure = await agent.connection.call("look", asked, ASK_S)
            total = figure["depth"]
            if total is None:
                return None
            if figure["unacknowledged"] is not None:
                return int(total + figure["unacknowledged"])
            for unit in list(daemon.units.values()):
                for incarnation in (unit.current, unit.successor, *unit.leaving) if unit.kind == "worker" else ():
                    if incarnation is None or incarnation.connection is None or incarnation.report is None:
                        continue
                    if incarnation.report.phase in {Phase.CONSUMING, Phase.DRAINING}:
                        total += (await incarnation.connection.call("held", {"queue": queue.actual}, ASK_S))["held"]
        except CommandError as error:
            log.debug("%s: %s", queue.actual, error)
            return None
        return int(total)

    async def _let_go(self, name: str) -> None:
        queue = self.departing.pop(name).queue
        self._emptiness.forget(name)
        try:
            await self.settle()
        except CommandError as error:
            log.warning("%s: %s", queue.actual, error)
        await self.save()
        await self._daemon.write_settings()
        self._daemon.events.emit("queue_let_go", queue=queue.actual)
        log.info("%s has been empty for %.0f s: it is let go", queue.actual, departure.EMPTY_S,
                 extra={"action": "queue_let_go", "task_queue": queue.actual})  # fmt: skip
        agent = self._daemon.units[AGENT].current
        if agent is not None and agent.connection is not None:
            try:
                await agent.connection.call("settings", {}, ASK_S)
            except CommandError as error:
                log.debug("%s: %s", AGENT, error)
