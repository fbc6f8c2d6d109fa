"""`logs [NAME]`: the last lines of a process's own log, and what is new after a cursor."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from limetaskd.daemon.control.protocol import INVALID_PARAMS, Params, RpcError, take
from limetaskd.daemon.daemon import Daemon

MAX_LINES = 2000
# Of the file for one answer: a frame has at most 1 MiB, and quotes in JSON lines are escaped in it once more.
MAX_BYTES = 256 * 1024
MAX_WAIT_S = 60.0
POLL_S = 0.2
DEFAULT_LINES = 20


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    taken = take(params, {"name": (str,), "lines": (int,), "cursor": (str,), "wait_s": (int, float)})
    name = taken["name"] or "limetaskd"
    if name != "limetaskd" and name not in daemon.units:
        units = daemon.find_units(name)  # raises with the known names
        if len(units) > 1:
            several = ", ".join(unit.name for unit in units)
            raise RpcError(INVALID_PARAMS, f"{name} has several processes: name one of {several}")
        name = units[0].name
    path = daemon.paths.log(name)
    if taken["cursor"] is None:
        lines = max(0, min(taken["lines"] if taken["lines"] is not None else DEFAULT_LINES, MAX_LINES))
        return await asyncio.to_thread(_last, path, lines)
    deadline = time.monotonic() + min(float(taken["wait_s"] or 0), MAX_WAIT_S)
    while True:
        answer = await asyncio.to_thread(_since, path, taken["cursor"])
        if answer["lines"] or time.monotonic() >= deadline:
            return answer
        await asyncio.sleep(POLL_S)


def _last(path: str, lines: int) -> dict[str, Any]:
    """The last whole lines; an answer is bounded, so very long lines make it fewer."""
    try:
        with Path(path).open("rb") as file:
            stat = os.fstat(file.fileno())
            start = max(0, stat.st_size - MAX_BYTES)
            file.seek(start)
            data = file.read(stat.st_size - start)
    except FileNotFoundError:
        return {"lines": [], "cursor": "0:0"}
    whole = data[: data.rfind(b"\n") + 1]
    found = whole.decode("utf-8", "replace").splitlines()
    if start and found:
        found = found[1:]
    return {"lines": found[-lines:] if lines else [], "cursor": f"{stat.st_ino}:{start + len(whole)}"}


def _since(path: str, cursor: str) -> dict[str, Any]:
    """Whole lines after `cursor` (inode:offset); a file that was rotated meanwhile is read from its start."""
    inode, _, offset = cursor.partition(":")
    if not (inode.isdigit() and offset.isdigit()):
        raise RpcError(INVALID_PARAMS, "cursor must be one that an earlier answer gave")
    try:
        with Path(path).open("rb") as file:
            stat = os.fstat(file.fileno())
            start = int(offset) if stat.st_ino == int(inode) and int(offset) <= stat.st_size else 0
            file.seek(start)
            data = file.read(MAX_BYTES)
    except FileNotFoundError:
        return {"lines": [], "cursor": cursor}
    whole = data[: data.rfind(b"\n") + 1] or (data if len(data) == MAX_BYTES else b"")
    return {"lines": whole.decode("utf-8", "replace").splitlines(), "cursor": f"{stat.st_ino}:{start + len(whole)}"}
