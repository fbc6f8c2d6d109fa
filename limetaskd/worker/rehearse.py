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
    try:
        settings = Settings.from_json(text)
    except ValueError as error:
        return str(error)
    modules = ["limetaskd.worker.image" if kind == "image" else f"limetaskd.{kind}.main" for kind in kinds]
    for name in modules:
        problem = _import(name)
        if problem is not None:
            return problem
    if not {"worker", "beat", "image"}.intersection(kinds):
        return None
    from limetaskd.worker import application

    try:
        application.build(settings)
    except LimetaskError as error:
        return str(error)
    if "image" in kinds:
        from limetaskd.worker.image import PRELOAD

        for name in PRELOAD:
            problem = _import(name)
            if problem is not None:
                return problem
    return None


def _import(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001  any code of theirs: it becomes the reason
        return f"cannot import {name}: {type(error).__name__}: {error}"
    return None
