"""`queues`: depth, consumers and oldest wait of every configured queue, as the agent last saw them."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon.control.protocol import Params, take
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.status import queue_figures


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    take(params, {})
    return {"queues": queue_figures(daemon), "broker": daemon.broker_figures.get("broker")}
