"""The library `supervisor` as our engine: states, names, XML-RPC and tail. Nobody else imports it.

`supervisor.process.Subprocess` gives the state machine and its vocabulary; how a process comes into being, when it is
RUNNING, how it is stopped and when it comes back are ours, so everything that would fork, reap or tick is overridden.
`serve_xmlrpc` runs supervisor's own RPC interface and HTTP server inside our loop, so that the stock `supervisorctl`
drives the same processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Protocol

from supervisor.options import ServerOptions
from supervisor.process import Subprocess
from supervisor.states import (
    RUNNING_STATES,
    STOPPED_STATES,
    ProcessStates,
    SupervisorStates,
    getProcessStateDescription,
)

log = logging.getLogger("limetaskd.engine")

STOPPED = ProcessStates.STOPPED
STARTING = ProcessStates.STARTING
RUNNING = ProcessStates.RUNNING
BACKOFF = ProcessStates.BACKOFF
STOPPING = ProcessStates.STOPPING
EXITED = ProcessStates.EXITED
FATAL = ProcessStates.FATAL
UNKNOWN = ProcessStates.UNKNOWN

LIVE_STATES = frozenset(RUNNING_STATES)  # RUNNING, STARTING, BACKOFF: meant to be up
ENDED_STATES = frozenset(STOPPED_STATES)  # STOPPED, EXITED, FATAL, UNKNOWN


def state_name(state: int) -> str:
    """`RUNNING` for 20, and so on."""
    return str(getProcessStateDescription(state))


class Actions(Protocol):
    """What a supervised name does when supervisor's RPC interface asks for it."""

    @property
    def pid(self) -> int: ...
    def request_start(self) -> None: ...
    def request_stop(self) -> None: ...
    def request_signal(self, number: int) -> str | None: ...


class _Options(ServerOptions):  # type: ignore[misc]
    """supervisor's options object, never `realize()`d: only what its RPC interface reads of it."""

    def __init__(self) -> None:
        super().__init__()
        self.logger = _Logger()
        self.mood = SupervisorStates.RUNNING
        self.identifier = "limetaskd"
        self.pidhistory: dict[int, Any] = {}
        self.process_group_configs: list[Any] = []
        self.logfile = None
        self.server_configs: list[dict[str, Any]] = []

    def get_pid(self) -> int:
        return os.getpid()


class _Logger:
    """supervisor's logger interface over the standard library's."""

    def _write(self, level: int, message: str) -> None:
        log.log(level, "%s", message.rstrip("\n"))

    def critical(self, message: str, **_: Any) -> None:
        self._write(logging.DEBUG if "without any HTTP" in message else logging.CRITICAL, message)

    def error(self, message: str, **_: Any) -> None:
        self._write(logging.ERROR, message)

    def warn(self, message: str, **_: Any) -> None:
        self._write(logging.WARNING, message)

    def info(self, message: str, **_: Any) -> None:
        self._write(logging.DEBUG, message)

    debug = trace = blather = info


OPTIONS = _Options()


class Machine(Subprocess):  # type: ignore[misc]
    """The state machine of one supervised name.

    `state_changed(old, new)` is called at every transition, which all go through `change_state`.
    """

    state: int
    spawnerr: str | None

    def __init__(
        self, name: str, group: Group, logfile: str, actions: Actions, state_changed: Callable[[int, int], None]
    ) -> None:
        config = SimpleNamespace(
            name=name,
            options=OPTIONS,
            stdout_logfile=logfile,
            stderr_logfile=None,
            priority=999,
            startsecs=0,
            exitcodes=(0,),
            autorestart=True,
        )
        super().__init__(config)
        self.group = group
        self._actions = actions
        self._state_changed = state_changed

    def change_state(self, new_state: int, expected: bool = True) -> None:  # noqa: ARG002 - supervisor's signature
        """The one choke point of every transition: changes the state, then announces it."""
        old = self.state
        if new_state == old:
            return
        self.state = new_state
        if new_state == STARTING and old not in (RUNNING,):
            self.laststart = time.time()  # for display by supervisorctl only
        elif new_state in ENDED_STATES:
            self.laststop = time.time()
        self._state_changed(old, new_state)

    @property
    def pid(self) -> int:
        """Of the process that carries the name now; 0: none, as supervisor wants it. Never passed to `kill`."""
        return self._actions.pid

    def get_execv_args(self) -> tuple[str, list[str]]:
        """supervisor checks the program before a start; ours is checked when it is spawned."""
        return "", []

    def spawn(self) -> None:
        self.spawnerr = None
        self._actions.request_start()

    def stop(self) -> None:
        self.administrative_stop = True
        self._actions.request_stop()

    def stop_report(self) -> None:
        """supervisor logs that it still waits; our own events say it."""

    def signal(self, sig: int) -> str | None:
        return self._actions.request_signal(sig)

    def transition(self) -> None:
        """Timers are ours: nothing to do when supervisor ticks."""

    def removelogs(self) -> None:
        """`supervisorctl clear`: the relay owns the files, so nothing is removed."""

    reopenlogs = removelogs

    def write(self, chars: str) -> None:  # noqa: ARG002 - supervisor's signature
        raise OSError(32, "workers have no standard input")


class Group:
    """A supervisor group: one pool, or the daemon's own helpers."""

    def __init__(self, name: str) -> None:
        self.config = SimpleNamespace(name=name, options=OPTIONS, priority=999, process_configs=[])
        self.processes: dict[str, Machine] = {}

    def __lt__(self, other: Group) -> bool:
        return bool(self.config.name < other.config.name)


