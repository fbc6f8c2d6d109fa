"""`tasks [--pool P]`: the tasks that run now."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from limetaskctl.render import View, duration, table

WAITS = False


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--pool", metavar="POOL", help="only those of this pool")


def params(args: Namespace) -> dict[str, Any]:
    return {} if args.pool is None else {"pool": args.pool}


def render(result: dict[str, Any], view: View) -> str:
    """`{"tasks": [{id, name, queue, user, pool, worker, pid, running_s, waits}]}` as a table."""
    if not result["tasks"]:
        return "no task is running"
    head = ["ID", "NAME", "WORKER", "PID", "RUNNING", "USER", "QUEUE"]
    rows = [
        [one["id"], one["name"], one["worker"], one["pid"], _running(one), one["user"], one["queue"]]
        for one in result["tasks"]
    ]
    return table(head, rows, view)


def _running(task: dict[str, Any]) -> str:
    """How long; `waits`: for the result store, since that is away."""
    return f"{duration(task['running_s'])} waits" if task.get("waits") else duration(task["running_s"])
