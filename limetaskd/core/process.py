"""Which process is which: a pid with its start time names one, as long as the host is up."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_PR_SET_NAME = 15


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on; None when there is no such process, or none for us to see.

    Raises OSError when it cannot be read for another reason: that says nothing about the process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The command name may hold spaces and brackets: count from the last bracket.
    return stat[stat.rindex(b")") + 2 :].decode().split()


def process_start_ticks(pid: int) -> int | None:
    """Start time of `pid` in clock ticks since boot (/proc/PID/stat, field 22); None: no such process, or unknown.

    With the pid it names one process as long as the host is up: pids are used again, the pair is not.
    """
    try:
        fields = _stat(pid)
    except OSError:
        return None  # nobody can tell
    return int(fields[19]) if fields is not None else None


def process_parent(pid: int) -> int | None:
    """The parent's pid (/proc/PID/stat, field 4); None when there is no such process. Raises OSError: unknown."""
    fields = _stat(pid)
    return int(fields[1]) if fields is not None else None


def process_state(pid: int) -> str:
    """One letter, as in /proc/PID/stat: R, S, D, T (stopped), Z (dead, not reaped); X when there is no such process.

    A question mark when nobody can tell.
    """
    try:
        fields = _stat(pid)
    except OSError:
        return "?"
    return fields[0] if fields is not None else "X"


def process_lives(pid: int, start_ticks: int) -> bool:
    """Whether this very process lives: one that is dead and not collected by its parent (Z) does not.

    Raises OSError when nobody can tell (no descriptors left, say).
    """
    fields = _stat(pid)
    return fields is not None and int(fields[19]) == start_ticks and fields[0] not in "ZX"


def process_may_live(pid: int, start_ticks: int) -> bool:
    """As `process_lives`, or it cannot be told: the process may not be looked at (hidepid), or `start_ticks` is 0."""
    try:
        fields = _stat(pid)
    except OSError:
        return True
    if fields is not None:
        return fields[0] not in "ZX" and (start_ticks == 0 or int(fields[19]) == start_ticks)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def name_process(name: str) -> None:
    """What `ps` and `top` show as the name of this process, at most 15 bytes; its arguments stay."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def name_arguments(*words: str) -> None:
    """Replace the last arguments that `ps` shows of this process, which was forked from one with others.

    Cut to the room that those had; nothing happens when it cannot be told where they are.
    """
    try:
        fields = _stat(os.getpid()) or []
    except OSError:
        return
    begin, end = (int(field) for field in fields[45:47]) if len(fields) > 46 else (0, 0)
    if not begin < end:
        return
    known = ctypes.string_at(begin, end - begin).rstrip(b"\0").split(b"\0")
    named = b"\0".join([*known[: -len(words)], *(word.encode() for word in words)])
    room = end - begin - 1
    ctypes.memmove(begin, named[:room].ljust(room + 1, b"\0"), end - begin)


def boot_id() -> str:
    """The kernel's name of this boot. Raises OSError."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def known_place() -> str | None:
    """Where pids can be compared: boot and pid namespace, as `<8 hex digits>-<number>`; None: nobody tells."""
    try:
        return f"{boot_id()[:8]}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return None


def this_place() -> str:
    """As `known_place`; zeros if nobody tells."""
    return known_place() or "00000000-0"
