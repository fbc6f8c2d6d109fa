"""A birth that the image cannot be asked for, and a process that was faster than the daemon."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from limetaskd.core.channel import Phase, State
from limetaskd.core.spec import ProcessSpec
from limetaskd.daemon import engine
from limetaskd.daemon.channel import Connection
from limetaskd.daemon.incarnation import EXEC, Incarnation, Launch
from limetaskd.daemon.launch import IMAGE
from limetaskd.daemon.nursery import Nursery
from limetaskd.daemon.spawner import spawn


def test_what_is_too_large_to_be_told_is_started_by_exec_and_the_image_lives_on(tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    settings.touch()
    log = str(tmp_path / "log")
    spec = ProcessSpec("worker", "asap:0", "asap", 1, str(settings), "", log, queues=("q" * 200_000,))
    launch = Launch(argv=("true",), env={}, log_path=log, stop_timeout_s=1.0, spec=spec, forkable=True)

    async def run() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        killed: list[str] = []

        async def kill() -> None:
            killed.append(IMAGE)

        current = SimpleNamespace(connection=Connection(ours), kill=kill)
        image = SimpleNamespace(state=engine.RUNNING, ready=True, current=current, processes=list)
        born: list[Incarnation] = []
        ended = asyncio.Event()
        unit = SimpleNamespace(
            name="asap:0", kind="worker", state=engine.STARTING, rolling=None, processes=lambda: born,
            died=lambda *_: ended.set(),
        )  # fmt: skip
        daemon: Any = SimpleNamespace(
            units={IMAGE: image, "asap:0": unit}, stopping=False, paths=SimpleNamespace(settings=str(settings))
        )
        made: Any = unit
        with theirs:
            born.append(await Nursery(daemon).bring_to_life(made, launch, 1))
            async with asyncio.timeout(30):
                await ended.wait()
        await current.connection.close()
        assert born[0].origin == EXEC
        assert born[0].exited.result().status == 0
        assert killed == []

    asyncio.run(run())


def test_what_a_process_said_before_it_was_taken_over_is_heard_once_its_unit_knows_it(tmp_path: Path) -> None:
    """Its next word may be seconds away."""
    launch = Launch(argv=(), env={}, log_path=str(tmp_path / "log"), stop_timeout_s=1.0)

    async def run() -> None:
        heard = asyncio.Queue[tuple[Any, ...]]()
        daemon: Any = SimpleNamespace(on_state=lambda *what: heard.put_nowait((*what, unit.current)))
        unit: Any = SimpleNamespace(name="asap:0", current=None, died=lambda *_: None)
        child = spawn(["sleep", "60"], {}, str(tmp_path / "log"))
        state = State("asap:0", 3, child.pid, Phase.CONSUMING)
        connection: Any = object()
        nursery = Nursery(daemon)
        nursery.reported_early(connection, state)
        unit.current = taken = nursery.take_over(unit, launch, 3, child, None)
        async with asyncio.timeout(10):
            assert await heard.get() == (connection, state, taken)
        await taken.kill()

    asyncio.run(run())
