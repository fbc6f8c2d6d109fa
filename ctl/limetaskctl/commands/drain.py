"""`drain POOL`: its workers finish what they run and stop; they stay stopped until `start`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from limetaskctl.commands._changed import render

__all__ = ["WAITS", "add_arguments", "params", "render"]

WAITS = True


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("pool", metavar="POOL", help="a pool (asap)")


def params(args: Namespace) -> dict[str, Any]:
    return {"pool": args.pool}
