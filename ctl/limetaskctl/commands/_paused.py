"""What pause and resume have in common: QUEUE arguments, and the queues as a table."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from limetaskctl.render import View, table


def add_queues(parser: ArgumentParser) -> None:
    parser.add_argument("queues", nargs="+", metavar="QUEUE", help="a queue, by its configured or actual name")


def render(result: dict[str, Any], view: View) -> str:
    """`{"queues": [{queue, action, since, until, reason, by}]}` as a table."""
    rows = [[item["queue"], item["action"], item["until"], item["reason"]] for item in result["queues"]]
    return table(["QUEUE", "ACTION", "UNTIL", "REASON"], rows, view)
