"""`shutdown [--now]`: stop the daemon and its workers; returns when the daemon has ended."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace

from limetaskctl.session import Session


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--now", action="store_true", help="do not let running tasks finish; they are requeued")


def run(session: Session, args: Namespace) -> None:
    started = time.monotonic()
    result = session.call("shutdown", {"now": args.now}, waits=True)
    left = None if session.timeout_s is None else max(0.0, session.timeout_s - (time.monotonic() - started))
    session.client.wait_gone(left)
    if session.as_json:
        session.document(result)
    else:
        session.line("limetaskd has stopped")
