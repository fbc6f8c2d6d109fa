"""The files of the application's modules: whether they still are what this process has imported."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from limetaskd.core.process import process_start_ticks
from limetaskd.tasks.follow import Signature, signature

_CLOCK_GRAIN_NS = 20_000_000  # the clock of files and of births is that much behind at most
_OF_NO_FILE = (0, 0, 0)


def imported() -> dict[str, Signature]:
    """Path -> signature of every module of the application: all but the interpreter's own library.

    A file that was changed while this process imported may be imported in its old form: it counts as changed.
    """
    own = str(Path(os.__file__).parent) + os.sep
    born = _born_ns()
    paths = (_file_of(module) for module in list(sys.modules.values()))
    return {
        path: _OF_NO_FILE if _changed_since(path, born) else signature(path)
        for path in dict.fromkeys(paths)
        if isinstance(path, str) and not (path.startswith(own) and "site-packages" not in path)
    }


def _file_of(module: object) -> object:
    """`__file__`, without asking the module: a lazy one would load."""
    try:
        return object.__getattribute__(module, "__dict__").get("__file__")
    except AttributeError:
        return None  # something else that was put among the modules


def changed(known: dict[str, Signature]) -> list[str]:
    """The paths of `imported` whose files are others by now."""
    return [path for path, was in known.items() if signature(path) != was]


def _born_ns() -> int:
    """When this process began, on the clock of files: not later than that."""
    ticks = process_start_ticks(os.getpid()) or 0
    age_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return time.time_ns() - age_ns - _CLOCK_GRAIN_NS


def _changed_since(path: str, moment_ns: int) -> bool:
    try:
        status = os.stat(path)  # noqa: PTH116  hundreds of them
    except OSError:
        return False
    # The time of a deployment is that of the inode: a copy may bring its modification time along.
    return max(status.st_mtime_ns, status.st_ctime_ns) >= moment_ns
