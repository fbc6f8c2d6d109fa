"""`logs [NAME] [-f] [-n N]`: the log of the daemon (no NAME) or of a worker; `--json`: its records as they are."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import Any

from limetaskctl.render import log_line
from limetaskctl.session import Session

WAIT_S = 10.0
_MOST_LINES = 2000  # of one answer


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > _MOST_LINES:
        raise ArgumentTypeError(f"{text!r} is not a number of lines from 0 to {_MOST_LINES}")
    return int(text)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="a worker (asap:0); without it the daemon")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is written from now on")
    parser.add_argument("-n", "--lines", type=_count, default=100, metavar="N", help="the last N lines (100)")


def run(session: Session, args: Namespace) -> None:
    name = {} if args.name is None else {"name": args.name}
    result = session.call("logs", {**name, "lines": args.lines})
    _print(session, result)
    while args.follow:
        result = session.call("logs", {**name, "cursor": result["cursor"], "wait_s": WAIT_S}, longer_s=WAIT_S)
        _print(session, result)


def _print(session: Session, result: dict[str, Any]) -> None:
    if not result["lines"]:
        return
    if session.as_json:
        lines = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in result["lines"]]
    else:
        lines = [log_line(line if isinstance(line, str) else json.dumps(line)) for line in result["lines"]]
    session.line("\n".join(line.rstrip("\n") for line in lines))
