"""`scale POOL=N ...`: slots live, or worker processes by start and drain. Nothing that runs is killed."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon import scaling
from limetaskd.daemon.control.protocol import INVALID_PARAMS, Params, RpcError, take
from limetaskd.daemon.daemon import Daemon


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    taken = take(params, {"pools": (dict,), "workers": (bool,), "persist": (bool,)})
    wanted: dict[str, int | None] = {}
    for name, number in (taken["pools"] or {}).items():
        daemon.pool(name)
        if number == "default":
            wanted[name] = None
        elif isinstance(number, int) and not isinstance(number, bool):
            wanted[name] = number
        else:
            raise RpcError(INVALID_PARAMS, f"{name}: a number or 'default'")
    if not wanted:
        raise RpcError(INVALID_PARAMS, "pools must name at least one pool")
    return {"changed": await scaling.scale(daemon, wanted, bool(taken["workers"]), bool(taken["persist"]))}
