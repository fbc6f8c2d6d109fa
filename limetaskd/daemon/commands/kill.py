"""`kill TASK_ID`: end one task that runs on this host, now and for good."""

from __future__ import annotations

from typing import Any

from limetaskd.core.board import OPERATOR
from limetaskd.daemon import outcome
from limetaskd.daemon.control.protocol import INVALID_PARAMS, Params, RpcError, take
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.guard import find_task
from limetaskd.errors import CommandError


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    task_id = take(params, {"task": (str,)})["task"]
    if not task_id:
        raise RpcError(INVALID_PARAMS, "task must be given")
    found = find_task(daemon, task_id)
    if found is None:
        raise CommandError(
            f"no task {task_id} runs on this host: limetaskctl tasks shows what does, revoke drops one that waits"
        )
    unit, incarnation, slot = found
    if not await outcome.end_task(daemon, unit, incarnation, slot, OPERATOR, "is ended by an operator"):
        raise CommandError(f"task {task_id} had just ended by itself, or is being ended already")
    name = slot.running.name if slot.running is not None else ""
    return {"task": {"id": task_id, "name": name, "worker": unit.name, "pid": slot.pid}}
