"""`purge QUEUE`: drop all messages that wait in a queue. The client has asked the operator."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon.control.protocol import INVALID_PARAMS, Params, RpcError, take
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.launch import AGENT
from limetaskd.errors import CommandError


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    name = take(params, {"queue": (str,)})["queue"]
    if not name:
        raise RpcError(INVALID_PARAMS, "queue must be given")
    queue = daemon.steering.queue(name)
    agent = daemon.units[AGENT].current
    if agent is None or agent.connection is None:
        raise CommandError("the agent that talks to the broker is not up: try again, see limetaskctl status")
    reply = await agent.connection.call("purge", {"queue": queue.actual}, 30.0)
    daemon.events.emit("queue_purged", queue=queue.actual, messages=reply.get("purged"))
    return {"queue": queue.actual, "purged": reply.get("purged")}
