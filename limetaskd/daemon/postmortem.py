"""Post-mortems: what could be known of a process when it was killed, hung or crashed.

One `post_mortem` event and log record for each, and the newest `KEEP` of each name in
`<state_dir>/postmortem/<name>.jsonl`. Bounded: every text is cut.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limetaskd.core.board import Running
from limetaskd.core.documents import loads
from limetaskd.core.jsonlog import timestamp
from limetaskd.core.redact import redact_text
from limetaskd.daemon import files

if TYPE_CHECKING:
    from limetaskd.daemon.daemon import Daemon

log = logging.getLogger("limetaskd.postmortem")

KEEP = 20
LINES = 60
LINE_CHARACTERS = 400
STACKS_CHARACTERS = 8000
_TAIL_BYTES = 32 * 1024
_SEARCHED_BYTES = 1024 * 1024
_TASK_ID = re.compile(rb'"task_id": ("(?:[^"\\]|\\.)*")')
# Of the event, which stays in memory for a while: the file has it all.
EVENT_LINES = 5
EVENT_STACKS_CHARACTERS = 2000
_lock = asyncio.Lock()  # two of one name write one file
_STATUS = (
    "Name", "State", "PPid", "Threads", "VmPeak", "VmSize", "VmHWM", "VmRSS", "RssAnon", "VmSwap", "SigPnd", "ShdPnd",
    "SigBlk", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches",
)  # fmt: skip


def status_of(pid: int) -> dict[str, str] | None:
    """What /proc says of a process; None when it is gone. Reads files: call it in a thread."""
    try:
        # The name may be cut inside a character.
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    status = {key: found[key].strip() for key in _STATUS if key in found}
    try:
        status["wchan"] = Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        status["wchan"] = "?"
    return status


def last_lines(path: str) -> list[str]:
    """The end of a log file, cut."""
    try:
        with Path(path).open("rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES)
            file.seek(start)
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    if start:
        del lines[:1]  # a part of a line: half a URL would not be seen as one
    return [redact_text(line)[:LINE_CHARACTERS] for line in lines[-LINES:]]


def recorded(log_dir: str, since: Mapping[str, float]) -> set[str]:
    """Of these tasks, those whose end stands in the last part of a log of this host: of any worker, or the daemon's.

    `since`: task id -> unix s, of the run that is meant (a retry has the same id). Reads many files: in a thread.
    """
    wanted = {}
    for task_id, begun in since.items():
        wanted[json.dumps(task_id, ensure_ascii=False).encode()] = (task_id, timestamp(begun))
    found = set()
    for path in (*Path(log_dir).glob("*.log"), *Path(log_dir).glob("*.log.1")):
        try:
            with path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _SEARCHED_BYTES))
                for line in file:
                    match = _TASK_ID.search(line) if b'"task_outcome"' in line else None
                    task_id, moment = wanted.get(match[1], ("", "")) if match is not None else ("", "")
                    if task_id and _written(line) >= moment:
                        found.add(task_id)
        except OSError as error:
            log.debug("%s is not searched: %s", path, error)
    return found


def _written(line: bytes) -> str:
    """When a record was written, as RFC 3339; "": it is none."""
    try:
        return str(loads(line)["@timestamp"])
    except (ValueError, KeyError, TypeError):
        return ""


def task_of(running: Running) -> dict[str, Any]:
    return {
        "id": running.id, "name": running.name, "queue": running.queue, "user": running.user,
        "started": timestamp(running.started), "limit_s": running.time_limit_s,
    }  # fmt: skip


def document(
    name: str,
    kind: str,
    reason: str,
    pid: int,
    log_path: str,
    *,
    tasks: list[dict[str, Any]],
    status: dict[str, str] | None = None,
    exit_text: str | None = None,
    stacks: str | None = None,
    figures: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """`kind`: "task_killed", "worker_killed", "hung", "crash" or "child_crash". Reads the log: call it in a thread."""
    return {
        "at": timestamp(time.time()),
        "name": name,
        "kind": kind,
        "reason": reason[:LINE_CHARACTERS],
        "pid": pid,
        "exit": exit_text,
        "tasks": tasks[:LINES],
        "figures": figures or {},
        "proc_status": status,
        "stacks": None if stacks is None else redact_text(stacks)[:STACKS_CHARACTERS],
        "last_lines": last_lines(log_path),
    }


async def report(daemon: Daemon, name: str, kind: str, reason: str, pid: int, **more: Any) -> None:
    """Make a post-mortem: log record, event, file. `more`: as for `document`."""
    made = await asyncio.to_thread(document, name, kind, reason, pid, daemon.paths.log(name), **more)
    short = {
        **made,
        "stacks": None if made["stacks"] is None else made["stacks"][:EVENT_STACKS_CHARACTERS],
        "last_lines": made["last_lines"][-EVENT_LINES:],
    }
    short["process"] = short.pop("name")
    daemon.events.emit("post_mortem", **short)
    log.warning(
        "post-mortem of %s (pid %d): %s; limetaskctl show %s has it", name, pid, made["reason"], name,
        extra={"action": "post_mortem", "worker": name, "kind": kind, "tasks": made["tasks"], "exit": made["exit"]},
    )  # fmt: skip
    async with _lock:
        try:
            await asyncio.to_thread(keep, daemon.plan.state_dir, made)
        except OSError as error:
            log.error("the post-mortem of %s could not be kept: %s", name, error)


def path_of(state_dir: str, name: str) -> str:
    return str(Path(state_dir, "postmortem", f"{name}.jsonl"))


def keep(state_dir: str, made: dict[str, Any]) -> None:
    """Add to the file of that name. Raises OSError."""
    path = Path(path_of(state_dir, made["name"]))
    path.parent.mkdir(mode=0o750, exist_ok=True)
    lines = [json.dumps(item) for item in [*read(state_dir, made["name"]), made][-KEEP:]]
    files.write_atomically(str(path), "\n".join(lines) + "\n")


def read(state_dir: str, name: str) -> list[dict[str, Any]]:
    """What is kept, the oldest first; a line that cannot be read is left out."""
    try:
        lines = Path(path_of(state_dir, name)).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            item = loads(line)
        except ValueError:
            continue
        if isinstance(item, dict):
            found.append(item)
    return found
