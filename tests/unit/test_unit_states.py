"""A unit and its processes, at moments that no real process can be made to hit: the order of events is given."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from limetaskd.core.channel import Phase, State
from limetaskd.daemon import engine, rolling
from limetaskd.daemon.incarnation import Incarnation, Launch
from limetaskd.daemon.spawner import Exit, ProcessRef
from limetaskd.daemon.succession import UnitMemory
from limetaskd.daemon.unit import Unit
from limetaskd.errors import CommandError, NoAnswerError
from limetaskd.policy.restart import RestartPolicy


class Process(Incarnation):
    """An incarnation that nobody runs. `told_to_end`: how it was told to end, now (True) or gracefully."""

    told_to_end: bool | None = None

    def end(self, *, now: bool = False) -> asyncio.Task[Exit]:
        self.told_to_end = now
        return asyncio.get_running_loop().create_task(self._ended())

    async def _ended(self) -> Exit:
        return await asyncio.shield(self.exited)


def process(pid: int) -> Process:
    ref = ProcessRef(pid, 0, -1, child=True)
    launch = Launch(argv=(), env={}, log_path="", stop_timeout_s=1.0)
    return Process("asap:0", pid, launch, ref, asyncio.get_running_loop().create_future())


class Host:
    """A daemon without processes: `births` are handed out, the first one first."""

    stopping = replacing = False

    def __init__(self) -> None:
        self.groups = engine.Groups()
        self.events = SimpleNamespace(emit=lambda *_args, **_fields: None)
        self.births: list[Process] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.gone: list[str] = []  # units of which nothing runs any more, maybe
        self.called_off = asyncio.Event()

    def restart_policy(self) -> RestartPolicy:
        return RestartPolicy()

    def background(self, work: Any, *, report: bool = True) -> asyncio.Task[Any]:
        del report
        self.tasks.append(asyncio.get_running_loop().create_task(work))
        return self.tasks[-1]

    async def bring_to_life(self, _unit: Unit, _launch: Any, _generation: int) -> Process:
        if not self.births:
            await self.called_off.wait()
            raise OSError(errno.ECANCELED, "stopped meanwhile")
        return self.births.pop(0)

    def process_died(self, _unit: Unit, _incarnation: Process) -> None:
        """Nothing to account for."""

    def remove_if_gone(self, unit: Unit) -> None:
        self.gone.append(unit.name)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def unit(host: Host, tmp_path: Path) -> Unit:
    made: Any = host
    return Unit("asap:0", "worker", made, str(tmp_path / "log"), lambda _generation: SimpleNamespace())  # type: ignore[arg-type,return-value]


def consume(process: Process, unit: Unit) -> None:
    report = State(unit.name, process.generation, process.pid, Phase.CONSUMING)
    unit.reported(process, None, report)  # type: ignore[arg-type]


def die(process: Process, unit: Unit) -> None:
    process.exited.set_result(Exit(signal=signal.SIGKILL))
    unit.died(process, process.exited.result())


async def at_work(unit: Unit, host: Host) -> tuple[Process, Process]:
    """The current process, which consumes, and the one that would be born next."""
    current, following = process(1), process(2)
    host.births = [current, following]
    unit.start()
    await unit.changed(5)
    consume(current, unit)
    return current, following


async def running(unit: Unit, host: Host) -> tuple[Process, Process, asyncio.Task[None]]:
    """The current process, its successor, and the restart that waits for that one."""
    old, successor = await at_work(unit, host)
    restart = asyncio.ensure_future(rolling.roll(host, unit))  # type: ignore[arg-type]
    for _ in range(10):  # turns of the loop: everything in it is ready at once
        await asyncio.sleep(0)
    assert unit.successor is successor
    return old, successor, restart


def test_the_successor_takes_the_name_when_it_consumes(host: Host, unit: Unit) -> None:
    async def run() -> None:
        old, successor, restart = await running(unit, host)
        assert unit.current is old
        consume(successor, unit)
        async with asyncio.timeout(5):
            await restart
        assert unit.current is successor
        assert unit.leaving == [old]
        assert (old.told_to_end, successor.told_to_end) == (False, None)

    asyncio.run(run())


def test_a_successor_that_inherits_and_consumes_in_one_moment_stays(host: Host, unit: Unit) -> None:
    async def run() -> None:
        old, successor, restart = await running(unit, host)
        die(old, unit)
        consume(successor, unit)
        async with asyncio.timeout(5):
            await restart
        assert unit.current is successor
        assert unit.state == engine.RUNNING
        assert unit.leaving == []
        assert successor.told_to_end is None

    asyncio.run(run())


def test_a_successor_that_dies_leaves_the_old_process_at_work(host: Host, unit: Unit) -> None:
    async def run() -> None:
        old, successor, restart = await running(unit, host)
        die(successor, unit)
        with pytest.raises(CommandError, match="killed by SIGKILL"):
            async with asyncio.timeout(5):
                await restart
        assert unit.current is old
        assert old.told_to_end is None

    asyncio.run(run())


def test_a_stop_ends_the_restart_and_its_successor(host: Host, unit: Unit) -> None:
    async def run() -> None:
        old, successor, restart = await running(unit, host)
        unit.stop()
        with pytest.raises(CommandError, match="stopped meanwhile"):
            async with asyncio.timeout(5):
                await restart
        assert unit.state == engine.STOPPING
        assert unit.leaving == [successor]
        assert (old.told_to_end, successor.told_to_end) == (False, False)

    asyncio.run(run())


def test_a_process_that_never_speaks_is_given_two_minutes() -> None:
    async def run() -> None:
        silent = process(os.getpid())
        for born_before_s, hangs in ((119.0, False), (121.0, True)):
            silent.heard = time.monotonic() - born_before_s
            assert silent.hung() is hangs
        silent.launch = dataclasses.replace(silent.launch, silence_matters=False)
        assert silent.hung() is False

    asyncio.run(run())


def test_the_successor_takes_over_from_a_process_that_is_told_to_stop_by_hand(host: Host, unit: Unit) -> None:
    async def run() -> None:
        old, successor, restart = await running(unit, host)
        unit.reported(old, None, State(unit.name, old.generation, old.pid, Phase.DRAINING))  # type: ignore[arg-type]
        assert unit.current is successor
        assert unit.leaving == [old]
        consume(successor, unit)
        async with asyncio.timeout(5):
            await restart
        assert unit.processes() == [successor, old]
        assert unit.state == engine.RUNNING

    asyncio.run(run())


def test_a_birth_that_is_called_off_is_the_end_of_a_name_that_nobody_wants(host: Host, unit: Unit) -> None:
    async def run() -> None:
        unit.start()
        await asyncio.sleep(0)
        unit.leftover = True
        unit.stop()
        assert host.gone == []
        host.called_off.set()
        async with asyncio.timeout(5):
            await unit.stopped()
        assert unit.state == engine.STOPPED
        assert host.gone == [unit.name]

    asyncio.run(run())


def test_nothing_is_started_while_newer_code_takes_over(host: Host, unit: Unit) -> None:
    """What dies then is started by that code, which must not think that somebody has stopped it."""

    async def run() -> None:
        first, second = await at_work(unit, host)
        host.replacing = True
        die(first, unit)
        assert (host.births, unit.restarts, unit.remember().stopped) == ([second], 0, False)

    asyncio.run(run())


def test_what_waits_for_its_next_try_is_started_by_newer_code(host: Host, unit: Unit) -> None:
    async def run() -> None:
        unit.stop()
        host.replacing = True
        unit.start()
        assert unit.remember().stopped is False
        assert not unit.busy

    asyncio.run(run())


def test_an_exchange_that_ends_while_newer_code_takes_over_is_no_stop(host: Host, unit: Unit) -> None:
    async def run() -> None:
        first, second = await at_work(unit, host)
        unit.exchange()
        host.replacing = True
        die(first, unit)
        assert (host.births, unit.remember().stopped) == ([second], False)

    asyncio.run(run())


def test_an_image_that_dies_over_a_fork_is_no_death_of_the_unit(host: Host, unit: Unit) -> None:
    asked: list[tuple[int, bool]] = []

    async def bring_to_life(_unit: Unit, launch: Launch, generation: int) -> Process:
        asked.append((generation, launch.forkable))
        if launch.forkable:
            raise NoAnswerError("fork: the process went away before it answered")
        return process(generation)

    async def run() -> None:
        unit.launch = lambda _generation: Launch(argv=(), env={}, log_path="", stop_timeout_s=1.0, forkable=True)
        host.bring_to_life = bring_to_life  # type: ignore[assignment,method-assign]
        unit.start()
        await unit.changed(5)
        assert asked == [(1, True), (2, False)]
        assert unit.current is not None
        assert unit.restarts == 0

    asyncio.run(run())


@pytest.mark.parametrize(
    ("ages", "state", "known"),
    [
        ((), engine.STARTING, 0),
        ((300.0,), engine.STARTING, 0),
        ((9.0, 5.0), engine.STARTING, 2),  # its pause of 1 s is over
        ((20.0, 2.0, 0.5), engine.BACKOFF, 3),  # one of 2 s, less some jitter, is not
        ((9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0), engine.STARTING, 7),  # FATAL: one try, the code may be newer
    ],
)
def test_what_kept_dying_under_a_daemon_that_died_waits_on(
    host: Host, unit: Unit, ages: tuple[float, ...], state: int, known: int
) -> None:
    async def run() -> None:
        now = time.monotonic()
        unit.recall(UnitMemory(0, tuple(now - age for age in ages), stopped=False), same_boot=True)
        unit.come_up()
        assert unit.state == state
        assert len(unit.remember().deaths) == known
        assert (unit.retry_at is None) == (state == engine.STARTING)
        host.called_off.set()
        unit.stop()
        await asyncio.gather(*host.tasks)

    asyncio.run(run())


@pytest.mark.parametrize("age_s", [9.0, 300.0])
def test_what_was_given_up_gets_one_try_of_the_next_daemon(host: Host, unit: Unit, age_s: float) -> None:
    """However long ago its last death was."""

    async def run() -> None:
        host.births = [process(1)]
        memory = UnitMemory(7, (time.monotonic() - age_s,), stopped=False, given_up=True)
        unit.recall(memory, same_boot=True)
        unit.come_up()
        await unit.changed(5)
        assert unit.current is not None
        assert unit.remember().given_up
        die(unit.current, unit)
        assert unit.state == engine.FATAL

    asyncio.run(run())


@pytest.mark.parametrize("how", ["consumes", "answers", "succeeds"])
def test_what_is_at_work_again_is_not_given_up_any_more(host: Host, unit: Unit, how: str) -> None:
    async def run() -> None:
        host.births = [process(1), process(2), process(3)]
        unit.recall(UnitMemory(7, (), stopped=False, given_up=True), same_boot=True)
        unit.come_up()
        await unit.changed(5)
        assert unit.current is not None
        if how == "consumes":
            consume(unit.current, unit)  # type: ignore[arg-type]
        elif how == "answers":
            unit.became_ready()
        else:
            await unit.bear_successor()
            unit.succeed()
        assert unit.state == engine.RUNNING
        assert not unit.remember().given_up
        die(unit.current, unit)  # type: ignore[arg-type]
        assert unit.state == engine.STARTING
        host.called_off.set()
        unit.stop()
        await asyncio.gather(*host.tasks)

    asyncio.run(run())


@pytest.mark.parametrize("change", ["stopped", "started", "retired"])
def test_what_changed_while_it_waited_for_others_is_respected(host: Host, unit: Unit, change: str) -> None:
    """A schedule that waits for the end of another one comes up late."""

    async def run() -> None:
        unit.recall(UnitMemory(0, (time.monotonic() - 9,), stopped=False), same_boot=True)
        if change == "started":
            unit.start()
        else:
            unit.leftover = change == "retired"
            unit.stop()
        births, state = len(host.tasks), unit.state
        unit.come_up()
        assert (len(host.tasks), unit.state) == (births, state)
        assert unit.remember().stopped is (change != "started")
        host.called_off.set()
        unit.stop()
        await asyncio.gather(*host.tasks)

    asyncio.run(run())


def test_one_that_waits_for_others_at_the_start_was_stopped_by_nobody(unit: Unit) -> None:
    """A schedule does, while another one ends: a daemon that dies in that moment must not leave it stopped."""
    assert unit.remember().stopped is False
    unit.recall(UnitMemory(0, (), stopped=True), same_boot=True)
    assert unit.remember().stopped is True
    unit.recall(UnitMemory(0, (), stopped=False), same_boot=True)
    unit.stop()
    assert unit.remember().stopped is True


def test_an_agent_that_kept_dying_does_not_come_up_beside_the_one_that_leaves(host: Host, unit: Unit) -> None:
    async def run() -> None:
        unit.kind = "agent"
        old, new = process(1), process(2)
        host.births = [new]
        unit.recall(UnitMemory(1, (time.monotonic() - 9,), stopped=False), same_boot=True)
        unit.leaving.append(old)
        unit.come_up()
        assert host.births == [new]
        die(old, unit)
        await unit.changed(5)
        assert unit.current is new

    asyncio.run(run())
