"""`start NAME...`: bring workers or pools up; returns when they consume, or fails with the reason."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon.control.protocol import Params, names, take
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.gather import each
from limetaskd.daemon.unit import Unit


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    take(params, {"names": (list,)})
    units = [unit for name in names(params, "names") for unit in daemon.find_units(name)]

    async def start(unit: Unit) -> str:
        if unit.ready:
            return "already running"
        unit.start()
        await unit.started()
        return "started"

    return await each(units, start)
