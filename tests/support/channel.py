"""The daemon's end of the local channel, and workers started as the daemon starts them: for tests of the workers."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import limetaskd
from limetaskd.core.board import Board
from limetaskd.core.channel import MAX_BYTES, Command, Event, Phase, Reply, State, decode, encode
from limetaskd.core.names import Cluster
from limetaskd.core.settings import Queue, Routing, Settings
from limetaskd.core.spec import SPEC_VARIABLE, ProcessSpec
from tests.support.guard import GUARD
from tests.support.waiting import wait_until

BOOT = str(Path(limetaskd.__file__).with_name("boot.py"))
_DEFAULT_KEY = "lime_default_routing_key"


def settings_of(
    broker_url: str,
    backend_url: str | None = None,
    *,
    queues: Iterable[str] = ("lime_default_task_queue", "lime_task_queue_asap"),
    imports: Iterable[str] = (),
    prefix: str = "",
    **changes: Any,
) -> Settings:
    """Settings as a plan would make them: the first queue is the default one, `asap` the category of the second."""
    cluster = Cluster(prefix)
    names = list(queues)
    exchange = "lime_default_task_exchange"
    made = [
        Queue(
            name=name,
            actual=cluster.actual(name),
            exchange=exchange,
            exchange_type="direct",
            routing_key=cluster.routing_key(_DEFAULT_KEY if index == 0 else name),
        )
        for index, name in enumerate(names)
    ]
    qos = {"asap": names[1]} if len(names) > 1 else {}
    settings = Settings(
        application="tests",
        broker_url=broker_url,
        backend_url=backend_url,
        prefix=prefix,
        suffix="",
        exchange=exchange,
        queues=made,
        routing=Routing(default=names[0], qos=qos),
        imports=list(imports),
    )
    return dataclasses.replace(settings, **changes)


class FakeDaemon:
    """Listens on a channel socket; keeps the last state of each process, all phases, replies and events."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "channel.sock")
        self.states: dict[str, State] = {}
        self.phases: list[tuple[str, str]] = []
        self.events: list[Event] = []
        self.replies: dict[int, Reply] = {}
        self._peers: dict[str, socket.socket] = {}
        self._ids = 0
        self._listener: socket.socket | None = None
        self.listen()

    def listen(self) -> None:
        """Begin (again) to accept processes."""
        Path(self.path).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(self.path)
        listener.listen()
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def hang_up(self) -> None:
        """As a daemon that died: nobody listens, all connections end."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        Path(self.path).unlink(missing_ok=True)
        for peer in list(self._peers.values()):
            with suppress(OSError):  # ended by the process already
                peer.shutdown(socket.SHUT_RDWR)
        self._peers.clear()
        self.states.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._read, args=(peer,), daemon=True).start()

    def _read(self, peer: socket.socket) -> None:
        with peer:
            while True:
                try:
                    packet = peer.recv(MAX_BYTES)
                except OSError:
                    return
                if not packet:
                    return
                message = decode(packet)
                if isinstance(message, State):
                    self._peers[message.name] = peer
                    self.states[message.name] = message
                    self.phases.append((message.name, message.phase))
                elif isinstance(message, Reply):
                    self.replies[message.id] = message
                elif isinstance(message, Event):
                    self.events.append(message)

    def phase(self, name: str) -> str | None:
        state = self.states.get(name)
        return state.phase if state else None

    def send(self, name: str, command: str, **params: Any) -> int:
        """Send a command; returns its id for `replies`."""
        self._ids += 1
        self._peers[name].send(encode(Command(self._ids, command, params)))
        return self._ids

    def ask(self, name: str, command: str, timeout: float = 60, **params: Any) -> Reply:
        number = self.send(name, command, **params)
        return wait_until(lambda: self.replies.get(number), timeout, f"the reply to {command}")


class Process:
    """One process of ours, in its own session."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: Path, log: Path) -> None:
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self.log = log
        GUARD.add_session(self.popen.pid)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self, timeout: float = 60) -> int:
        return self.popen.wait(timeout)

    def children(self) -> list[int]:
        """Live direct children."""
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(word) for word in text.split()]

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        GUARD.forget_session(self.popen.pid)


