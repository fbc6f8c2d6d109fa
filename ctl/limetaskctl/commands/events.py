"""`events`: state changes from now on, a JSON object a line, with and without `--json`."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from typing import Any

from limetaskctl.session import Session

WAIT_S = 10.0


def add_arguments(parser: ArgumentParser) -> None:
    """No arguments."""


def run(session: Session, _args: Namespace) -> None:
    cursor: Any = None
    while True:
        result = session.call("events", {"cursor": cursor, "wait_s": WAIT_S}, longer_s=WAIT_S)
        cursor = result["cursor"]
        if result["events"]:
            session.line("\n".join(json.dumps(event, ensure_ascii=False) for event in result["events"]))
