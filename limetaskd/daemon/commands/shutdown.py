"""`shutdown [--now]`: as SIGTERM (or SIGQUIT). The answer comes before the end."""

from __future__ import annotations

import os
import signal
from typing import Any

from limetaskd.daemon.control.protocol import Params, take
from limetaskd.daemon.daemon import Daemon


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    now = take(params, {"now": (bool,)})["now"]
    if daemon.replacing:
        os.kill(os.getpid(), signal.SIGQUIT if now else signal.SIGTERM)  # passed on to the newer code, as a signal is
        return {"stopping": True}
    if now:
        daemon.stop_now.set()
    daemon.stop_requested.set()
    return {"stopping": True}
