"""Memory of one process, read from /proc: a cheap upper bound and the exact private figure. Bytes.

    cheap   resident pages that belong to no file (/proc/PID/statm through a descriptor kept open: about a microsecond)
    exact   pages that nobody shares, USS (/proc/PID/smaps_rollup: the kernel walks all of them)

What a pool child inherited and has not written to counts in the cheap figure and not in the exact one.
"""

from __future__ import annotations

import os

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Statm:
    """/proc/PID/statm, kept open. It names one process for ever: a reused pid is another file."""

    __slots__ = ("_descriptor",)

    def __init__(self, pid: int) -> None:
        """Raises OSError when there is no such process."""
        self._descriptor = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)

    def cheap(self) -> int | None:
        """None: the process is gone."""
        try:
            fields = os.pread(self._descriptor, 128, 0).split()
        except ProcessLookupError:
            return None
        # size resident shared text lib data dirty, in pages
        return (int(fields[1]) - int(fields[2])) * _PAGE if len(fields) > 2 else None

    def close(self) -> None:
        os.close(self._descriptor)


def private_bytes(pid: int | str) -> int | None:
    """USS of a process; None when it is gone, or not ours to look at."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:  # noqa: PTH123  read often
            lines = file.read().splitlines()
    except OSError:
        return None
    return sum(int(line.split()[1]) for line in lines if line.startswith(b"Private_")) * 1024


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, as of now."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        try:
            threads = os.listdir(f"/proc/{parent}/task")  # noqa: PTH208  read often
        except OSError:
            continue
        for thread in threads:
            try:
                with open(f"/proc/{parent}/task/{thread}/children", "rb") as file:  # noqa: PTH123
                    children = [int(word) for word in file.read().split()]
            except OSError:
                continue
            found += children
            waiting += children
    return found
