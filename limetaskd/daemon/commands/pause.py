"""`pause QUEUE...`: stop consuming on this host; what had been prefetched goes back, what runs goes on."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from limetaskd.daemon import pausing
from limetaskd.daemon.control.protocol import INVALID_PARAMS, Params, RpcError, names, take
from limetaskd.daemon.daemon import Daemon
from limetaskd.errors import CommandError


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    taken = take(params, {"queues": (list,), "until": (str,), "reason": (str,)})
    queues = names(params, "queues")
    return {"queues": await pausing.pause(daemon, queues, _moment(taken["until"]), taken["reason"])}


def _moment(text: str | None) -> float | None:
    """Unix seconds of an RFC 3339 time. Raises RpcError, CommandError for one that is past."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise RpcError(
            INVALID_PARAMS, f"until must be a time such as 2026-11-24T18:00:00+01:00, not {text!r}"
        ) from error
    if moment.tzinfo is None:
        raise RpcError(INVALID_PARAMS, f"until must have an offset (+01:00 or Z), not {text!r}")
    if moment.timestamp() <= time.time():
        raise CommandError(f"until {text} is in the past: nothing is paused")
    return moment.timestamp()
