"""Before an upgrade: whether the installed code can be imported as the daemon's processes will import it.

Imports only, in a process of its own: no broker, no record, no log. What task modules start goes when it ends.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from limetaskd.core.memory import descendants
from limetaskd.core.settings import Settings
from limetaskd.errors import LimetaskError

EX_CONFIG = 78
TOO_LONG_S = 600  # nobody waits so long: the daemon that asked is dead


def main(kinds: Sequence[str], text: str) -> int:
    """Import what processes of `kinds` need under the settings `text`. 0, or 78 with the reason as the last line."""
    signal.alarm(TOO_LONG_S)
    try:
        problem = _problem(kinds, text)
        # Threads that a task module has started must not keep this process, but what it cleans up at its exit is
        # cleaned up.
        atexit._run_exitfuncs()
    finally:
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if problem is not None:
        sys.stderr.write(f"limetaskd: {' '.join(problem.split())}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(os.EX_OK if problem is None else EX_CONFIG)


def _problem(kinds: Sequence[str], text: str) -> str | None:
    """Why processes of `kinds` could not run; None: they could."""
    what = "the settings"
    try:
        settings = Settings.from_json(text)
        for kind in kinds:
            what = "limetaskd.worker.image" if kind == "image" else f"limetaskd.{kind}.main"
            importlib.import_module(what)
        if {"worker", "beat", "image"}.intersection(kinds):
            what = "the task modules"
            importlib.import_module("limetaskd.worker.application").build(settings)
            what = importlib.import_module("limetaskd.tasks.conf").transport_module(settings.broker_url)
            importlib.import_module(what)
    except LimetaskError as error:
        return str(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001  code of anybody: it becomes the reason
        return f"cannot import {what}: {type(error).__name__}: {error}"
    return None
