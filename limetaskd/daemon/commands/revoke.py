"""`revoke TASK_ID`: a task that waits, or that a worker holds for its ETA, will not run."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from limetaskd.core import revoked
from limetaskd.daemon import files, outcome
from limetaskd.daemon.control.protocol import INVALID_PARAMS, Params, RpcError, take
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.guard import find_task, incarnations
from limetaskd.errors import CommandError

log = logging.getLogger("limetaskd.control")
_WORKER_S = 10.0
_lock = asyncio.Lock()


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    task_id = take(params, {"task": (str,)})["task"]
    if not task_id:
        raise RpcError(INVALID_PARAMS, "task must be given")
    if find_task(daemon, task_id) is not None:
        raise CommandError(f"task {task_id} runs already: limetaskctl kill ends it")
    async with _lock:
        await asyncio.to_thread(_remember, daemon, task_id)
    # The file comes first: a worker that starts from here on reads it.
    calls = [
        incarnation.connection.call("revoke", {"id": task_id}, _WORKER_S)
        for _, incarnation in incarnations(daemon)
        if incarnation.connection is not None
    ]
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, CommandError):
            log.warning("revoke %s: a worker could not be told: %s", task_id, result)
        elif isinstance(result, BaseException):
            raise result
    everywhere = True
    try:
        await outcome.ask_agent(daemon, "revoke", {"id": task_id})
    except CommandError as error:
        everywhere = False
        log.warning("revoke %s: other hosts could not be told: %s", task_id, error)
    daemon.events.emit("task_revoked", task_id=task_id, everywhere=everywhere)
    return {"task": {"id": task_id}, "everywhere": everywhere}


def _remember(daemon: Daemon, task_id: str) -> None:
    state_dir = daemon.plan.state_dir
    try:
        known = revoked.read(state_dir)
    except ValueError as error:
        log.error("%s: %s; set aside", revoked.path_of(state_dir), error)
        files.set_aside(revoked.path_of(state_dir))
        known = {}
    files.write_atomically(revoked.path_of(state_dir), revoked.to_json(revoked.add(known, task_id, time.time())))
