"""`limefu tasks routes`: the configured routing. See limetaskd/worker/routes.py."""

from __future__ import annotations

import sys

from limetaskd.cli import front


def main() -> None:
    """The console script. Never returns."""
    front.run("limefu", "limefu", sys.argv[1:])
