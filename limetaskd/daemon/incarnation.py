"""One process that carries a supervised name for a while: from its start (or its discovery) to its death."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limetaskd.core.board import Board
from limetaskd.core.channel import REPORT_INTERVAL_S, Phase, State
from limetaskd.core.process import process_state
from limetaskd.core.spec import ProcessSpec
from limetaskd.daemon.channel import Connection
from limetaskd.daemon.spawner import Exit, ProcessRef
from limetaskd.policy.health import FIRST_WORD_S, SILENT_BUSY_S, SILENT_S

log = logging.getLogger("limetaskd.process")

# A process that was taken over reports at the latest after this, if it can.
FIRST_REPORT_S = 2 * REPORT_INTERVAL_S
# What a process gets to act on SIGQUIT before it is killed.
QUIT_GRACE_S = 5.0
# A worker holds the lock of a sentence for microseconds, unless it is stopped at that moment.
BOARD_PATIENCE_S = 0.05


@dataclass(frozen=True)
class Launch:
    """How to start one process, resolved: plain data."""

    argv: tuple[str, ...]
    env: dict[str, str]
    log_path: str
    stop_timeout_s: float
    board_path: str | None = None
    board_slots: int = 0
    reports: bool = True  # it speaks on the channel; else `ready` of the unit is asked
    fingerprint: str = ""  # of all that only a new process can take
    concurrency: int = 1
    spec: ProcessSpec | None = None
    nice: int | None = None
    forkable: bool = False  # an image may fork it: it needs nothing that must be there before the imports
    silence_matters: bool = True  # it reports every few seconds, so its silence means that it hangs
    queues: tuple[str, ...] | None = None  # actual names that a worker begins with; None: not known


EXEC, FORK, ADOPTED = "exec", "fork", "adopted"


@dataclass(eq=False)  # each is only itself
class Incarnation:
    """A process with its identity, its last report and its scoreboard."""

    name: str
    generation: int
    launch: Launch
    ref: ProcessRef
    exited: asyncio.Future[Exit]
    origin: str = EXEC  # how it came to be ours
    board: Board | None = None
    connection: Connection | None = None
    report: State | None = None
    started: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    reported: asyncio.Event = field(default_factory=asyncio.Event)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    ending: asyncio.Task[Exit] | None = None
    telling: set[asyncio.Task[None]] = field(default_factory=set)  # ends of its tasks that are being stored
    hung_for: str | None = None  # why we kill it as hung
    ended_for: str | None = None  # why we kill it, when that is no fault of the worker (a limit, an operator)
    # What it was told in place, see steering.py and slots.py.
    steering: asyncio.Lock = field(default_factory=asyncio.Lock)
    queues: tuple[str, ...] | None = None
    told: dict[str, Any] | None = None
    slots: int | None = None

    def __post_init__(self) -> None:
        self.queues = self.launch.queues

    @property
    def pid(self) -> int:
        return self.ref.pid

    @property
    def alive(self) -> bool:
        return not self.exited.done()

    @property
    def consumes(self) -> bool:
        return self.alive and self.report is not None and self.report.phase == Phase.CONSUMING

    @property
    def waits_for_broker(self) -> bool:
        """It has tried in vain: without a reason it is only about to connect."""
        report = self.report
        return self.alive and report is not None and report.phase == Phase.CONNECTING and report.reason is not None

    @property
    def last_word(self) -> str | None:
        """Why it could not go on, if it has said so."""
        report = self.report
        return report.reason if report is not None and report.phase == Phase.FAILED else None

    def silent_s(self) -> float:
        return time.monotonic() - self.heard

    @property
    def drains(self) -> bool:
        return self.report is not None and self.report.phase == Phase.DRAINING

    def hung(self) -> bool:
        """It has fallen silent, to us or to the daemon before us, or has never spoken; no task may keep it so."""
        if not self.launch.reports or not self.launch.silence_matters:
            return False
        spoke = self.report is not None or self.origin == ADOPTED
        if self.silent_s() <= (SILENT_S if spoke else FIRST_WORD_S):
            return False
        return process_state(self.pid) == "T" or not self.at_work()

    def at_work(self) -> bool:
        """Whether tasks run in the main process itself (threads, solo), within their limits: these may hold the GIL."""
        slots = self.board.read() if self.board is not None else []
        return any(
            slot.pid == self.pid
            and slot.running is not None
            and (slot.running.time_limit_s is not None or self.silent_s() < SILENT_BUSY_S)
            for slot in slots
        )

    def watch(self, on_exit: Callable[[Incarnation], None]) -> None:
        """Call `on_exit` once, at the death of the process."""
        loop = asyncio.get_running_loop()

        def dead() -> None:
            loop.remove_reader(self.ref.pidfd)
            result = self.ref.reap()
            self.ref.close()
            if not self.exited.done():
                self.exited.set_result(result)
            on_exit(self)

        loop.add_reader(self.ref.pidfd, dead)

    def end(self, *, now: bool = False) -> asyncio.Task[Exit]:
        """Begin to end this process: gracefully, or at once. A second call only hurries."""
        if now:
            self.hurry.set()
        if self.ending is None:
            self.ending = asyncio.get_running_loop().create_task(self._end())
        return self.ending

    async def _end(self) -> Exit:
        """SIGTERM, the stop timeout, SIGQUIT, a short grace, SIGKILL of the whole tree."""
        if not self.hurry.is_set():
            if self.origin == ADOPTED and self.report is None and self.launch.reports:
                await self._first_report()
            # To a worker that drains already, a second SIGTERM would mean "at once".
            if not self.drains:
                self.ref.signal(signal.SIGTERM)
            await self._wait_gracefully(time.monotonic() + self.launch.stop_timeout_s)
        if self.alive and not self.hung():
            self.ref.signal(signal.SIGQUIT)
            await asyncio.wait([self.exited], timeout=QUIT_GRACE_S)
        if self.alive:
            await self.kill()
        return await self.exited

    async def _first_report(self) -> None:
        waits: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(event.wait()) for event in (self.reported, self.hurry)
        ]
        try:
            await asyncio.wait([self.exited, *waits], timeout=FIRST_REPORT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _wait_gracefully(self, deadline: float) -> None:
        """Until it is dead, hurried, hung or out of time."""
        hurried = asyncio.ensure_future(self.hurry.wait())
        try:
            while self.alive and not self.hurry.is_set() and not self.hung():
                left = deadline - time.monotonic()
                if left <= 0:
                    rest = (
                        "still runs tasks after its shutdown_timeout: they are requeued" if self.board is not None
                        else "has not ended in time"
                    )
                    log.warning("%s (pid %d) %s", self.name, self.pid, rest, extra={"action": "drain_timeout"})
                    return
                waited: list[asyncio.Future[Any]] = [self.exited, hurried]
                await asyncio.wait(waited, timeout=min(left, 5.0), return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurried.cancel()

    async def kill(self) -> None:
        """SIGKILL, the children included, without blocking the loop."""
        if self.alive:
            await asyncio.to_thread(self.ref.kill_tree)
            await asyncio.wait([self.exited], timeout=QUIT_GRACE_S)
            if self.alive:
                log.error(
                    "%s (pid %d, state %s) was killed and is not dead: the kernel waits for a device or a file system",
                    self.name, self.pid, process_state(self.pid), extra={"action": "does_not_die"},
                )  # fmt: skip

    def close_board(self) -> None:
        if self.board is not None:
            self.board.close()
            self.board = None

    def forget(self) -> None:
        """Free what belonged to it; its scoreboard file goes with it."""
        self.close_board()
        if self.launch.board_path is not None:
            with contextlib.suppress(FileNotFoundError):
                Path(self.launch.board_path).unlink()


def launch_environment(extra: dict[str, str]) -> dict[str, str]:
    """The daemon's environment for a child: without what systemd meant for the daemon alone."""
    private = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}
    return {key: value for key, value in os.environ.items() if key not in private} | extra
