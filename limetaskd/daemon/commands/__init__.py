"""The commands of the control socket, one small file each: `async run(daemon, params) -> dict`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from limetaskd.daemon.commands import (
    events,
    logs,
    purge,
    queues,
    reload,
    restart,
    routes,
    scale,
    shutdown,
    start,
    status,
    stop,
    tasks,
    upgrade,
    version,
)
from limetaskd.daemon.control.protocol import METHOD_NOT_FOUND, Params, RpcError
from limetaskd.daemon.daemon import Daemon

Command = Callable[[Daemon, Params], Awaitable[dict[str, Any]]]

COMMANDS: dict[str, Command] = {
    "events": events.run,
    "logs": logs.run,
    "purge": purge.run,
    "queues": queues.run,
    "reload": reload.run,
    "restart": restart.run,
    "routes": routes.run,
    "scale": scale.run,
    "shutdown": shutdown.run,
    "start": start.run,
    "status": status.run,
    "stop": stop.run,
    "tasks": tasks.run,
    "upgrade": upgrade.run,
    "version": version.run,
}
# What changes something waits until the daemon has started, and comes too late when it stops.
CHANGES = frozenset({"purge", "reload", "restart", "scale", "start", "stop", "upgrade"})
# Methods that the contract names and this version does not have: the client says so, and so do we.
LATER = frozenset(
    {
        "pause", "resume", "drain", "kill", "revoke", "quarantine", "beat", "show", "why", "keys", "top",
        "health", "doctor",
    }
)  # fmt: skip


async def run(daemon: Daemon, method: str, params: Params) -> dict[str, Any]:
    """Run one command. Raises RpcError for an unknown one, CommandError when it is refused or fails."""
    command = COMMANDS.get(method)
    if method in CHANGES:
        daemon.require_running()
    if command is None:
        why = "is not available in this version" if method in LATER else "is unknown"
        raise RpcError(METHOD_NOT_FOUND, f"method {method!r} {why} (known: {', '.join(sorted(COMMANDS))})")
    return await command(daemon, params)
