"""`revoke TASK_ID`: a task that waits will not run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from limetaskctl.render import View, clean

WAITS = True


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK_ID")


def params(args: Namespace) -> dict[str, Any]:
    return {"task": args.task}


def render(result: dict[str, Any], _view: View) -> str:
    """`{"task": {"id"}, "everywhere"}` as a line."""
    where = "" if result["everywhere"] else " on this host (others could not be told: see limetaskctl logs)"
    return f"{clean(result['task']['id'])} will not run{where}"
