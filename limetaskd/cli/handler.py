"""`lime-task-handler`: one Celery worker on the configured queues, by hand. See limetaskd/worker/handler.py."""

from __future__ import annotations

import sys

from limetaskd.cli import front


def main() -> None:
    """The console script. Never returns."""
    front.run("handler", "lime-task-handler", sys.argv[1:])
