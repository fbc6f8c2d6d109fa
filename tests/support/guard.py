"""Leaves nothing behind: ends what the tests started, also when the test run itself is killed.

A guard process of its own waits for the end of a pipe that the test run holds. When the run ends, in whatever way,
the guard kills what is still registered: whole sessions (by session id), and processes that belong to a temporary
folder of ours; then it removes the folders. Standard library only: it runs as a script too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


def session_pids(session: int) -> list[int]:
    """Every live process of a session (zombies are not live)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue  # ended meanwhile
        if int(fields[3]) == session and fields[0] not in (b"Z", b"X"):
            found.append(int(entry.name))
    return found


def folder_pids(folder: str) -> list[int]:
    """Every process that belongs to a temporary folder, in whatever session it is.

    Its LIMETASKD_SPEC or its command line names the folder, or it works in it (a Valkey rewrites the other two).
    """
    needle = os.fsencode(folder)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environ = (entry / "environ").read_bytes().split(b"\0")
            belongs = (
                any(item.startswith(b"LIMETASKD_SPEC=") and needle in item for item in environ)
                or needle in (entry / "cmdline").read_bytes()
                or str((entry / "cwd").readlink()).startswith(folder)
            )
        except OSError:
            continue  # ended meanwhile, or not ours to read
        if belongs:
            found.append(int(entry.name))
    return found


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_session(session: int) -> None:
    """SIGKILL until nobody of the session is left: a child may be born between two looks."""
    while pids := session_pids(session):
        signal_all(pids, signal.SIGKILL)


def kill_folder(folder: str) -> None:
    """SIGKILL until nobody of the folder is left."""
    while pids := folder_pids(folder):
        signal_all(pids, signal.SIGKILL)


class Guard:
    """The test run's side of the guard process, which starts with the first registration."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def _say(self, line: str) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-E", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def add_session(self, session: int) -> None:
        self._say(f"+session {session}")

    def forget_session(self, session: int) -> None:
        self._say(f"-session {session}")

    def add_folder(self, folder: str) -> None:
        """The folder, and the processes that belong to it (see `folder_pids`)."""
        self._say(f"+folder {folder}")

    def forget_folder(self, folder: str) -> None:
        self._say(f"-folder {folder}")


GUARD = Guard()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    registered: dict[str, None] = {}
    for line in sys.stdin:
        if line.startswith("+"):
            registered[line[1:].strip()] = None
        else:
            registered.pop(line[1:].strip(), None)
    # Folders last: servers write into them until they are dead.
    for entry in sorted(registered, key=lambda entry: entry.startswith("folder")):
        kind, _, value = entry.partition(" ")
        if kind == "session":
            kill_session(int(value))
        else:
            kill_folder(value)
            shutil.rmtree(value, ignore_errors=True)


if __name__ == "__main__":
    main()
