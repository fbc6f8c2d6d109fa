"""`shutdown [--now]`: as SIGTERM (or SIGQUIT). The answer comes before the end."""

from __future__ import annotations

import signal
from typing import Any

from limetaskd.daemon.control.protocol import Params, take
from limetaskd.daemon.daemon import Daemon


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    now = take(params, {"now": (bool,)})["now"]
    daemon.request_stop(signal.SIGQUIT if now else signal.SIGTERM)
    return {"stopping": True}