class Groups:
    """The object that supervisor calls `supervisord`: its groups and its options."""

    def __init__(self) -> None:
        self.options = OPTIONS
        self.process_groups: dict[str, Group] = {}

    def reap(self) -> None:
        """Deaths come from pidfds; supervisor's waitpid(-1) would steal them."""

    def machine(
        self, name: str, logfile: str, actions: Actions, state_changed: Callable[[int, int], None]
    ) -> Machine:
        """Make the machine of `group:process`."""
        group_name, _, process = name.partition(":")
        group = self.process_groups.setdefault(group_name, Group(group_name))
        machine = Machine(process, group, logfile, actions, state_changed)
        group.processes[process] = machine
        return machine

    def remove(self, name: str) -> None:
        group_name, _, process = name.partition(":")
        group = self.process_groups.get(group_name)
        if group is None:
            return
        group.processes.pop(process, None)
        if not group.processes:
            del self.process_groups[group_name]


class XmlRpcServer:
    """supervisor's HTTP server on a UNIX socket, driven by our loop instead of asyncore's."""

    # Deferred answers (start and stop with wait) are polled: supervisor does so in its own loop as well.
    POLL_S = 0.05

    def __init__(self, groups: Groups, path: str, shutdown: Callable[[], None], reload: Callable[[], None]) -> None:
        # Loaded only when asked for: it costs several megabytes.
        from supervisor import http
        from supervisor.medusa import asyncore_25
        from supervisor.rpcinterface import SupervisorNamespaceRPCInterface

        class Interface(SupervisorNamespaceRPCInterface):  # type: ignore[misc]
            """`supervisorctl shutdown` and `reload` mean the daemon's own."""

            def shutdown(self) -> bool:
                shutdown()
                return True

            def restart(self) -> bool:
                reload()
                return True

            def reloadConfig(self) -> list[list[list[str]]]:  # noqa: N802 - supervisor's method name
                reload()
                return [[[], [], []]]

        options = groups.options
        options.server_configs = [
            {
                "family": 1, "file": path, "chmod": 0o660, "chown": (-1, -1),
                "username": None, "password": None, "section": "unix_http_server",
            }
        ]  # fmt: skip
        options.rpcinterface_factories = [("supervisor", Interface, {})]
        self._path = path
        self._map: dict[int, Any] = asyncore_25.socket_map
        with contextlib.suppress(FileNotFoundError):
            # supervisor would wait 0.3 s for a stale socket; the lock on runtime_dir says that it is stale.
            os.unlink(path)  # noqa: PTH108
        self._servers = http.make_http_servers(options, groups)
        self._task: asyncio.Task[None] | None = None
        self._readers: set[int] = set()
        self._writers: set[int] = set()
        # Channels whose answer is deferred: always "writable" with nothing to write, so they rest until the next poll.
        self._resting: set[int] = set()
        self._wake = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        """Keep the loop's interest in each channel equal to what the channel says of itself."""
        while True:
            try:
                self._sync()
            except Exception:
                # A client that asyncore chokes on must not end the socket for all.
                log.exception("the supervisor socket")
                await asyncio.sleep(self.POLL_S)
            self._wake.clear()
            busy = len(self._map) > len(self._servers)
            try:
                async with asyncio.timeout(self.POLL_S if busy else None):
                    await self._wake.wait()
            except TimeoutError:
                self._resting.clear()

    def _sync(self) -> None:
        loop = asyncio.get_running_loop()
        readable = {fd for fd, channel in self._map.items() if channel.readable()}
        writable = {fd for fd, channel in self._map.items() if channel.writable()} - self._resting
        for fd in (self._readers | self._writers) - self._map.keys():
            self._forget(fd)  # closed by another channel, which has grown tired of it
        for fd in self._readers - readable:
            loop.remove_reader(fd)
        for fd in self._writers - writable:
            loop.remove_writer(fd)
        for fd in readable - self._readers:
            loop.add_reader(fd, self._handle, fd, "handle_read_event")
        for fd in writable - self._writers:
            loop.add_writer(fd, self._handle, fd, "handle_write_event")
        self._readers, self._writers = readable, writable

    def _handle(self, fd: int, method: str) -> None:
        channel = self._map.get(fd)
        if channel is not None:
            server = getattr(channel, "server", None)
            sent = server.bytes_out.value if server is not None else 0
            try:
                getattr(channel, method)()
                if method == "handle_write_event" and server is not None and server.bytes_out.value == sent:
                    self._resting.add(fd)
            except Exception:
                # asyncore's own contract: an error of one client ends that client, with a record.
                log.exception("a client of the supervisor socket failed")
                channel.close()
        if fd not in self._map:
            # Closed in the handler: the number may be used again at once, so forget it now.
            self._forget(fd)
        self._wake.set()

    def _forget(self, fd: int) -> None:
        loop = asyncio.get_running_loop()
        for remove in (loop.remove_reader, loop.remove_writer):
            with contextlib.suppress(OSError):  # closed with both: told so after the loop has forgotten both
                remove(fd)
        for known in (self._readers, self._writers, self._resting):
            known.discard(fd)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for fd in self._readers | self._writers:
            self._forget(fd)
        for channel in list(self._map.values()):
            channel.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)  # noqa: PTH108
