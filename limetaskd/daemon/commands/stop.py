"""`stop NAME...`: running tasks finish, then workers or pools are down until somebody starts them."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon import engine
from limetaskd.daemon.control.protocol import Params, names, take
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.gather import each
from limetaskd.daemon.unit import Unit


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    take(params, {"names": (list,)})
    units = [unit for name in names(params, "names") for unit in daemon.find_units(name)]

    async def stop(unit: Unit) -> str:
        if unit.state == engine.STOPPED and not unit.leaving:
            return "already stopped"
        unit.stop()
        await unit.stopped()
        return "stopped"

    return await each(units, stop)
