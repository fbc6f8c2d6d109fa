"""`restart NAME... [--at-once N]`: rolling; the new worker consumes before the old one drains."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import Any

from limetaskctl.commands._changed import add_names, render

__all__ = ["WAITS", "add_arguments", "params", "render"]

WAITS = True
_MOST = 1000


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= _MOST:
        raise ArgumentTypeError(f"{text!r} is not a number of workers from 1 to {_MOST}")
    return int(text)


def add_arguments(parser: ArgumentParser) -> None:
    add_names(parser)
    parser.add_argument("--at-once", type=_count, metavar="N", help="so many workers at a time (1)")


def params(args: Namespace) -> dict[str, Any]:
    return {"names": args.names} if args.at_once is None else {"names": args.names, "at_once": args.at_once}
