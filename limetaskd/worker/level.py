"""The log level of a worker with its pool children, changed while they run.

One byte of memory that the children share: a child looks at it when it begins a task, and nobody is sent anything.
"""

from __future__ import annotations

import logging
import mmap

from limetaskd.worker import logs


class Level:
    """`level`: the name of a level (DEBUG, INFO, WARNING, ERROR, CRITICAL)."""

    def __init__(self, level: str) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._seen = self._memory[0] = self._number(level)

    @staticmethod
    def _number(level: str) -> int:
        number = logging.getLevelNamesMapping().get(level)
        if number is None:
            raise ValueError(f"no such log level: {level!r}")
        return number

    def set(self, level: str) -> None:
        """For this process at once, for its children with their next task. Raises ValueError."""
        number = self._number(level)
        logs.set_level(number)
        self._seen = self._memory[0] = number

    def follow(self) -> None:
        """Take over what another process has set."""
        now = self._memory[0]
        if now != self._seen:
            self._seen = now
            logs.set_level(now)
