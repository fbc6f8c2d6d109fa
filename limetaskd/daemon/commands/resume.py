"""`resume QUEUE...`: consume paused queues again."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon import pausing
from limetaskd.daemon.control.protocol import Params, names, take
from limetaskd.daemon.daemon import Daemon


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    take(params, {"queues": (list,)})
    return {"queues": await pausing.resume(daemon, names(params, "queues"))}
