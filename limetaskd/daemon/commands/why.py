"""`why POOL`: how many slots it has, who decided that, and the last decisions of the autoscaler."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon.control.protocol import INVALID_PARAMS, Params, RpcError, take
from limetaskd.daemon.daemon import Daemon


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    pool = take(params, {"pool": (str,)})["pool"]
    if not pool:
        raise RpcError(INVALID_PARAMS, "pool must be given")
    return daemon.autoscaling.why(daemon.pool(pool))
