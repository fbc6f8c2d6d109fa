"""`routes`: the routing table that the daemon has accepted."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from limetaskctl.render import View, table

WAITS = False


def add_arguments(parser: ArgumentParser) -> None:
    """No arguments."""


def params(_args: Namespace) -> dict[str, Any]:
    return {}


def render(result: dict[str, Any], view: View) -> str:
    """`{"qos": [{category, queue, actual}], "tasks": [{task, queue, actual}], "default": {queue, actual}}`."""
    rows = [["task_route", item["task"], item["queue"], item["actual"]] for item in result["tasks"]]
    rows += [["qos", item["category"], item["queue"], item["actual"]] for item in result["qos"]]
    rows.append(["default", None, result["default"]["queue"], result["default"]["actual"]])
    return table(["ROUTE", "TASK OR CATEGORY", "QUEUE", "ACTUAL QUEUE"], rows, view)