def records_of(log: Path) -> list[dict[str, Any]]:
    """The JSON lines of a log file; other lines (what tasks print) are left out."""
    found = []
    for line in log.read_text(errors="replace").splitlines() if log.exists() else []:
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict):
            found.append(document)
    return found


class Bench:
    """A folder with task modules, a fake daemon and workers. Use as a context manager."""

    def __init__(self, settings: Settings, modules: dict[str, str]) -> None:
        """`modules`: name -> source, written into the folder, which is the workers' current directory."""
        self.folder = Path(tempfile.mkdtemp(prefix="lt-worker-", dir="/tmp"))
        GUARD.add_folder(str(self.folder))
        for name, source in modules.items():
            (self.folder / f"{name}.py").write_text(source)
        self.settings = dataclasses.replace(settings, imports=settings.imports or list(modules))
        self.settings_path = self.folder / "settings.json"
        self.settings_path.write_text(self.settings.to_json())
        self.out = self.folder / "out"
        self.out.write_text("")
        self.daemon = FakeDaemon(self.folder)
        self.processes: list[Process] = []
        self._generation = 0
        self._app: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.end()
        if self._app is not None:
            self._app.close()
        self.daemon.hang_up()
        for log in sorted(self.folder.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}")  # shown when the test failed
        GUARD.forget_folder(str(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def app(self) -> Any:
        """A sender's app."""
        if self._app is None:
            from limetaskd.tasks.app import build_app

            self._app = build_app(dataclasses.replace(self.settings, imports=[], app=None))
        return self._app

    def environment(self, **extra: str) -> dict[str, str]:
        return {**os.environ, "LT_OUT": str(self.out), **extra}

    def spec(self, name: str = "w:0", **changes: Any) -> ProcessSpec:
        self._generation += 1
        spec = ProcessSpec(
            kind="worker",
            name=name,
            pool=name.partition(":")[0],
            generation=self._generation,
            settings=str(self.settings_path),
            channel=self.daemon.path,
            log=str(self.folder / f"{name}.log"),
            node=f"{name.replace(':', '.')}.{self._generation}.{os.getpid()}",
            queues=tuple(queue.name for queue in self.settings.queues),
            concurrency=2,
            board=str(self.folder / f"board.{self._generation}"),
            record=str(self.folder / f"record.{self._generation}"),
            shutdown_timeout_s=120.0,
        )
        return dataclasses.replace(spec, **changes)

    def start(self, spec: ProcessSpec, **extra_env: str) -> Process:
        if spec.board is not None:
            Board.create(spec.board, 64).close()
        env = self.environment(**{SPEC_VARIABLE: spec.to_json()}, **extra_env)
        process = Process([sys.executable, BOOT, spec.kind, spec.name], env, self.folder, Path(spec.log))
        self.processes.append(process)
        return process

    def consuming(self, name: str = "w:0", timeout: float = 60) -> State:
        wait_until(lambda: self.daemon.phase(name) == Phase.CONSUMING, timeout, lambda: f"{self.daemon.states}")
        return self.daemon.states[name]

    def worker(self, name: str = "w:0", **changes: Any) -> Process:
        """A worker that consumes."""
        spec = self.spec(name, **changes)
        self.daemon.states.pop(name, None)
        process = self.start(spec)
        self.consuming(name)
        return process

    def lines(self) -> list[str]:
        """What tasks have written into $LT_OUT."""
        return self.out.read_text().split()

    def records(self, name: str = "w:0", logger: str | None = "limetaskd.execution") -> list[dict[str, Any]]:
        found = records_of(self.folder / f"{name}.log")
        return [record for record in found if logger is None or record.get("logger") == logger]


def drain_and_wait(process: Process, timeout: float = 90) -> int:
    """SIGTERM, and the exit code."""
    process.signal(signal.SIGTERM)
    return process.wait(timeout)


def settled(count: Callable[[], int], expected: int, timeout: float = 60) -> None:
    wait_until(lambda: count() >= expected, timeout, lambda: f"{count()} of {expected}")
