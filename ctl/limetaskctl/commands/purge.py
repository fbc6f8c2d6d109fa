"""`purge QUEUE`: drop every task that waits in a queue; asks before."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

from limetaskctl.errors import CtlError
from limetaskctl.render import clean
from limetaskctl.session import Session


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("queue", metavar="QUEUE", help="a queue, by its configured or actual name")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(session: Session, args: Namespace) -> None:
    if not args.yes:
        _ask(args.queue)
    result = session.call("purge", {"queue": args.queue}, waits=True)
    if session.as_json:
        session.document(result)
        return
    count = result["purged"]
    dropped = "tasks dropped" if count is None else "1 task dropped" if count == 1 else f"{count} tasks dropped"
    session.line(f"{clean(result['queue'])}: {dropped}")


def _ask(queue: str) -> None:
    """Raises CtlError unless a person at a terminal says yes."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CtlError("purge drops every waiting task and can only ask at a terminal: say --yes")
    # On stderr: stdout holds the result alone.
    sys.stderr.write(f"Drop every task that waits in {clean(queue)}? They are lost. [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise CtlError("nothing purged")
