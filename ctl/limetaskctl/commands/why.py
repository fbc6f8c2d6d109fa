"""`why POOL`: its slots, and the last decisions about them."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from limetaskctl.render import View, clean, duration, table

WAITS = False


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("pool", metavar="POOL", help="a pool (asap)")


def params(args: Namespace) -> dict[str, Any]:
    return {"pool": args.pool}


def render(result: dict[str, Any], view: View) -> str:
    """A line about who decides, and the decisions as a table, the newest last."""
    scale = result["autoscale"]
    head = f"{clean(result['pool'])}: {clean(result['concurrency'])} slots"
    if result["set_by_operator"]:
        head += f", set by an operator (scale {clean(result['pool'])}=default undoes it)"
    elif scale is None:
        head += ", as configured"
    elif result["paused"]:
        head += ", not changed while a queue of it is paused"
    else:
        target = duration(scale["target_latency_s"])
        head += f", scaled by itself between {clean(scale['min'])} and {clean(scale['max'])} for a wait of {target}"
    if not result["decisions"]:
        return head
    rows = [
        [
            one["at"], f"{one['from']} -> {one['to']}" if one["from"] != one["to"] else one["to"], one["depth"],
            duration(one["oldest_wait_s"]), one["running"], duration(one["service_s"]), one["arrivals_per_s"],
            one["reason"],
        ]
        for one in result["decisions"]
    ]  # fmt: skip
    columns = ["AT", "SLOTS", "DEPTH", "OLDEST WAIT", "BUSY", "TASK TAKES", "TASKS/S", "REASON"]
    return f"{head}\n\n{table(columns, rows, view)}"
