"""The daemon itself: what should run (plan and scales), what runs (units), and what brings one to the other."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import signal
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from limetaskd.core.accepted import Accepted
from limetaskd.core.board import Board, process_start_ticks
from limetaskd.core.channel import Event, State
from limetaskd.daemon import embedded, engine, files, gather, orphans
from limetaskd.daemon.audit import Audit
from limetaskd.daemon.autoscaling import Autoscaling
from limetaskd.daemon.channel import ChannelServer, Connection
from limetaskd.daemon.events import EventBus
from limetaskd.daemon.incarnation import ADOPTED, EXEC, FORK, Incarnation, Launch, launch_environment
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
from limetaskd.daemon.pools import Scales
from limetaskd.daemon.spawner import ProcessRef, become_subreaper, find, forked, reap_strangers, spawn
from limetaskd.daemon.steering import Steering
from limetaskd.daemon.succession import Memory, boot_id
from limetaskd.daemon.unit import Unit
from limetaskd.errors import CommandError, LimetaskError
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
MEMORY_PAUSE_S = 0.2
# Imports may take long; workers wait for them rather than to import the same beside the image.
IMAGE_PATIENCE_S = 60.0
FORK_TIMEOUT_S = 10.0
STRANGER_STOP_S = 600.0
CLOSE_S = 5.0
ACCOUNTS_S = 15.0  # at a stop, for what is left to say of tasks that were killed


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
        self.generation = 1  # of the accepted configuration
        self.state = "starting"
        self.last_reload_error: str | None = None
        self.started_at = time.monotonic()
        self.broker_figures: dict[str, Any] = {}
        self.change_lock = asyncio.Lock()  # reload and scale change the plan one at a time
        self.reload_requested = asyncio.Event()
        self.stop_requested = asyncio.Event()
        self.stop_now = asyncio.Event()
        self.upgrade_requested = asyncio.Event()
        self.replacing = False  # this process becomes newer code: its workers run on
        self.strangers_to_keep: set[int] = set()  # children that are no units, whose exit somebody waits for
        self._memory_changed = asyncio.Event()
        self.channel = ChannelServer(self.paths.channel, self._on_state, self._on_event, self._on_close)
        self.guard: Guard | None = None  # sets itself
        self._tick_task: asyncio.Task[Any] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._accounts: set[asyncio.Task[Any]] = set()
        self._xmlrpc: engine.XmlRpcServer | None = None
        self._forking = 0  # forks whose pid is not known yet: it must not be reaped as a stranger's
        self._early: dict[tuple[str, int, int], tuple[Connection, State]] = {}  # reports that came before the birth
        self._knows_all = False  # what a daemon before us left behind has been taken over
        self._started = False  # everything has been set going

    @property
    def stopping(self) -> bool:
        """Nothing new is started any more."""
        return self.state == "stopping"

    def require_running(self) -> None:
        """Raises CommandError while the daemon starts, stops or is replaced: nothing may be changed then."""
        if not self._started or self.stopping or self.replacing:
            raise CommandError(f"limetaskd is {self.state if self._started else 'starting'}: try again in a moment")

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
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap_strangers)
        await asyncio.to_thread(files.make_folders, self.paths.boards, self.paths.processes)
        await self.load_scales()
        memory = await self._load_memory()
        await self.steering.load()
        await self.write_settings()
        await self.write_accepted()
        self.channel.start()
        found = await asyncio.to_thread(orphans.find_all, self.paths)
        broker = await self._start_broker() if self.plan.embedded else None
        if self.plan.preload:
            self._add(IMAGE, "image", lambda generation: image_launch(self.plan, generation)).start()
        self._add(AGENT, "agent", lambda generation: agent_launch(self.plan, generation))
        for pool in self.pools():
            for index in range(pool.workers):
                self.add_worker(pool.name, index)
        if self.plan.beat_pool is not None:
            self.add_beat(self.plan.beat_pool)
        stopped = self._recall(memory)
        orphans.take_over(self, found, stopped)
        self._knows_all = True
        self._dismiss_strangers()
        if broker is not None:
            # Without it, every new worker would only wait; those taken over are known by now.
            deadline = time.monotonic() + BROKER_PATIENCE_S
            while broker.state != engine.RUNNING and time.monotonic() < deadline:
                await broker.changed(1.0)
        schedules = [unit for unit in self.units.values() if unit.kind == "beat" and unit.leaving]
        for unit in list(self.units.values()):
            if unit.leftover or unit.current is not None or unit.name in stopped or unit.kind in {"broker", "image"}:
                continue
            if unit.kind == "beat" and schedules:
                self.background(self._start_after(unit, schedules))
            else:
                unit.start()
        self._started = True
        self.events.subscribe(lambda _event: self._memory_changed.set())
        self.background(self._keep_memory())
        if self.plan.supervisor_socket:
            self._xmlrpc = engine.XmlRpcServer(
                self.groups, self.paths.supervisor, self.stop_requested.set, self.reload_requested.set
            )
            self._xmlrpc.start()
        self._tick_task = self.background(self._tick())
        self.background(self.steering.watch())
        self.background(self.autoscaling.run())

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
    async def _start_after(unit: Unit, others: list[Unit]) -> None:
        """A schedule never starts while another one, of whatever name, has not ended."""
        for other in others:
            await other.stopped()
        unit.start()

    async def load_scales(self) -> None:
        """Scales that an operator asked to keep; a damaged file is set aside."""
        try:
            text = await asyncio.to_thread(files.read, self.paths.scale)
            if text is not None:
                self.scales = Scales.from_json(text)
        except ValueError as error:
            aside = await asyncio.to_thread(files.set_aside, self.paths.scale)
            log.error("%s: %s; set aside as %s, pools start as configured", self.paths.scale, error, aside)

    async def _load_memory(self) -> Memory | None:
        """What a daemon that died or was replaced knew; a damaged file is set aside."""
        text = await asyncio.to_thread(files.read, self.paths.memory)
        if text is None:
            return None
        try:
            memory = Memory.from_json(text)
        except ValueError as error:
            aside = await asyncio.to_thread(files.set_aside, self.paths.memory)
            log.error("%s: %s; set aside as %s", self.paths.memory, error, aside, extra={"action": "set_aside"})
            return None
        self.generation = memory.generation
        self.scales.by_pool.update({name: scale for name, scale in memory.scales.items() if self.plan.pool(name)})
        return memory

    def _recall(self, memory: Memory | None) -> set[str]:
        """Give the units their history; the names that an operator had stopped."""
        if memory is None:
            return set()
        same_boot = memory.boot_id == boot_id()
        for name, known in memory.units.items():
            unit = self.units.get(name)
            if unit is not None:
                unit.recall(known, same_boot=same_boot)
        return {name for name, known in memory.units.items() if known.stopped}

    async def save_memory(self) -> None:
        units = {name: unit.remember() for name, unit in self.units.items() if not unit.leftover}
        memory = Memory(boot_id(), self.generation, units, dict(self.scales.by_pool))
        await asyncio.to_thread(files.write_atomically, self.paths.memory, memory.to_json())

    async def _keep_memory(self) -> None:
        """Save soon after each change, many changes at once."""
        while True:
            await self._memory_changed.wait()
            self._memory_changed.clear()
            try:
                if not self.stopping:
                    await self.save_memory()
            except OSError as error:
                log.error("%s cannot be written, the next daemon may know less: %s", self.paths.memory, error)
            await asyncio.sleep(MEMORY_PAUSE_S)

    async def refresh_image(self) -> None:
        """Replace the image when its modules or settings are not those of now. Its failure is in the log."""
        image = self.units.get(IMAGE)
        if image is None:
            return
        current = image.current
        if current is not None and current.connection is not None and image.ready:
            if current.launch.fingerprint == image.launch(image.generation).fingerprint:
                changed = (await current.connection.call("stale", {}, FORK_TIMEOUT_S))["changed"]
                if not changed:
                    return
                log.info("the image is replaced: %s changed", ", ".join(changed), extra={"action": "image_stale"})
            await gather.roll(self, image)
            return
        image.start()
        await image.started()

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
            unit.adopt(self.take_over(unit, unit.launch(1), 1, alive, None))
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

    def add_leftover(self, name: str, kind: str) -> Unit:
        """A name that nobody wants any more, kept until its last process has gone."""
        unit = self._add(name, kind, lambda _generation: worker_launch(self.plan, self.plan.pools[0], 0, 0))
        unit.leftover = True
        return unit

    def remove_unit(self, name: str) -> None:
        self.units.pop(name, None)
        self.groups.remove(name)

    # What units ask for.

    def restart_policy(self) -> RestartPolicy:
        return RestartPolicy(**dataclasses.asdict(self.plan.restart))

    async def bring_to_life(self, unit: Unit, launch: Launch, generation: int) -> Incarnation:
        """Start a process: forked from the image where there is one, else by exec. Raises OSError."""
        board = None
        if launch.board_path is not None:
            board = Board.create(launch.board_path, launch.board_slots)
        ref = await self._fork(unit, launch) if launch.forkable else None
        origin = EXEC if ref is None else FORK
        if ref is None:
            # The embedded broker shares the daemon's protection from the OOM killer: it holds everybody's tasks.
            protected = unit.kind == "broker"
            ref = spawn(launch.argv, launch_environment(launch.env), launch.log_path, protected=protected)
        return self._incarnation(unit, launch, generation, ref, board, origin)

    async def _fork(self, unit: Unit, launch: Launch) -> ProcessRef | None:
        """Let the image fork it; None when there is no image that can, with the reason in the log."""
        image = self.units.get(IMAGE)
        if image is None or launch.spec is None:
            return None
        deadline = time.monotonic() + IMAGE_PATIENCE_S
        while image.state in {engine.STARTING, engine.STOPPING} and time.monotonic() < deadline:
            if self.stopping or unit.state == engine.STOPPING:
                raise OSError(errno.ECANCELED, "stopped meanwhile")
            await image.changed(0.5)
        if not image.ready or image.current is None or image.current.connection is None:
            log.warning(
                "%s is started by exec: the image %s", unit.name, image.reason or f"is {image.state_name}",
                extra={"action": "exec_without_image", "worker": unit.name},
            )  # fmt: skip
            return None
        source = image.current
        self._forking += 1
        try:
            reply = await image.current.connection.call(
                "fork", {"spec": launch.spec.to_json(), "nice": launch.nice}, FORK_TIMEOUT_S
            )
            return forked(int(reply["pid"]))
        except (LimetaskError, OSError) as error:
            log.warning("%s is started by exec: the image could not fork it: %s", unit.name, error)
            # It must not fork this one later, beside the one that is started now.
            await source.kill()
            return None
        finally:
            self._forking -= 1
            self.reap_strangers()

    def reap_strangers(self) -> None:
        """SIGCHLD: as a subreaper we get what killed workers leave behind."""
        if self._forking == 0:
            known = {process.pid for unit in self.units.values() for process in unit.processes()}
            reap_strangers(known | self.strangers_to_keep)

    def _incarnation(
        self, unit: Unit, launch: Launch, generation: int, ref: ProcessRef, board: Board | None, origin: str
    ) -> Incarnation:
        incarnation = Incarnation(
            name=unit.name,
            generation=generation,
            launch=launch,
            ref=ref,
            exited=asyncio.get_running_loop().create_future(),
            origin=origin,
            board=board,
        )
        incarnation.watch(lambda dead: unit.died(dead, dead.exited.result()))
        early = self._early.pop((unit.name, generation, ref.pid), None)
        if early is not None:
            incarnation.connection, incarnation.report = early
        return incarnation

    def take_over(
        self, unit: Unit, launch: Launch, generation: int, ref: ProcessRef, board: Board | None
    ) -> Incarnation:
        """An incarnation of a process that a dead daemon left behind."""
        return self._incarnation(unit, launch, generation, ref, board, ADOPTED)

    def process_died(self, unit: Unit, incarnation: Incarnation) -> None:
        """After every death: its record goes; its tasks are accounted for; what it held on Redis comes back at once."""
        if self.guard is not None:
            accounting = self.background(self.guard.account(unit, incarnation))
            self._accounts.add(accounting)
            accounting.add_done_callback(self._accounts.discard)
        else:
            incarnation.forget()
        record = self.paths.record(unit.name, incarnation.generation)
        self.background(asyncio.to_thread(files.remove, record))
        self.reap_strangers()  # one of ours may have hidden them
        if unit.leftover and not unit.busy and self.units.get(unit.name) is unit:
            self.remove_unit(unit.name)
        agent = self.units.get(AGENT)
        if unit.kind == "worker" and agent is not None and agent.current is not None and agent.current.connection:
            self.background(self._restore(agent.current.connection))

    async def _restore(self, connection: Connection) -> None:
        try:
            await connection.call("restore", {}, 30.0)
        except CommandError as error:
            # The agent restores by itself every few seconds: this call only makes it sooner.
            log.debug("restore: %s", error)

    # The channel.

    def _on_state(self, connection: Connection, state: State) -> None:
        unit = self.units.get(state.name)
        incarnation = unit.incarnation(state.generation, state.pid) if unit is not None else None
        if unit is None or incarnation is None:
            # Faster than the answer of the image that forked it; or nobody's.
            self._early[(state.name, state.generation, state.pid)] = (connection, state)
            self._dismiss_strangers()
            return
        unit.reported(incarnation, connection, state)
        self.steering.reported(unit, incarnation)
        if unit.kind == "agent":
            self.broker_figures = state.data

    def _dismiss_strangers(self) -> None:
        """End processes that speak to us and that nobody knows: their record was damaged, or their birth not heard of.

        A worker finishes its tasks; a schedule is killed, since there must never be two.
        """
        if not self._knows_all or self._forking:
            return
        for key, (connection, state) in list(self._early.items()):
            del self._early[key]
            ticks = process_start_ticks(connection.peer_pid)
            ref = find(connection.peer_pid, ticks) if ticks is not None else None
            if ref is None:
                continue
            log.error(
                "%s (pid %d) runs and is not known to this daemon: it has to go", state.name, ref.pid,
                extra={"action": "stranger", "worker": state.name},
            )  # fmt: skip
            kind = "beat" if state.name.endswith(":beat") else "worker"
            unit = self.units.get(state.name) or self.add_leftover(state.name, kind)
            launch = Launch(argv=(), env={}, log_path=self.paths.log(state.name), stop_timeout_s=STRANGER_STOP_S)
            incarnation = self.take_over(unit, launch, state.generation, ref, None)
            incarnation.connection, incarnation.report = connection, state
            unit.leaving.append(incarnation)
            incarnation.end(now=unit.kind != "worker")

    def _on_event(self, connection: Connection, event: Event) -> None:
        name = connection.state.name if connection.state else None
        if event.event == "child_died" and name is not None and self.guard is not None:
            self.guard.child_died(name, event.fields)
        self.events.emit(event.event, process=name, **event.fields)

    def _on_close(self, connection: Connection) -> None:
        for unit in self.units.values():
            for incarnation in unit.processes():
                if incarnation.connection is connection:
                    incarnation.connection = None
        for key, (other, _) in list(self._early.items()):
            if other is connection:
                del self._early[key]

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
                    if unit.current is not None:
                        unit.current.heard = now
                if self.guard is not None:
                    self.guard.excuse()
            last = now
            if self.guard is not None:
                self.guard.check_health(now)

    # Stop.

    async def stop(self) -> None:
        """Graceful, until `stop_now` is set: the schedule first, workers next, their helpers last."""
        known_all = self._knows_all
        self.state = "stopping"
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
            if self._accounts:  # while the agent is there
                await asyncio.wait(self._accounts, timeout=ACCOUNTS_S)
        hurry.cancel()
        await asyncio.to_thread(files.remove, self.paths.accepted)
        await asyncio.to_thread(files.remove, self.paths.settings)
        if known_all:  # after a start that failed half-way, it is still the next one's to read
            await asyncio.to_thread(files.remove, self.paths.memory)

    async def _hurry(self) -> None:
        await self.stop_now.wait()
        for unit in self.units.values():
            unit.hurry()

    async def close(self) -> None:
        if self._xmlrpc is not None:
            await self._xmlrpc.close()
        if self._tick_task is not None:
            self._tick_task.cancel()
        await self.channel.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=CLOSE_S)  # what an action still has to say is recorded
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
        fatal = [unit.name for unit in workers if unit.state == engine.FATAL]
        stopped = [unit.name for unit in workers if unit.state == engine.STOPPED]
        for label, names in (("waiting for the broker", waiting), ("FATAL", fatal), ("stopped", stopped)):
            if names:
                parts.append(f"{label}: {', '.join(names)}")
        if self.state == "stopping":
            running = sum(1 for unit in workers if unit.current is not None or unit.leaving)
            return f"stopping: {running} workers finish their tasks"
        if self.last_reload_error:
            parts.append("the last reload was refused")
        return "; ".join(parts)
