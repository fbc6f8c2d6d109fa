"""The daemon itself: what should run (plan and scales), what runs (units), and what brings one to the other."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from limetaskd.core.accepted import Accepted
from limetaskd.core.channel import Event, State
from limetaskd.core.spec import SPARE
from limetaskd.daemon import embedded, engine, files, orphans
from limetaskd.daemon.audit import Audit
from limetaskd.daemon.autoscaling import Autoscaling
from limetaskd.daemon.channel import ChannelServer, Connection
from limetaskd.daemon.events import EventBus
from limetaskd.daemon.incarnation import Incarnation, Launch
from limetaskd.daemon.keeper import Keeper
from limetaskd.daemon.launch import (
    AGENT,
    BROKER,
    IMAGE,
    agent_launch,
    beat_launch,
    broker_launch,
    image_launch,
    paths_of,
    worker_launch,
)
from limetaskd.daemon.logpump import LogPump
from limetaskd.daemon.nursery import Nursery
from limetaskd.daemon.pools import Scales
from limetaskd.daemon.spawner import become_subreaper, kill_stopped_children
from limetaskd.daemon.steering import Steering
from limetaskd.daemon.unit import Unit
from limetaskd.errors import CommandError
from limetaskd.plan.model import Plan, PoolPlan
from limetaskd.policy.restart import RestartPolicy

if TYPE_CHECKING:
    from limetaskd.daemon.guard import Guard

log = logging.getLogger("limetaskd.daemon")

TICK_S = 5.0
# A tick that comes this late means that the daemon itself (or the host) was frozen: silence proves nothing then.
FROZEN_S = 3 * TICK_S
BROKER_POLL_S = 0.05
BROKER_PATIENCE_S = 15.0
CLOSE_S = 5.0
BIRTH_S = 0.05  # what follows a death waits so long for the replacement, which needs the processor
ACCOUNTS_S = 15.0  # at a stop, for what is left to say of tasks that were killed
ACCOUNTS_NOW_S = 2.0


class Daemon:
    """Owns the units. One per process; everything runs in one asyncio loop."""

    def __init__(self, plan: Plan, logs: LogPump) -> None:
        self.plan = plan
        self.paths = paths_of(plan)
        self.logs = logs
        self.events = EventBus()
        self.groups = engine.Groups()
        self.scales = Scales()
        self.steering = Steering(self)
        self.autoscaling = Autoscaling(self)
        self.audit = Audit(self.paths.audit, self.events)
        self.units: dict[str, Unit] = {}
        self._generations: dict[str, int] = {}  # by name: files of the dead are not to be taken for those of the living
        self.generation = 1  # of the accepted configuration
        self.state = "starting"
        self.last_reload_error: str | None = None
        self.last_upgrade_error: str | None = None
        self.started_at = time.monotonic()
        self.broker_figures: dict[str, Any] = {}
        self.figures_at = 0.0  # monotonic
        self.change_lock = asyncio.Lock()  # reload and scale change the plan one at a time
        self.reload_requested = asyncio.Event()
        self.stop_requested = asyncio.Event()
        self.stop_now = asyncio.Event()
        self.upgrade_requested = asyncio.Event()
        self.replacing = False  # this process becomes newer code: its workers run on
        self.upgraded = False  # this process has just become newer code
        self.nursery = Nursery(self)
        self.keeper = Keeper(self)
        self.channel = ChannelServer(self.paths.channel, self.on_state, self._on_event, self._on_close)
        self.guard: Guard | None = None  # sets itself
        self._tick_task: asyncio.Task[Any] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._accounts: set[asyncio.Task[Any]] = set()
        self._xmlrpc: engine.XmlRpcServer | None = None
        self._started = False  # everything has been set going

    @property
    def stopping(self) -> bool:
        """Nothing new is started any more."""
        return self.state == "stopping"

    def require_running(self) -> None:
        """Raises CommandError while the daemon starts, stops or is replaced: nothing may be changed then."""
        if not self._started or self.stop_requested.is_set() or self.stopping or self.replacing:
            ending = "replacing" if self.replacing else "stopping"
            raise CommandError(f"limetaskd is {ending if self._started else 'starting'}: try again in a moment")

    def request_stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """What the signal `number` means: SIGQUIT stops at once, every other one gracefully.

        While this process becomes newer code it is that code's to stop: blocked in this thread, and sent to no other,
        the signal waits over the exec.
        """
        if self.replacing:
            signal.pthread_sigmask(signal.SIG_BLOCK, {number})
            signal.pthread_kill(threading.get_ident(), number)
            return
        if number == signal.SIGQUIT:
            self.stop_now.set()
        self.stop_requested.set()

    # Pools.

    def pool(self, name: str) -> PoolPlan:
        """The pool as it should be now. Raises CommandError for an unknown name, with the known ones."""
        pool = self.plan.pool(name)
        if pool is None:
            raise CommandError(f"no pool {name!r}: there are {', '.join(pool.name for pool in self.plan.pools)}")
        return self.scales.apply(pool)

    def pools(self) -> list[PoolPlan]:
        return [self.scales.apply(pool) for pool in self.plan.pools]

    def pool_units(self, pool: str) -> list[Unit]:
        return [
            unit
            for unit in self.units.values()
            if unit.kind == "worker" and unit.name.split(":")[0] == pool and not unit.leftover
        ]

    def find_units(self, name: str) -> list[Unit]:
        """The units that `name` means: a worker (`asap:0`), or a pool. Raises CommandError for an unknown name."""
        if name in self.units:
            return [self.units[name]]
        if self.plan.pool(name) is not None:
            beat = self.units.get(f"{name}:beat")
            return self.pool_units(name) + ([beat] if beat is not None else [])
        known = ", ".join([pool.name for pool in self.plan.pools] + sorted(self.units))
        raise CommandError(f"no pool or worker {name!r}: there are {known}")

    # Start.

    async def start(self) -> None:
        """Bring everything up; returns when all has been set going (not when all consumes)."""
        become_subreaper()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.nursery.reap_strangers)
        await asyncio.to_thread(files.make_folders, self.paths.boards, self.paths.processes)
        await asyncio.to_thread(files.remove_unfinished, *self.paths.written)
        await self.keeper.load_scales()
        await self.keeper.save_folders()
        memory = await self.keeper.load_memory()
        await self.steering.load()
        await self.write_settings()
        await self.write_accepted()
        self.channel.start()
        if self.plan.supervisor_socket:
            # Bound before anything is taken over or started: what can fail fails first.
            self._xmlrpc = engine.XmlRpcServer(
                self.groups, self.paths.supervisor, self.request_stop, self.reload_requested.set
            )
        found, remains, self._generations = await asyncio.to_thread(orphans.find_all, self.paths)
        broker = await self._start_broker() if self.plan.embedded else None
        if self.plan.preload:
            self.add_image().start()
        self._add(AGENT, "agent", lambda generation: agent_launch(self.plan, generation))
        for pool in self.pools():
            for index in range(pool.workers):
                self.add_worker(pool.name, index)
        if self.plan.beat_pool is not None:
            self.add_beat(self.plan.beat_pool)
        stopped = self.keeper.recall(memory)
        orphans.take_over(self, found, stopped)
        self.nursery.knows_all()
        if broker is not None:
            # Without it, every new worker would only wait; those taken over are known by now.
            deadline = time.monotonic() + BROKER_PATIENCE_S
            while broker.state != engine.RUNNING and time.monotonic() < deadline:
                await broker.changed(1.0)
        self._come_up()
        self._started = True
        if self.guard is not None and remains:
            self.background(self.guard.account_absent(remains))
        self.keeper.start()
        if self._xmlrpc is not None:
            self._xmlrpc.start()
        self._tick_task = self.background(self._tick())
        self.background(self.steering.watch())
        self.background(self.autoscaling.run())

    def _come_up(self) -> None:
        """Start what is wanted and was not taken over."""
        schedules = [unit for unit in self.units.values() if unit.kind == "beat" and unit.leaving]
        for unit in list(self.units.values()):
            if unit.kind == "beat" and schedules:
                self.background(self._come_up_after(unit, schedules))
            elif unit.kind not in {"broker", "image"}:
                unit.come_up()

    def background(self, work: Coroutine[Any, Any, Any], *, report: bool = True) -> asyncio.Task[Any]:
        """Run a coroutine beside the rest; its failure is logged, unless the caller looks (`report` False)."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._background_done if report else self._tasks.discard)
        return task

    def _background_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a background task failed", exc_info=task.exception())

    @staticmethod
    async def _come_up_after(unit: Unit, others: list[Unit]) -> None:
        """A schedule never starts while another one, of whatever name, has not ended."""
        for other in others:
            await other.stopped()
        unit.come_up()

    async def make_runtime_dir_again(self) -> None:
        """Somebody has emptied it: what new processes need is there again; the control socket is not."""
        log.error(
            "%s was emptied: made anew for new processes. Those that run are not found by the next daemon, and "
            "limetaskctl finds no socket: restart limetaskd when you can",
            self.paths.runtime_dir, extra={"action": "runtime_dir_emptied"},
        )  # fmt: skip
        await asyncio.to_thread(files.make_folders, self.paths.boards, self.paths.processes, self.paths.logs)
        self.channel.start()
        await self.keeper.save_folders()
        await self.write_settings()
        await self.write_accepted()

    async def write_settings(self) -> None:
        """What workers read when they start: the settings (secret)."""
        text = self.steering.settings().to_json()
        await asyncio.to_thread(files.write_atomically, self.paths.settings, text, 0o600)

    async def write_accepted(self) -> None:
        """What senders follow: the accepted routing (public)."""
        accepted = Accepted.of(self.plan.settings, self.generation)
        await asyncio.to_thread(files.write_atomically, self.paths.accepted, accepted.to_json(), 0o644)

    async def _start_broker(self) -> Unit:
        """The embedded server comes first."""
        state_dir = self.plan.state_dir
        await asyncio.to_thread(embedded.prepare, state_dir)
        binary = await asyncio.to_thread(embedded.find_server)
        argv = embedded.server_argv(binary, state_dir)
        unit = self._add(BROKER, "broker", lambda _generation: broker_launch(self.plan, argv))
        alive = await asyncio.to_thread(orphans.embedded_server, embedded.socket_path(state_dir))
        if alive is not None:
            unit.adopt(self.nursery.take_over(unit, unit.launch(1), 1, alive, None))
        else:
            unit.start()
        self.background(self._watch_broker(unit))
        return unit

    async def _watch_broker(self, unit: Unit) -> None:
        """The embedded server speaks no channel: ask it until it answers, after each start."""
        path = embedded.socket_path(self.plan.state_dir)
        while True:
            if unit.state != engine.STARTING:
                await unit.changed()
            elif await embedded.ping(path, 1.0):
                unit.became_ready()
            else:
                await asyncio.sleep(BROKER_POLL_S)

    def _add(self, name: str, kind: str, launch: Callable[[int], Launch]) -> Unit:
        known = self.units.get(name)
        if known is not None and known.leftover and known.kind == kind:
            known.revive(launch)
            return known
        unit = Unit(name, kind, self, self.paths.log(name), launch)
        unit.generation = self._generations.get(name, 0)
        self.units[name] = unit
        return unit

    def add_worker(self, pool: str, index: int) -> Unit:
        """Make the unit of worker `index`; its launches always follow the plan of that moment."""
        return self._add(
            f"{pool}:{index}", "worker",
            lambda generation: worker_launch(self.plan, self.steering.for_launch(self.pool(pool)), index, generation),
        )  # fmt: skip

    def add_beat(self, pool: str) -> Unit:
        return self._add(f"{pool}:beat", "beat", lambda generation: beat_launch(self.plan, pool, generation))

    def add_image(self) -> Unit:
        return self._add(IMAGE, "image", lambda generation: image_launch(self.plan, generation))

    def add_leftover(self, name: str, kind: str) -> Unit:
        """A name that nobody wants any more, kept until its last process has gone."""
        unit = self._add(name, kind, lambda _generation: worker_launch(self.plan, self.plan.pools[0], 0, 0))
        unit.leftover = True
        return unit

    def remove_unit(self, name: str) -> None:
        unit = self.units.pop(name, None)
        if unit is not None:
            self._generations[name] = unit.generation
        self.groups.remove(name)

    # What units ask for.

    async def bring_to_life(self, unit: Unit, launch: Launch, generation: int) -> Incarnation:
        return await self.nursery.bring_to_life(unit, launch, generation)

    def restart_policy(self) -> RestartPolicy:
        return RestartPolicy(**dataclasses.asdict(self.plan.restart))

    def process_died(self, unit: Unit, incarnation: Incarnation) -> None:
        """After every death: its tasks are accounted for, its record goes; what it held on Redis comes back at once."""
        accounting = self.background(self._settle(unit, incarnation))
        self._accounts.add(accounting)
        accounting.add_done_callback(self._accounts.discard)
        self.remove_if_gone(unit)

    def remove_if_gone(self, unit: Unit) -> None:
        """A name that nobody wants any more goes when nothing of it runs or is being born."""
        if unit.leftover and not unit.busy and self.units.get(unit.name) is unit:
            self.remove_unit(unit.name)

    async def _settle(self, unit: Unit, incarnation: Incarnation) -> None:
        await unit.born(BIRTH_S)  # its replacement comes first
        self.nursery.reap_strangers()  # one of ours may have hidden them
        if unit.kind == "image":
            await asyncio.to_thread(kill_stopped_children, SPARE)
        agent = self.units.get(AGENT)
        if unit.kind == "worker" and agent is not None and agent.current is not None and agent.current.connection:
            self.background(self._restore(agent.current.connection))
        try:
            if self.guard is not None:
                await self.guard.account(unit, incarnation)
            # Last: a daemon that dies before this leaves what it had not done to the next one, with both files.
            record = self.paths.record(unit.name, incarnation.generation)
            await asyncio.to_thread(orphans.remove_record, record, incarnation.pid)
            incarnation.forget()
        finally:
            incarnation.close_board()

    async def accounted(self) -> None:
        """Wait until nothing is left to say of the dead, while the agent is there.

        At most `ACCOUNTS_S`, and `ACCOUNTS_NOW_S` from `stop_now` on; the rest is the next daemon's.
        """
        if not self._accounts:
            return
        told = asyncio.ensure_future(asyncio.wait(self._accounts))
        hurried = asyncio.ensure_future(self.stop_now.wait())
        try:
            await asyncio.wait([told, hurried], timeout=ACCOUNTS_S, return_when=asyncio.FIRST_COMPLETED)
            if hurried.done():
                await asyncio.wait([told], timeout=ACCOUNTS_NOW_S)
        finally:
            told.cancel()
            hurried.cancel()

    async def _restore(self, connection: Connection) -> None:
        try:
            await connection.call("restore", {}, 30.0)
        except CommandError as error:
            # The agent restores by itself every few seconds: this call only makes it sooner.
            log.debug("restore: %s", error)

    # The channel.

    def on_state(self, connection: Connection, state: State) -> None:
        """A process has said what it does."""
        unit = self.units.get(state.name)
        incarnation = unit.incarnation(state.generation, state.pid) if unit is not None else None
        if unit is None or incarnation is None:
            if self._started or not self.stopping:  # after a start that failed, it is one that was let go
                self.nursery.reported_early(connection, state)
            return
        unit.reported(incarnation, connection, state)
        self.steering.reported(unit, incarnation)
        if unit.kind == "agent":
            self.broker_figures = state.data
            self.figures_at = time.monotonic()

    def _on_event(self, connection: Connection, event: Event) -> None:
        name = connection.state.name if connection.state else None
        if name is not None and self.guard is not None:
            if event.event == "child_died":
                self.guard.child_died(name, event.fields)
            elif event.event == "task_end_not_stored":
                self.guard.end_not_stored(event.fields)
        # What a task raised is for who waits for its result.
        self.events.emit(event.event, process=name, **{key: event.fields[key] for key in event.fields if key != "text"})

    def _on_close(self, connection: Connection) -> None:
        for unit in self.units.values():
            for incarnation in unit.processes():
                if incarnation.connection is connection:
                    incarnation.connection = None
        self.nursery.forget(connection)

    # The tick.

    async def _tick(self) -> None:
        """What no signal, pidfd or message tells: silence."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            if now - last > FROZEN_S:
                log.warning("the daemon was not scheduled for %.0f s", now - last)
                for unit in self.units.values():
                    for incarnation in unit.processes():
                        incarnation.heard = now
                if self.guard is not None:
                    self.guard.excuse()
            last = now
            try:
                if self.guard is not None:
                    self.guard.check_health(now)
            except Exception:
                # A fault of ours in the look at one worker must not end the watch over all of them.
                log.exception("the health of the workers could not be judged")

    # Stop.

    async def stop(self, *, complete: bool) -> None:
        """Graceful, until `stop_now` is set: the schedule first, workers next, their helpers last.

        Not `complete`, after a start that failed half-way: only what this daemon started. The rest is the next one's
        to take over.
        """
        self.state = "stopping"
        if not complete:
            self._started = False
            orphans.let_go(self)
        hurry = self.background(self._hurry())
        if self._xmlrpc is not None:
            self.groups.options.mood = -1  # supervisor's SHUTDOWN
        stages: tuple[tuple[str, ...], ...] = (("beat", "worker"), ("agent", "image"), ("broker",))
        for kinds in stages:
            units = [unit for unit in self.units.values() if unit.kind in kinds]
            # Again until nothing is left: what was being born at the first call, or taken over, is known by now.
            while alive := [unit for unit in units if unit.busy or unit.state not in engine.ENDED_STATES]:
                for unit in alive:
                    unit.stop(now=self.stop_now.is_set())
                await asyncio.gather(*(unit.stopped() for unit in alive))
                units = [unit for unit in self.units.values() if unit.kind in kinds]
            if "worker" in kinds:
                await self.accounted()
        hurry.cancel()
        if complete:  # after a start that failed half-way, they are still the next one's, and of those that run on
            await self.keeper.forget()
            for path in (self.paths.accepted, self.paths.settings):
                await asyncio.to_thread(files.remove, path)

    async def _hurry(self) -> None:
        await self.stop_now.wait()
        for unit in self.units.values():
            unit.hurry()

    async def close(self) -> None:
        if self._xmlrpc is not None:
            await self._xmlrpc.close()
        if self._tick_task is not None:
            self._tick_task.cancel()
        # Before the channel: what waits for the agent must not take its hanging up for an answer.
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=CLOSE_S)  # what an action still has to say is recorded
        await self.channel.close()
        await asyncio.to_thread(self.audit.close)

    # In words.

    def ready(self) -> bool:
        """Every pool consumes, is stopped or FATAL, or waits for its broker."""
        return all(unit.settled for unit in self.units.values() if unit.kind == "worker")

    def status_text(self) -> str:
        """One line for the service manager and for `status`."""
        workers = [unit for unit in self.units.values() if unit.kind == "worker"]
        parts = [f"{sum(unit.ready for unit in workers)} of {len(workers)} workers consume"]
        waiting = [unit.name for unit in workers if unit.current and unit.current.waits_for_broker]
        states = (("BACKOFF", engine.BACKOFF), ("FATAL", engine.FATAL), ("stopped", engine.STOPPED))
        found = [(label, [unit.name for unit in workers if unit.state == state]) for label, state in states]
        for label, names in (("waiting for the broker", waiting), *found):
            if names:
                parts.append(f"{label}: {', '.join(names)}")
        if self.state == "stopping":
            running = sum(1 for unit in workers if unit.current is not None or unit.leaving)
            return f"stopping: {running} workers finish their tasks"
        server = self.units.get(BROKER)
        if server is not None and server.state == engine.FATAL:
            parts.append(f"the embedded broker is FATAL: limetaskctl start {BROKER} tries again")
        image = self.units.get(IMAGE)
        if image is not None and image.state == engine.FATAL:
            parts.append("no image: workers start by exec")
        if self.last_reload_error:
            parts.append("the last reload was refused")
        if self.last_upgrade_error:
            parts.append("the last upgrade was refused")
        return "; ".join(parts)
