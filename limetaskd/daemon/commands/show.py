"""`show NAME`: post-mortems and recent history of a worker, of each worker of a pool, or of a helper."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from limetaskd.daemon import postmortem
from limetaskd.daemon.control.protocol import INVALID_PARAMS, Params, RpcError, take
from limetaskd.daemon.daemon import Daemon

HISTORY = 50


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    name = take(params, {"name": (str,)})["name"]
    if not name:
        raise RpcError(INVALID_PARAMS, "name must be given")
    # A worker that is gone may have left something to show.
    kept = await asyncio.to_thread(_kept, daemon.plan.state_dir, name)
    names = [name] if kept else [unit.name for unit in daemon.find_units(name)]
    shown = []
    for one in names:
        found = await asyncio.to_thread(postmortem.read, daemon.plan.state_dir, one)
        unit = daemon.units.get(one)
        shown.append(
            {
                "name": one,
                "state": unit.state_name if unit is not None else None,
                "pid": unit.current.pid if unit is not None and unit.current is not None else None,
                "restarts": unit.restarts if unit is not None else None,
                "reason": unit.reason if unit is not None else None,
                "history": [
                    event
                    for event in daemon.events.since(0)
                    if event.get("process") == one and event["event"] != "post_mortem"
                ][-HISTORY:],
                "post_mortems": found[-max(1, postmortem.KEEP // len(names)) :],
            }
        )
    return {"processes": shown}


def _kept(state_dir: str, name: str) -> bool:
    return "/" not in name and Path(postmortem.path_of(state_dir, name)).exists()
