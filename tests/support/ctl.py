"""Running limetaskctl as a process against a ControlServer, for the tests of the client."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ctl_server import ControlServer

COMMAND = [sys.executable, "-m", "limetaskctl"]
DEADLINE_S = 60


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name is short: the path of a UNIX socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ctl-") as name:
        yield Path(name)


@pytest.fixture
def server(folder: Path) -> Iterator[ControlServer]:
    server = ControlServer(folder / "control.sock")
    yield server
    server.close()


def environment(**extra: str) -> dict[str, str]:
    foreign = {"LIMETASKCTL_SOCKET", "NO_COLOR", "SUDO_USER"}
    own = {name: value for name, value in os.environ.items() if name not in foreign}
    return {**own, "TERM": "xterm", **extra}


def ctl(where: ControlServer | Path | str, words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `limetaskctl --socket WHERE WORDS` to its end, without a terminal."""
    path = where.path if isinstance(where, ControlServer) else where
    return subprocess.run(
        [*COMMAND, "--socket", str(path), *words.split()],
        capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL, timeout=DEADLINE_S, check=False,
        env=environment(**extra),
    )  # fmt: skip


def start(where: ControlServer, words: str, **options: Any) -> subprocess.Popen[str]:
    """The same, in the background."""
    return subprocess.Popen(
        [*COMMAND, "--socket", str(where.path), *words.split()],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=environment(),
        **options,
    )  # fmt: skip


def assert_fails(done: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    """One clear line on stderr, nothing on stdout."""
    assert (done.returncode, done.stdout) == (code, ""), done
    assert message in done.stderr
    assert done.stderr.startswith("limetaskctl: ")
    assert done.stderr.count("\n") == 1


def in_terminal(server: ControlServer, words: str, typed: str = "", **extra: str) -> tuple[int, str]:
    """Run it in a terminal, type `typed` when it asks; the exit code and all that was shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        os.execve(COMMAND[0], [*COMMAND, "--socket", str(server.path), *words.split()], environment(**extra))
    shown = b""
    while True:
        ready, _, _ = select.select([terminal], [], [], DEADLINE_S)
        assert ready, shown
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break  # a terminal whose last user has gone
        if not data:
            break
        shown += data
        if typed and b"[y/N]" in shown:
            os.write(terminal, f"{typed}\n".encode())
            typed = ""
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


# A daemon of its own process: it answers `shutdown`, stops listening, and ends when a line comes on its stdin.
DAEMON = """
import sys
from pathlib import Path
from tests.support.ctl_server import ControlServer
server = ControlServer(Path(sys.argv[1]))
server.close_after("shutdown")
print("up", flush=True)
server.wait()
server.close()
print("closed", flush=True)
sys.stdin.readline()
"""


def start_daemon(path: Path, stdin: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """DAEMON, listening at `path`."""
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(path)], stdin=stdin, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert daemon.stdout is not None
    assert daemon.stdout.readline() == "up\n"
    return daemon
