"""`events`: what happened after `cursor`; waits up to `wait_s` for news. Without a cursor: from now on."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon.control.protocol import Params, take
from limetaskd.daemon.daemon import Daemon

MAX_WAIT_S = 60.0


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    taken = take(params, {"cursor": (int,), "wait_s": (int, float)})
    cursor = taken["cursor"] if taken["cursor"] is not None else daemon.events.cursor
    found = daemon.events.since(cursor)
    if not found and taken["wait_s"]:
        await daemon.events.wait(min(float(taken["wait_s"]), MAX_WAIT_S))
        found = daemon.events.since(cursor)
    return {"events": found, "cursor": found[-1]["n"] if found else cursor}
