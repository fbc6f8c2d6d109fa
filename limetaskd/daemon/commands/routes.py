"""`routes`: the accepted routing table, with configured and actual queue names."""

from __future__ import annotations

from typing import Any

from limetaskd.daemon.control.protocol import Params, take
from limetaskd.daemon.daemon import Daemon


async def run(daemon: Daemon, params: Params) -> dict[str, Any]:
    take(params, {})
    settings = daemon.plan.settings
    routing = settings.routing

    def target(queue: str) -> dict[str, str]:
        return {"queue": queue, "actual": settings.queue(queue).actual}

    return {
        "qos": [{"category": category, **target(queue)} for category, queue in routing.qos.items()],
        "tasks": [{"task": task, **target(queue)} for task, queue in routing.tasks.items()],
        "default": target(routing.default),
    }
