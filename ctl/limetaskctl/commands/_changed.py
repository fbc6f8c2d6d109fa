"""What start, stop, restart and scale have in common: NAME arguments, and a result that lists what changed."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from limetaskctl.render import View, table


def add_names(parser: ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="a worker (asap:0) or a pool (asap)")


def names(args: Namespace) -> dict[str, Any]:
    return {"names": args.names}


def render(result: dict[str, Any], view: View) -> str:
    """`{"changed": [{"name", "action", "state"}]}` as a table."""
    if not result["changed"]:
        return "nothing to change"
    rows = [[item["name"], item["action"], item["state"]] for item in result["changed"]]
    return table(["NAME", "ACTION", "STATE"], rows, view, states=[2])
