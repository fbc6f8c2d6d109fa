"""`quarantine list/show/replay/drop`: tasks under which too many workers died."""

from __future__ import annotations

from typing import Any

from limetaskd.core.routing import find_queue
from limetaskd.daemon.control.protocol import INVALID_PARAMS, Params, RpcError, take
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.launch import AGENT
from limetaskd.errors import CommandError

ACTIONS = ("list", "show", "replay", "drop")
_AGENT_S = 120.0


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    taken = take(params, {"action": (str,), "tasks": (list,), "all": (bool,), "queue": (str,)})
    action, tasks = taken["action"], taken["tasks"] or []
    if action not in ACTIONS:
        raise RpcError(INVALID_PARAMS, f"action must be one of {', '.join(ACTIONS)}")
    if not all(isinstance(task, str) for task in tasks):
        raise RpcError(INVALID_PARAMS, "tasks must be a list of task ids")
    if action != "list" and bool(tasks) == bool(taken["all"]):
        raise RpcError(INVALID_PARAMS, f"{action} needs tasks, or all")
    queue = None
    if taken["queue"] is not None:
        found = find_queue(daemon.plan.settings, taken["queue"])
        if found is None:
            raise CommandError(f"no queue {taken['queue']!r} is configured")
        queue = found.actual
    agent = daemon.units[AGENT].current
    if agent is None or agent.connection is None:
        raise CommandError("the agent that talks to the broker is not up: try again, see limetaskctl status")
    request = {"action": action, "tasks": tasks, "all": bool(taken["all"]), "queue": queue}
    answer = await agent.connection.call("quarantine", request, _AGENT_S)
    if action in ("replay", "drop"):
        daemon.events.emit(
            f"quarantine_{action}", task_ids=[item["id"] for item in answer["tasks"]], count=answer["count"]
        )
    return answer
