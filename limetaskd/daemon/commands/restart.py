"""`restart NAME...`: rolling, one worker at a time: the new one consumes before the old one drains."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon.control.protocol import Params, names, take
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.gather import roll


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    take(params, {"names": (list,)})
    units = [unit for name in names(params, "names") for unit in daemon.find_units(name)]
    changed = []
    for unit in units:
        # The first failure ends it: what comes after would most likely fail in the same way.
        await roll(daemon, unit)
        changed.append({"name": unit.name, "action": "restarted", "state": unit.state_name})
    return {"changed": changed}
