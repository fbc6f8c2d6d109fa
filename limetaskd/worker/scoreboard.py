"""The worker's side of the scoreboard: who claims which slot, and the marks around each task.

A pool child claims when it starts, a thread with its first task. Claims are made under a file lock that works between
processes; the marks of a running task take no lock and send no message.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading

from limetaskd.core.board import Board, Slot, SlotWriter
from limetaskd.core.process import process_start_ticks

logger = logging.getLogger(__name__)
_SLOTS_BY_HAND = 256


class Scoreboard:
    """`path` None, or a file that cannot be used: anonymous memory, shared with the pool children."""

    def __init__(self, path: str | None, concurrency: int | None) -> None:
        self.board = self._open(path, concurrency)
        # POSIX locks belong to a process, so children may share the descriptor; threads need one more.
        self._lock = os.memfd_create("limetaskd-board")
        self._threads = threading.Lock()
        self._own = threading.local()
        self._pid = os.getpid()

    @staticmethod
    def _open(path: str | None, concurrency: int | None) -> Board:
        if path is not None:
            try:
                return Board.open(path)
            except (OSError, ValueError) as error:
                logger.error("the scoreboard %s cannot be used (%s): what runs here stays invisible", path, error)
        return Board.create(None, max(_SLOTS_BY_HAND, 4 * (concurrency or 0)))

    def writer(self) -> SlotWriter | None:
        """The slot of this process (or thread), claimed at the first call; None when all are taken."""
        own = self._own
        if getattr(own, "pid", None) != os.getpid():  # not claimed yet, or inherited over a fork
            own.pid = os.getpid()
            own.writer = self._claim()
            if own.writer is None:
                logger.error("no free slot on the scoreboard: what runs here stays invisible")
        writer: SlotWriter | None = own.writer
        return writer

    def _claim(self) -> SlotWriter | None:
        with self._threads:
            fcntl.lockf(self._lock, fcntl.LOCK_EX)
            try:
                for index in self._candidates():
                    writer = self.board.claim(index=index)
                    if writer is not None:
                        return writer
                return None
            finally:
                fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def _candidates(self) -> list[int]:
        """Fresh slots and those of processes that ended idle first: what a dead child ran stays readable longest."""
        fresh: list[int] = []
        idle: list[int] = []
        died_running: list[tuple[float, int]] = []
        for index in range(self.board.slots):
            slot = self.board.read_slot(index)
            if slot is None:
                fresh.append(index)
            elif slot.running is None:
                idle.append(index)
            else:
                died_running.append((slot.running.started, index))
        return [*idle, *fresh, *(index for _, index in sorted(died_running))]

    def ended(self, pid: int | None, task_id: str) -> bool:
        """Whether that process (alive or dead) has ended this task and recorded it, and nothing since in that slot."""
        if not pid:
            return False
        ticks = process_start_ticks(pid)
        return any(
            slot.pid == pid and slot.ended_id == task_id[:64] and ticks in (None, slot.start_ticks)
            for slot in self.board.read()
        )

    def begun(self, pid: int, task_id: str) -> bool:
        """Whether that process (alive or dead) has begun this task, and no other since in that slot."""
        ticks = process_start_ticks(pid)
        return any(
            slot.pid == pid
            and ticks in (None, slot.start_ticks)
            and task_id[:64] in (slot.ended_id, slot.running.id if slot.running else None)
            for slot in self.board.read()
        )

    def running(self, pid: int | None, task_id: str) -> Slot | None:
        """The slot where that process (alive or dead) has begun this task and not ended it."""
        if not pid:
            return None
        for slot in self.board.read():
            if slot.pid == pid and slot.running is not None and slot.running.id == task_id[:64]:
                return slot
        return None
