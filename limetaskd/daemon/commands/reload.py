"""`reload [--plan]`: as SIGHUP, waits and reports what changed; with `plan` only shows the difference."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon import reload
from limetaskd.daemon.control.protocol import Params, take
from limetaskd.daemon.daemon import Daemon


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    only_plan = bool(take(params, {"plan": (bool,)})["plan"])
    return await reload.reload(daemon, only_plan=only_plan)
