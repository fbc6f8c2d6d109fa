"""`queues`: depth, consumers and the oldest wait of every queue."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from limetaskctl.render import View, duration, table

WAITS = False


def add_arguments(parser: ArgumentParser) -> None:
    """No arguments."""


def params(_args: Namespace) -> dict[str, Any]:
    return {}


def render(result: dict[str, Any], view: View) -> str:
    """`{"queues": [{name, depth, consumers, oldest_wait_s}]}` as a table."""
    rows = [
        [queue["name"], queue["depth"], queue["consumers"], duration(queue["oldest_wait_s"])]
        for queue in result["queues"]
    ]
    return table(["QUEUE", "DEPTH", "CONSUMERS", "OLDEST WAIT"], rows, view)
