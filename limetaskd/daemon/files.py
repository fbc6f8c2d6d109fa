"""Small files of the daemon, written whole or not at all. Each call may wait for the disk: run it in a thread."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from pathlib import Path

log = logging.getLogger("limetaskd.files")

_numbers = itertools.count()
_WRITING_S = 60.0


def write_atomically(path: str, text: str, mode: int = 0o600) -> None:
    """Replace `path` by `text`; a reader sees the old or the new content, never a part."""
    target = Path(path)
    # Two threads may write one file at once: each has a name of its own until the rename.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{next(_numbers)}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        try:
            os.fchmod(descriptor, mode)
            data = memoryview(text.encode())
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)
        temporary.rename(target)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk is not to be filled by tries
        raise


def remove_unfinished(*folders: str) -> None:
    """Remove what writers that were killed have left of their writing. What is young may still be written."""
    oldest = time.time() - _WRITING_S
    for folder in folders:
        for path in Path(folder).glob(".*.[0-9]*.new"):
            try:
                if path.is_file() and path.stat().st_mtime < oldest:
                    path.unlink()
            except OSError as error:
                log.debug("%s stays: %s", path, error)


def remove(path: str) -> None:
    """Remove `path` if it is there."""
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()


def make_folders(*paths: str, mode: int = 0o750) -> None:
    for path in paths:
        Path(path).mkdir(mode=mode, parents=True, exist_ok=True)


def exists(path: str) -> bool:
    return Path(path).exists()


def read(path: str) -> str | None:
    """The text of `path`; None when it is not there. Raises ValueError when it is no text."""
    try:
        return Path(path).read_text()
    except FileNotFoundError:
        return None


def set_aside(path: str) -> str:
    """Rename a file that cannot be used, so that it is neither read again nor lost; returns its new name."""
    aside = f"{path}.damaged"
    Path(path).rename(aside)
    return aside
