"""One daemon on one runtime_dir: a record lock on `<runtime_dir>/limetaskd.lock`.

`lockf`, not `flock`: a forked child would inherit a flock and hold it after the daemon's death. Taken before anything
is bound: libzmq would silently take over a socket that another daemon serves.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from limetaskd.errors import AlreadyRunningError

LOCK_VARIABLE = "LIMETASKD_LOCK_FD"  # set for the code that replaces us


class RuntimeLock:
    """Held until `release` or the death of this process."""

    def __init__(self, runtime_dir: str) -> None:
        self._path = Path(runtime_dir) / "limetaskd.lock"
        descriptor = self._inherited()
        if descriptor is None:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "?"
            os.close(descriptor)
            raise AlreadyRunningError(
                f"another limetaskd (pid {holder}) runs on {runtime_dir}: stop it, or give this one a "
                "limetaskd.runtime_dir and a limetaskd.state_dir of its own"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self.descriptor = descriptor

    def _inherited(self) -> int | None:
        """The descriptor that the code before us kept open over `execv`: the lock was never free."""
        text = os.environ.pop(LOCK_VARIABLE, "")
        if not text.isdigit():
            return None
        descriptor = int(text)
        try:
            same = os.path.samestat(os.fstat(descriptor), self._path.stat())
        except OSError:
            same = False
        if not same:  # the folder was emptied, or is another one
            with contextlib.suppress(OSError):
                os.close(descriptor)
            return None
        os.set_inheritable(descriptor, False)
        return descriptor

    def release(self) -> None:
        os.close(self.descriptor)
