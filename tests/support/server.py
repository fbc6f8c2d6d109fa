"""The base of private servers for tests: a process with its session, ports and folder, nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.guard import GUARD, kill_session, session_pids, signal_all
from tests.support.waiting import wait_until

_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 60.0
HOST = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """`count` different loopback ports that nobody listens on right now."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for item in sockets:
            item.bind((HOST, 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


def find_binary(candidates: Sequence[str], package: str) -> str:
    """The first candidate that is there. Raises AssertionError: tests fail without their servers, they never skip."""
    for candidate in candidates:
        found = shutil.which(candidate)
        if found:
            return found
    raise AssertionError(
        f"{' or '.join(candidates)} is not installed: `apt-get install {package}` (`make test` as root does it)"
    )


class Server:
    """One server process with its session. Subclasses say how it starts and when it answers."""

    name = "server"
    ports_needed = 1

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix=f"lt-{self.name}-", dir="/tmp")
        GUARD.add_folder(self.folder)
        self.ports: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    def _prepare(self) -> None:
        """Write what the server needs into `folder`, before each start; the ports are known."""

    def answers(self) -> bool:
        """Whether it serves clients right now."""
        raise NotImplementedError

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def pid(self) -> int:
        """Of the first process, which is also the session id. Raises AssertionError when it does not run."""
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    @property
    def log_file(self) -> Path:
        return Path(self.folder, "output.log")

    def start(self) -> Self:
        """Start and wait until it answers. The first start picks the ports, later ones keep them."""
        assert self._process is None, f"{self.name} runs already"
        fixed = bool(self.ports)
        for _ in range(5):
            if not fixed:
                self.ports = free_ports(self.ports_needed)
            self._prepare()
            with self.log_file.open("ab") as output:
                self._process = subprocess.Popen(
                    self._command(),
                    env=self._environment(),
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            GUARD.add_session(self._process.pid)
            try:
                wait_until(self._answers_or_ended, _START_TIMEOUT_S, f"{self.name} on port {self.port}")
            except BaseException:
                self.kill()
                raise
            if self._process.poll() is None:
                return self
            # Somebody else took the port between the choice and the start, or still holds it.
            self.kill()
        raise AssertionError(f"{self.name} does not start:\n{self._tail()}")

    def _answers_or_ended(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None or self.answers()

    def _tail(self) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-30:])

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Orderly end (SIGTERM to the first process). No error when it does not run."""
        if self._process is None:
            return
        self.resume()
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """kill -9 of every process of its session; returns when all are gone. No error when it does not run."""
        if self._process is None:
            return
        kill_session(self._process.pid)
        self._process.wait(_STOP_TIMEOUT_S)
        GUARD.forget_session(self._process.pid)
        self._process = None

    def restart(self) -> Self:
        """Stop when it runs, and start on the same ports and data."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """Freeze (SIGSTOP): connections stay open and nothing answers."""
        signal_all(session_pids(self.pid), signal.SIGSTOP)

    def resume(self) -> None:
        signal_all(session_pids(self.pid), signal.SIGCONT)

    def close(self) -> None:
        """End it at once and remove its folder. Can be called again."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        GUARD.forget_folder(self.folder)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()
