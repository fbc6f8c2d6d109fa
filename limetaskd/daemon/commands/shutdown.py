"""`shutdown [--now]`: as SIGTERM (or SIGQUIT). The answer comes before the end."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon.control.protocol import Params, take
from limetaskd.daemon.daemon import Daemon


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    if take(params, {"now": (bool,)})["now"]:
        daemon.stop_now.set()
    daemon.stop_requested.set()
    return {"stopping": True}
