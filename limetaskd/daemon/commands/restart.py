"""`restart NAME...`: rolling, one worker (or `at_once`) at a time: the new one consumes before the old one drains."""

from __future__ import annotations

import logging
from typing import Any

from limetaskd.daemon.control.protocol import INVALID_PARAMS, Params, RpcError, names, take
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.gather import each
from limetaskd.daemon.rolling import roll
from limetaskd.daemon.unit import Unit
from limetaskd.errors import CommandError

log = logging.getLogger("limetaskd.restart")


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    at_once = take(params, {"names": (list,), "at_once": (int,)})["at_once"]
    if at_once is None:
        at_once = 1
    if at_once < 1:
        raise RpcError(INVALID_PARAMS, "at_once must be at least 1")
    units = list(dict.fromkeys(unit for name in names(params, "names") for unit in daemon.find_units(name)))
    try:
        await daemon.nursery.refresh_image()
    except CommandError as error:
        # Workers then start by exec; if the modules are broken, their restart fails with the reason.
        log.warning("the image could not be replaced: %s", error)

    async def restart(unit: Unit) -> str:
        await roll(daemon, unit)
        daemon.nursery.drop_old_image()
        return "restarted"

    changed: list[dict[str, Any]] = []
    for first in range(0, len(units), at_once):
        # The first failure ends it: what comes after would most likely fail in the same way.
        changed += (await each(units[first : first + at_once], restart))["changed"]
    return {"changed": changed}
