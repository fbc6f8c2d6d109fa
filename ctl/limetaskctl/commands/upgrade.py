"""`upgrade`: replace the daemon's code, the workers running on; returns when the new code answers."""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser, Namespace
from typing import Any

from limetaskctl.errors import CtlError, RefusedError
from limetaskctl.session import Session

PATIENCE_S = 60.0
PAUSE_S = 0.05


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--roll", action="store_true", help="then restart all workers on the new code, one after the other"
    )


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # of another user
    return True


def run(session: Session, args: Namespace) -> None:
    from limetaskctl.client import Client

    pid = int(session.call("upgrade", {}, waits=True)["pid"])
    seen = _lives(pid)  # it may belong to another pid namespace
    deadline = time.monotonic() + PATIENCE_S
    while True:
        # A connection of its own for each try: the old one ends with the old code.
        try:
            status = Client(session.client.endpoint).call("status", {}, timeout_s=5.0)
            if status["daemon"]["state"] == "running":
                break
        except CtlError as error:
            if seen and not _lives(pid):
                raise RefusedError(
                    f"the newer code did not come up, and limetaskd (pid {pid}) has ended: its log says why. "
                    "The workers run on, and the next limetaskd that starts takes them over"
                ) from error
            if time.monotonic() > deadline:
                raise RefusedError(f"the daemon was replaced but does not answer: {error}") from error
        if time.monotonic() > deadline:
            raise RefusedError("the daemon was replaced but is not ready yet: see limetaskctl status")
        time.sleep(PAUSE_S)
    result: dict[str, Any] = {"version": status["daemon"]["version"], "pid": status["daemon"]["pid"], "rolled": []}
    if args.roll:
        workers = [worker for pool in status["pools"] for worker in pool["workers"]]
        # What an operator stopped stays so.
        names = [worker["name"] for worker in workers if worker["state"] != "STOPPED"]
        rolled = Client(session.client.endpoint).call("restart", {"names": names}, waits=True)
        result["rolled"] = [change["name"] for change in rolled["changed"]]
    if session.as_json:
        session.document(result)
    else:
        session.line(f"limetaskd is now version {result['version']} (pid {result['pid']})")
