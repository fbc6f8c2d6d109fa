"""`scale POOL=N ...`: task slots of pools, live; with `--workers` the worker processes. `POOL=default` undoes it."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import Any

from limetaskctl.commands._changed import render
from limetaskctl.errors import UsageError

__all__ = ["WAITS", "add_arguments", "params", "render"]

WAITS = True
_MOST = 100_000


def _assignment(text: str) -> tuple[str, int | str]:
    """`asap=4` or `asap=default`."""
    pool, found, value = text.rpartition("=")
    if not found or not pool:
        raise ArgumentTypeError(f"{text!r} is not POOL=N or POOL=default")
    if value == "default":
        return pool, value
    if not (value.isascii() and value.isdigit()) or int(value) > _MOST:
        raise ArgumentTypeError(f"{text!r}: N is a number from 0 to {_MOST}, or default")
    return pool, int(value)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "pools", nargs="+", type=_assignment, metavar="POOL=N", help="so many slots; POOL=default as configured"
    )
    parser.add_argument("--workers", action="store_true", help="N counts worker processes, not task slots")
    parser.add_argument("--persist", action="store_true", help="keep it over a restart of the daemon")


def params(args: Namespace) -> dict[str, Any]:
    pools = dict(args.pools)
    if len(pools) != len(args.pools):
        raise UsageError("scale: one pool stands twice")
    return {"pools": pools, "workers": args.workers, "persist": args.persist}
