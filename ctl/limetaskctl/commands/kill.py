"""`kill TASK_ID`: end a task that runs on this host, for good."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from limetaskctl.render import View, clean

WAITS = True


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK_ID", help="see: limetaskctl tasks")


def params(args: Namespace) -> dict[str, Any]:
    return {"task": args.task}


def render(result: dict[str, Any], _view: View) -> str:
    """`{"task": {"id", "name", "worker", "pid"}}` as a line."""
    task = result["task"]
    where = f"worker {clean(task['worker'])}, process {task['pid']}"
    return f"{clean(task['name'])} {clean(task['id'])} was ended ({where})"
