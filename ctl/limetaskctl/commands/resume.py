"""`resume QUEUE...`: consume paused queues again."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from limetaskctl.commands._paused import add_queues as add_arguments
from limetaskctl.commands._paused import render

__all__ = ["WAITS", "add_arguments", "params", "render"]

WAITS = True


def params(args: Namespace) -> dict[str, Any]:
    return {"queues": args.queues}
