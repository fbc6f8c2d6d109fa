"""The commands of the control socket, one small file each: `async run(daemon, params) -> dict`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from limetaskd.daemon.audit import Operator
from limetaskd.daemon.commands import (
    drain,
    events,
    kill,
    logs,
    pause,
    purge,
    quarantine,
    queues,
    reload,
    restart,
    resume,
    revoke,
    routes,
    scale,
    show,
    shutdown,
    start,
    status,
    stop,
    tasks,
    upgrade,
    version,
    why,
)
from limetaskd.daemon.control.protocol import METHOD_NOT_FOUND, Params, RpcError
from limetaskd.daemon.daemon import Daemon

Command = Callable[[Daemon, Params], Awaitable[dict[str, Any]]]

COMMANDS: dict[str, Command] = {
    "drain": drain.run,
    "events": events.run,
    "kill": kill.run,
    "logs": logs.run,
    "pause": pause.run,
    "purge": purge.run,
    "quarantine": quarantine.run,
    "queues": queues.run,
    "reload": reload.run,
    "restart": restart.run,
    "resume": resume.run,
    "revoke": revoke.run,
    "routes": routes.run,
    "scale": scale.run,
    "show": show.run,
    "shutdown": shutdown.run,
    "start": start.run,
    "status": status.run,
    "stop": stop.run,
    "tasks": tasks.run,
    "upgrade": upgrade.run,
    "version": version.run,
    "why": why.run,
}
# Those that change nothing; every other one is an operator's action, for the audit log.
READS = frozenset(
    {"events", "health", "doctor", "logs", "queues", "routes", "show", "status", "tasks", "top", "version", "why"}
)
# Methods that the contract names and this version does not have: the client says so, and so do we.
LATER = frozenset(
    {
        "beat", "keys", "top",
        "health", "doctor",
    }
)  # fmt: skip


def _only_reads(method: str, params: Params) -> bool:
    if method == "reload":
        return bool(params.get("plan"))
    if method == "quarantine":
        return params.get("action") in ("list", "show")
    return method in READS


async def run(daemon: Daemon, method: str, params: Params, by: Operator) -> dict[str, Any]:
    """Run one command in the name of `by`.

    Raises RpcError for an unknown one, CommandError when it is refused or fails.
    """
    command = COMMANDS.get(method)
    if command is None:
        why = "is not available in this version" if method in LATER else "is unknown"
        raise RpcError(METHOD_NOT_FOUND, f"method {method!r} {why} (known: {', '.join(sorted(COMMANDS))})")
    if _only_reads(method, params):
        return await command(daemon, params)
    if method != "shutdown":
        daemon.require_running()  # what changes something comes too early, or too late, else
    done: dict[str, Any] = await daemon.audit.carry_out(by, method, params, command(daemon, params))
    return done
