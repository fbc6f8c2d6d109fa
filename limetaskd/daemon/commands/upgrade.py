"""`upgrade`: replace the daemon's code, the workers running on. The answer comes before the replacement."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon.control.protocol import Params, take
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.upgrade import upgrade


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    take(params, {})
    return await upgrade(daemon)
