"""`drain POOL`: its workers take nothing new, finish what they run within shutdown_timeout, and stay stopped."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon import engine
from limetaskd.daemon.control.protocol import INVALID_PARAMS, Params, RpcError, take
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.gather import each
from limetaskd.daemon.unit import Unit


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    pool = take(params, {"pool": (str,)})["pool"]
    if not pool:
        raise RpcError(INVALID_PARAMS, "pool must be given")
    daemon.pool(pool)

    async def drain(unit: Unit) -> str:
        if unit.state == engine.STOPPED and not unit.leaving:
            return "already stopped"
        unit.stop()
        await unit.stopped()
        return "drained"

    return await each(daemon.pool_units(pool), drain)
