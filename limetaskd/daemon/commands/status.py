"""`status [POOL]`: the daemon, pools, workers and their children, queues."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon import status
from limetaskd.daemon.control.protocol import Params, take
from limetaskd.daemon.daemon import Daemon


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    pool = take(params, {"pool": (str,)})["pool"]
    if pool is not None:
        daemon.pool(pool)
    return await status.document(daemon, pool)
