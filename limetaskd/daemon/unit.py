"""One supervised name: its state machine, its process, its restarts.

    STOPPED --start--> STARTING --consumes--> RUNNING --stop--> STOPPING --dead--> STOPPED
                          |  ^                   |
                          |  +--broker away------+
                        death: at once, or BACKOFF (a timer) --> STARTING, or FATAL (tried again later)

A rolling restart (`rolling.py`) has a successor beside the current process; the successor takes the name when it
consumes, and the old one leaves. What to do at a death is decided by `limetaskd.policy.restart`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from limetaskd.core.channel import Phase, State
from limetaskd.daemon import engine
from limetaskd.daemon.audit import Audit, Operator
from limetaskd.daemon.channel import Connection
from limetaskd.daemon.events import EventBus
from limetaskd.daemon.incarnation import Incarnation, Launch
from limetaskd.daemon.spawner import Exit
from limetaskd.daemon.succession import UnitMemory
from limetaskd.errors import CommandError, LimetaskError, NoAnswerError
from limetaskd.policy.restart import FATAL_RETRY_S, RestartPolicy

log = logging.getLogger("limetaskd.unit")

EX_CONFIG = 78  # a process that says "my configuration or my imports are broken": no use in trying at once
START_TIMEOUT_S = 120.0  # a process that neither consumes nor waits for its broker by then will not
START_PATIENCE_S = 10.0  # how long `start` waits for a broker that is away before it says so


class Host(Protocol):
    """What a unit needs of the daemon."""

    audit: Audit
    events: EventBus
    groups: engine.Groups

    @property
    def stopping(self) -> bool: ...
    @property
    def replacing(self) -> bool: ...
    def restart_policy(self) -> RestartPolicy: ...
    def background(self, work: Coroutine[Any, Any, Any], *, report: bool = True) -> asyncio.Task[Any]: ...
    async def bring_to_life(self, unit: Unit, launch: Launch, generation: int) -> Incarnation: ...
    def process_died(self, unit: Unit, incarnation: Incarnation) -> None: ...
    def remove_if_gone(self, unit: Unit) -> None: ...


class Unit:
    """A supervised name, such as `asap:0`. `launch(generation)` says how to start its next process."""

    def __init__(self, name: str, kind: str, host: Host, log_path: str, launch: Callable[[int], Launch]) -> None:
        self.name = name
        self.kind = kind  # "worker" | "beat" | "agent" | "image" | "broker"
        self.launch = launch
        self.current: Incarnation | None = None
        self.successor: Incarnation | None = None
        self.leaving: list[Incarnation] = []
        self.generation = 0
        self.restarts = 0
        self.reason: str | None = None
        self.retry_at: float | None = None  # monotonic
        self.rolling: asyncio.Task[None] | None = None
        self.leftover = False  # not wanted any more: it goes when its last process has gone
        self._host = host
        self._deaths: list[float] = []
        self._trial = False  # the next process is tried out of FATAL
        self._timer: asyncio.TimerHandle | None = None
        self._start_again = False
        self._wanted = True  # nobody has stopped it
        self._birth: asyncio.Task[None] | None = None  # a process is being started
        self._changed = asyncio.Event()
        self.machine = host.groups.machine(name, log_path, self, self._announce)

    # State.

    @property
    def state(self) -> int:
        return int(self.machine.state)

    @property
    def state_name(self) -> str:
        return engine.state_name(self.state)

    @property
    def ready(self) -> bool:
        current = self.current
        return current is not None and self.state == engine.RUNNING and (current.consumes or not current.launch.reports)

    @property
    def settled(self) -> bool:
        """Nothing more will happen by itself soon: it consumes, waits for its broker, or is down."""
        waits = self.current is not None and self.current.waits_for_broker
        return waits or self.state in engine.ENDED_STATES or self.state == engine.RUNNING

    def _announce(self, old: int, new: int) -> None:
        if new == engine.RUNNING:
            self._trial = False
        self._host.events.emit(
            "process_state",
            process=self.name,
            **{"from": engine.state_name(old), "to": engine.state_name(new)},
            pid=self.current.pid if self.current else None,
            reason=self.reason,
        )
        self.pulse()

    def pulse(self) -> None:
        """Wake everybody who waits for a change of this unit."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, timeout_s: float | None = None) -> bool:
        """Wait for the next change; False when it did not come in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    # Asked by supervisor's RPC interface.

    @property
    def pid(self) -> int:
        return self.current.pid if self.current is not None else 0

    def request_start(self) -> None:
        self._host.audit.record("start", {"names": [self.name]}, "done", by=Operator("supervisor"))
        self.start()

    def request_stop(self) -> None:
        self._host.audit.record("stop", {"names": [self.name]}, "done", by=Operator("supervisor"))
        self.stop()

    def request_signal(self, number: int) -> str | None:
        if self.current is None or not self.current.ref.signal(number):
            return f"{self.name} is not running"
        return None

    # Start and death.

    def remember(self) -> UnitMemory:
        """What the next daemon should know."""
        return UnitMemory(self.restarts, tuple(self._deaths), not self._wanted, self._trial)

    def recall(self, memory: UnitMemory, *, same_boot: bool) -> None:
        """What the last daemon knew."""
        self.restarts = memory.restarts
        self._wanted = not memory.stopped
        self._deaths = list(memory.deaths) if same_boot else []
        self._trial = memory.given_up and same_boot

    def start(self) -> None:
        """Bring it up if it is down; a unit that is being stopped starts when that is done."""
        self._wanted = True
        if self.state == engine.STOPPING or (self.kind != "worker" and self.leaving):
            # Strictly one schedule, agent or broker at a time: the new one waits for the death of the old one.
            self._start_again = True
        elif self.state in engine.ENDED_STATES:
            self._deaths.clear()
            self._trial = False
            self._spawn()
        elif self.state == engine.BACKOFF:
            self._spawn()

    def come_up(self) -> None:
        """At the start of the daemon, or soon after: start it, if it is wanted and down.

        What kept dying under the daemon before goes on waiting for its next try.
        """
        if self.leftover or not self._wanted or self.state not in engine.ENDED_STATES:
            return
        if self.kind != "worker" and self.leaving:
            self._start_again = True
            return
        now = time.monotonic()
        policy = self._host.restart_policy()
        self._deaths = list(policy.recent(self._deaths, now))
        if self._deaths:
            decision = policy.decide(self._deaths, self._deaths[-1], random.random(), trial=self._trial)
            delay = self._deaths[-1] + decision.delay_s - now
            if delay > 0 and not decision.fatal:
                self.reason = f"died {len(self._deaths)} times under the daemon before this one"
                self._try_later(delay, fatal=False)
                return
            self._trial = decision.fatal  # one try: the code may be newer
        self._spawn()

    def revive(self, launch: Callable[[int], Launch]) -> None:
        """It is wanted again while its last process finishes its tasks: that one leaves, a new one may come."""
        self.launch = launch
        self._wanted = True
        self.leftover = self._start_again = False
        if self.state == engine.STOPPING and self.current is not None:
            self.leaving.append(self.current)
            self.current = None
            self.machine.change_state(engine.STOPPED)

    def _spawn(self) -> None:
        if self._host.replacing:
            return  # the newer code starts it
        self._cancel_timer()
        if self._host.stopping:
            self.machine.change_state(engine.STOPPED)
            return
        self.reason = None
        self.machine.change_state(engine.STARTING)
        self._birth = self._host.background(self._bear())

    async def _bear(self) -> None:
        """Start a process; it may take a moment (an image forks it), and a stop may come meanwhile."""
        begun = time.monotonic()
        try:
            incarnation = await self._new_incarnation()
        except Exception as error:
            # Whatever it was, the unit must not stay between two states for ever.
            if not isinstance(error, OSError | LimetaskError):
                log.exception("%s cannot be started", self.name)
            self._birth = None
            self.machine.spawnerr = str(error)
            if self.state == engine.STOPPING:
                self._stopped()
                self._host.remove_if_gone(self)
                return
            hopeless = isinstance(error, FileNotFoundError | PermissionError)
            self._after_death(f"cannot be started: {error}", fatal=hopeless)
            return
        self._birth = None
        if self.current is not None:  # a successor took the name meanwhile
            self.leaving.append(incarnation)
            incarnation.end(now=True)
            return
        self.current = incarnation
        self._host.events.emit(
            "process_started", process=self.name, pid=incarnation.pid, origin=incarnation.origin,
            took_ms=round((time.monotonic() - begun) * 1000, 3),
        )  # fmt: skip
        if self.state == engine.STOPPING:
            incarnation.end(now=True)
        self.pulse()

    async def born(self, timeout_s: float) -> None:
        """Wait for the process that is being started, if there is one, at most `timeout_s`."""
        if self._birth is not None:
            await asyncio.wait([self._birth], timeout=timeout_s)

    async def _new_incarnation(self) -> Incarnation:
        self.generation += 1
        try:
            return await self._host.bring_to_life(self, self.launch(self.generation), self.generation)
        except NoAnswerError as error:
            # That the image died is no death of ours. It may have forked all the same, so this number is used up.
            log.warning("%s is started by exec: %s", self.name, error)
        self.generation += 1
        launch = dataclasses.replace(self.launch(self.generation), forkable=False)
        return await self._host.bring_to_life(self, launch, self.generation)

    def adopt(self, incarnation: Incarnation) -> None:
        """Take over a process that is alive already."""
        self.generation = max(self.generation, incarnation.generation)
        self.current = incarnation
        self.machine.change_state(engine.STARTING)

    def let_go(self, incarnation: Incarnation) -> None:
        """It is ours no longer, and runs on."""
        if incarnation is self.successor:
            self.successor = None
        elif incarnation in self.leaving:
            self.leaving.remove(incarnation)
        elif incarnation is self.current:
            self.current = None
            self.machine.change_state(engine.STOPPED)
        self.pulse()

    def died(self, incarnation: Incarnation, how: Exit) -> None:
        """One of our processes is dead."""
        if self._host.replacing:
            return  # the newer code finds it dead, with what it ran
        if incarnation is self.successor:
            self.successor = None
            self.pulse()
        elif incarnation in self.leaving:
            self.leaving.remove(incarnation)
            if not self.leaving and self._start_again and self.state in engine.ENDED_STATES:
                self._start_again = False
                self._spawn()
            self.pulse()
        elif incarnation is self.current:
            self.current = None
            self.machine.exitstatus = how.status if how.status is not None else -1
            if self.state == engine.STOPPING:
                self._stopped()
            else:
                said = incarnation.last_word
                if incarnation.ended_for is not None:
                    self._replace(incarnation.ended_for)
                else:
                    self._after_death(f"{how}: {said}" if said else str(how), fatal=how.status == EX_CONFIG)
        self._host.process_died(self, incarnation)

    def _replace(self, reason: str) -> None:
        """We killed it for what a task did: no death that counts, and its successor starts at once."""
        if self.successor is not None:
            self._after_death(reason, fatal=False)
            return
        self.restarts += 1
        self.reason = reason
        log.warning("%s is replaced: %s", self.name, reason, extra={"action": "replaced", "worker": self.name})
        self.machine.change_state(engine.EXITED)
        self._spawn()

    def _stopped(self) -> None:
        self.machine.change_state(engine.STOPPED)
        if self._start_again:
            self._start_again = False
            self._spawn()

    def _after_death(self, reason: str, *, fatal: bool) -> None:
        if self.successor is not None:
            self._inherit(self.successor)
            return
        now = time.monotonic()
        policy = self._host.restart_policy()
        self._deaths = [*policy.recent(self._deaths, now), now]
        decision = policy.decide(self._deaths, now, random.random(), trial=self._trial)
        self.reason = reason
        self.restarts += 1
        delay = FATAL_RETRY_S if fatal else decision.delay_s
        is_fatal = fatal or decision.fatal
        log.log(
            logging.ERROR if is_fatal else logging.WARNING,
            "%s died: %s; %s", self.name, reason,
            f"given up for now, tried again in {delay:.0f} s" if is_fatal
            else ("replaced at once" if delay <= 0 else f"restarted in {delay:.1f} s"),
            extra={"action": "died", "worker": self.name},
        )  # fmt: skip
        if not is_fatal and delay <= 0:
            self.machine.change_state(engine.EXITED)
            self._spawn()
            return
        self._try_later(delay, fatal=is_fatal)

    def _try_later(self, delay_s: float, *, fatal: bool) -> None:
        self._trial = fatal
        self.machine.change_state(engine.FATAL if fatal else engine.BACKOFF)
        self.retry_at = time.monotonic() + delay_s
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._retry)

    def _inherit(self, successor: Incarnation) -> None:
        """A rolling restart was under way: its successor takes over at once."""
        self.current, self.successor = successor, None
        self.machine.change_state(engine.STARTING)
        if successor.report is not None:
            self._follow_phase(successor.report)

    def _retry(self) -> None:
        self._timer = None
        self.retry_at = None
        if self.state in {engine.BACKOFF, engine.FATAL}:
            self._spawn()

    def _cancel_timer(self) -> None:
        self.retry_at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Reports.

    @property
    def busy(self) -> bool:
        """A process of it lives, or is being born."""
        return self._birth is not None or bool(self.processes())

    def processes(self) -> list[Incarnation]:
        """Every process of this name: the current one, its successor, those that leave."""
        return [found for found in (self.current, self.successor, *self.leaving) if found is not None]

    def incarnation(self, generation: int, pid: int) -> Incarnation | None:
        """Which of our processes this is; None for a stranger."""
        for candidate in self.processes():
            if (candidate.generation, candidate.pid) == (generation, pid):
                return candidate
        return None

    def reported(self, incarnation: Incarnation, connection: Connection, report: State) -> None:
        """A process said what it does."""
        before = incarnation.report
        changed = before is None or (before.phase, before.reason) != (report.phase, report.reason)
        incarnation.connection = connection
        incarnation.report = report
        incarnation.heard = time.monotonic()
        incarnation.reported.set()
        if incarnation is self.current:
            self._follow_phase(report)
            if incarnation.drains and incarnation.ending is None and self.kind == "worker":
                self._drains_by_itself(incarnation)
        if changed:
            self.pulse()

    def _drains_by_itself(self, incarnation: Incarnation) -> None:
        """Somebody else told it to finish (a signal by hand, a daemon before us): another one takes the name."""
        log.info("%s (pid %d) finishes its tasks and goes; replaced", self.name, incarnation.pid)
        self.current = None
        self.leaving.append(incarnation)
        incarnation.end()
        if self.successor is not None:
            self._inherit(self.successor)
            return
        self.machine.change_state(engine.EXITED)
        self._spawn()

    def _follow_phase(self, report: State) -> None:
        if report.phase == Phase.CONSUMING and self.state == engine.STARTING:
            self.reason = None
            self.machine.change_state(engine.RUNNING)
        elif report.phase == Phase.CONNECTING and self.state in {engine.RUNNING, engine.STARTING}:
            known = self.reason
            said = (report.reason or "").removeprefix("waits for the broker ")
            self.reason = f"waits for its broker: {said}" if said else "connects to its broker"
            if report.reason and self.reason != known:
                log.warning("%s %s", self.name, self.reason, extra={"action": "broker_away", "worker": self.name})
            self.machine.change_state(engine.STARTING)
            self.pulse()

    def became_ready(self) -> None:
        """For processes that do not report: they answer."""
        if self.state == engine.STARTING:
            self.machine.change_state(engine.RUNNING)

    # Stop, start, successor.

    def stop(self, *, now: bool = False) -> None:
        """Bring it down: gracefully, or at once. Ends a rolling restart and what is still leaving, too."""
        self._wanted = False
        self._start_again = False
        if self.rolling is not None:
            self.rolling.cancel()
        if self.successor is not None:
            self.leaving.append(self.successor)
            self.successor = None
        for incarnation in self.leaving:
            incarnation.end(now=now)
        if self.current is None and self._birth is None:
            self._cancel_timer()
            if self.state != engine.STOPPING:
                self.machine.change_state(engine.STOPPED)
        elif self.current is not None:
            self.machine.change_state(engine.STOPPING)
            self.current.end(now=now)
        elif self._birth is not None:
            self.machine.change_state(engine.STOPPING)

    async def stopped(self) -> None:
        """Wait until nothing of it runs any more."""
        while self.busy:
            await self.changed(5.0)

    async def started(self) -> None:
        """Wait until it consumes. Raises CommandError when it does not, with the reason."""
        begun = time.monotonic()
        patience = begun + START_PATIENCE_S
        while not self.ready:
            if time.monotonic() - begun > START_TIMEOUT_S:
                raise CommandError(f"{self.name} does not consume after {START_TIMEOUT_S:.0f} s: see its log")
            if self.state in {engine.FATAL, engine.BACKOFF, engine.STOPPED}:
                raise CommandError(f"{self.name} is {self.state_name}: {self.reason or 'stopped meanwhile'}")
            if self.current is not None and self.current.waits_for_broker and time.monotonic() > patience:
                raise CommandError(f"{self.name} runs but does not consume yet: it {self.reason}")
            await self.changed(1.0)

    async def bear_successor(self) -> Incarnation:
        """Start the process that is to take the name. Raises OSError, LimetaskError.

        Known as the successor from its first moment: it may die in the next one.
        """
        self.successor = await self._new_incarnation()
        return self.successor

    def succeed(self) -> None:
        """The successor, which consumes, takes the name; the old process leaves."""
        successor = self.successor
        assert successor is not None
        self._cancel_timer()
        self.reason = None
        old, self.current, self.successor = self.current, successor, None
        self.machine.change_state(engine.RUNNING)
        self._host.events.emit(
            "process_replaced", process=self.name, pid=successor.pid, old_pid=old.pid if old else None
        )
        if old is not None:
            self.leaving.append(old)
            old.end()
        self.pulse()

    def give_up(self, successor: Incarnation) -> None:
        """End a successor that did not, or must not, take the name."""
        if self.successor is successor:
            self.successor = None
        if successor.alive and successor is not self.current and successor not in self.leaving:
            self.leaving.append(successor)
            successor.end(now=True)

    def exchange(self) -> None:
        """Stop, and start once the old process is dead: two schedules, agents or brokers at a time must never be."""
        assert self.current is not None
        self.machine.change_state(engine.STOPPING)
        self._start_again = True
        self.current.end()

    def hurry(self) -> None:
        """What is ending, or should be, ends at once."""
        for incarnation in self.processes():
            if incarnation.ending is not None or self.state == engine.STOPPING:
                incarnation.end(now=True)
