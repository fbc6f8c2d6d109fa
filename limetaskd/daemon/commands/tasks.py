"""`tasks [--pool P]`: what runs now, read from the scoreboards; the broker is not asked."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon.control.protocol import Params, take
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.status import running_tasks


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    pool = take(params, {"pool": (str,)})["pool"]
    if pool is not None:
        daemon.pool(pool)
    return {"tasks": running_tasks(daemon, pool)}
