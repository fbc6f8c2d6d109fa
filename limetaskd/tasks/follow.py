"""Senders follow the routing that the daemon of their host has accepted, else the configuration file.

At each send the places where `accepted.json` may be are looked at (three `stat` calls). Without one, the
configuration file is looked at once a second. A document that cannot be used leaves the last good routing in force.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from limetaskd.core.accepted import ACCEPTED_NAME, Accepted
from limetaskd.core.settings import Settings
from limetaskd.errors import LimetaskError
from limetaskd.tasks.logs import logger

FILE_INTERVAL_S = 1.0
_NAME = "limetaskd.follow"

Signature = tuple[int, int, int] | None  # of a file: changes when its content may have changed; None: not there


@dataclass(frozen=True)
class Source:
    """Where settings came from: the file as it was named (a link may point elsewhere later), and how to read it."""

    path: str
    load: Callable[[], Settings]


def signature(path: str) -> Signature:
    try:
        status = os.stat(path)  # noqa: PTH116 - at each send: a Path would cost as much again
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def candidates(settings: Settings, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Where the accepted routing may be, the likeliest first."""
    folders = [settings.runtime_dir, "/run/limetaskd"]
    if environ.get("XDG_RUNTIME_DIR"):
        folders.append(os.path.join(environ["XDG_RUNTIME_DIR"], "limetaskd"))  # noqa: PTH118
    return tuple(dict.fromkeys(f"{folder}/{ACCEPTED_NAME}" for folder in folders if folder))


class Follower:
    """The settings in force now. Can be used by several threads.

    `source` None: nothing is followed (settings that came from no file).
    """

    def __init__(self, settings: Settings, source: Source | None, environ: Mapping[str, str] | None = None) -> None:
        self._base = settings  # without what a daemon has accepted
        self._source = source
        self._now = settings
        self._lock = threading.Lock()
        self._places: tuple[str, ...] = ()
        self._seen: list[Signature] = []
        self._file_seen: Signature = None
        self._file_next = 0.0
        self._following = False
        if source is not None:
            self._places = candidates(settings, os.environ if environ is None else environ)
            self._seen = [None] * len(self._places)
            self._file_seen = signature(source.path)

    def settings(self) -> Settings:
        """What the next task is routed by."""
        if not self._places:
            return self._now
        seen = [signature(place) for place in self._places]
        if seen != self._seen:
            with self._lock:
                self._look_at_accepted(seen)
        if not self._following and time.monotonic() >= self._file_next:
            with self._lock:
                self._look_at_file()
        return self._now

    def forget_locks(self) -> None:
        """In a forked child: a thread that is no more may have held the lock."""
        self._lock = threading.Lock()

    def _look_at_accepted(self, seen: list[Signature]) -> None:
        for place, found in zip(self._places, seen, strict=True):
            if found is None:
                continue
            try:
                accepted = Accepted.from_json(Path(place).read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue  # removed between the look and the reading: a daemon that stopped
            except (OSError, ValueError) as error:
                logger(_NAME).warning("%s cannot be used (%s): the routing stays as it is", place, error)
                self._seen = seen
                return
            if accepted.follows(self._base):
                self._now = accepted.apply(self._base)
                self._seen, self._following = seen, True
                return
        if self._following:
            # Its daemon stopped: the file on disk counts again, if it can be read.
            self._now = dataclasses.replace(
                self._now,
                broker_url=self._base.broker_url,
                backend_url=self._base.backend_url,
                embedded=self._base.embedded,
            )
            self._file_seen, self._file_next = None, 0.0
        self._seen, self._following = seen, False

    def _look_at_file(self) -> None:
        now = time.monotonic()
        if now < self._file_next or self._source is None:
            return
        self._file_next = now + FILE_INTERVAL_S
        found = signature(self._source.path)
        if found == self._file_seen:
            return
        self._file_seen = found
        try:
            loaded = self._source.load()
        except (LimetaskError, ImportError, OSError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            logger(_NAME).warning("%s cannot be used (%s): the routing stays as it was", self._source.path, first)
            return
        if self._base.embedded:
            # Of the embedded server only its daemon knows the address.
            loaded = dataclasses.replace(
                loaded, broker_url=self._base.broker_url, backend_url=self._base.backend_url, embedded=True
            )
        self._base = self._now = loaded
        self._seen = [None] * len(self._places)  # an accepted routing may belong to this file now
