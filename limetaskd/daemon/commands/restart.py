"""`restart NAME...`: rolling, one worker at a time: the new one consumes before the old one drains."""

from __future__ import annotations

import logging
from typing import Any

from limetaskd.daemon.control.protocol import Params, names, take
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.gather import roll
from limetaskd.errors import CommandError

log = logging.getLogger("limetaskd.restart")


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    take(params, {"names": (list,)})
    units = [unit for name in names(params, "names") for unit in daemon.find_units(name)]
    try:
        await daemon.refresh_image()
    except CommandError as error:
        # Workers then start by exec; if the modules are broken, their restart fails with the reason.
        log.warning("the image could not be replaced: %s", error)
    changed = []
    for unit in units:
        # The first failure ends it: what comes after would most likely fail in the same way.
        await roll(daemon, unit)
        changed.append({"name": unit.name, "action": "restarted", "state": unit.state_name})
    return {"changed": changed}
