"""`version`: of the daemon and of the control protocol."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon.control.protocol import PROTOCOL_VERSION, Params, take
from limetaskd.daemon.daemon import Daemon
from limetaskd.version import __version__


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:  # noqa: ARG001 - as every command
    take(params, {})
    return {"version": __version__, "protocol": PROTOCOL_VERSION}
