"""The scoreboard: what each slot of a worker does right now, in memory that outlives the slot's process.

One memory-mapped file per worker process (`<runtime_dir>/boards/<name>.<generation>`), made by the daemon; a worker
run by hand uses anonymous memory. Pool children (or threads) write their own slot, anybody reads. No message, no
lock: a sequence number that is odd while its slot is being written lets a reader see only whole records.

    header  64 bytes: magic "LTB1", u32 version, u32 slots, u64 the last number that is answered no more
    slot   768 bytes: see `_SLOT`; at `_WAITED_AT` when it last waited for the result store; from `_SENTENCE_AT` on
           `_SENTENCE`; at `_ANSWER_AT` u64 the last answer

The writer of a slot is one process (or thread) only. Slots are claimed by `claim` under a file lock in the worker.

The sentence is not the writer's: whoever ends the task of a slot from outside writes it before it kills, so that the
worker's main process, which sees a dead child, and the daemon, which may be the only one left, agree on why. Who then
does the rest (record, result, acknowledgement) is settled by `settle`, once.

Nor is the answer: by it the main process tells a pool child whether a task may begin, see `limetaskd.worker.once`.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from limetaskd.core.process import process_start_ticks

BOARD_VERSION = 1
_MAGIC = b"LTB1"
_HEADER = struct.Struct("<4sII52x")
# sequence, pid, process start (clock ticks since boot), claimed, started (unix s, 0: idle), soft limit s, hard limit s
# (0: none), processed, failed, latency sum ms, duration sum ms, task id, task name, queue, user, flags, started
# (monotonic s), latency ms of the running task (NaN: unknown), private memory of the process right after its fork.
# A board of an older writer has zeros there, or stale bytes of nobody: it was made of zeros.
_SEQUENCE = struct.Struct("<Q")
_SLOT = struct.Struct("<QQQQdddQQdd64s192s192s128sQddQ")
_HEAD = struct.Struct("<QQQQdd")
# started (unix s, which task is meant), reason, who settled it
_SENTENCE = struct.Struct("<dII")
_SENTENCE_AT = 720
# In one move of the processor, unlike the standard sizes: the other process sees all of it or nothing.
_NUMBER = struct.Struct("@Q")
_UNANSWERED_AT = 16
_WAITED = struct.Struct("@d")  # monotonic s, 0: never
_WAITED_AT = 704
_ANSWER_AT = 736
_NO = 1 << 63  # beside the number
SLOT_BYTES = 768
assert _SLOT.size <= _WAITED_AT
assert _WAITED_AT + _WAITED.size <= _SENTENCE_AT
assert _SENTENCE_AT + _SENTENCE.size <= _ANSWER_AT
assert _ANSWER_AT + _NUMBER.size <= SLOT_BYTES
_READ_TRIES = 50
_LOCK_STEP_S = 0.001
_EARLY_ACK = 1
_WAITS_S = 15.0  # whoever waits for the result store says so again within this time

# Why a task was ended: `task_failure_reason`. The position is what stands in the sentence.
TIME_LIMIT = "time_limit"
MEMORY_LIMIT = "memory_limit"
OPERATOR = "operator"
WORKER_LOST = "worker_lost"
REASONS = (None, TIME_LIMIT, MEMORY_LIMIT, OPERATOR, WORKER_LOST)

BY_NOBODY = 0
BY_WORKER = 1  # the main process has begun with it
BY_WORKER_DONE = 2
BY_DAEMON = 3  # the daemon has begun with it
BY_DAEMON_DONE = 4
_TAKEN_OVER = {(BY_WORKER, BY_WORKER_DONE), (BY_WORKER, BY_DAEMON), (BY_DAEMON, BY_DAEMON_DONE)}


@dataclass(frozen=True)
class Running:
    """The task that a slot runs. Times: unix seconds; limits in seconds."""

    id: str
    name: str
    queue: str
    user: str | None
    started: float
    soft_limit_s: float | None
    time_limit_s: float | None
    # Its message was acknowledged before it began: nobody will deliver it again.
    early_ack: bool = False
    started_monotonic: float = 0.0  # the clock of this boot, the same in all processes; 0: not told
    latency_ms: float | None = None
    waits: bool = False  # when it was read: for the result store


@dataclass(frozen=True)
class Sentence:
    """Why the task that began at `started` (unix s) was ended, and who dealt with its end (BY_...)."""

    started: float
    reason: str | None
    settled: int


@dataclass(frozen=True)
class Slot:
    """One slot, read whole. `pid` is the process (for threads: of the worker) that owns it."""

    index: int
    pid: int
    start_ticks: int
    running: Running | None
    processed: int
    failed: int
    latency_sum_ms: float
    duration_sum_ms: float
    # The task that ended here last and has its record, while nothing runs: a child that dies now has done it.
    ended_id: str | None = None
    base_bytes: int = 0  # private memory of the process right after its fork; 0: not told


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")


class Board:
    """A scoreboard in a file or in anonymous memory.

    `patience_s`: how long a sentence may wait for another process that writes one, None: for ever. The daemon must not
    wait for a process that it has stopped.
    """

    patience_s: float | None = None

    def __init__(self, memory: mmap.mmap, path: str | None = None) -> None:
        magic, version, slots = _HEADER.unpack_from(memory, 0)
        if magic != _MAGIC or version != BOARD_VERSION or len(memory) < _HEADER.size + slots * SLOT_BYTES:
            raise ValueError(f"not a scoreboard of version {BOARD_VERSION}")
        self._memory = memory
        self.path = path
        self.slots = int(slots)

    @classmethod
    def create(cls, path: str | None, slots: int) -> Board:
        """Make a scoreboard with room for `slots`; `path` None: anonymous memory, shared with forked children.

        Raises OSError.
        """
        size = _HEADER.size + slots * SLOT_BYTES
        header = _HEADER.pack(_MAGIC, BOARD_VERSION, slots)
        if path is None:
            memory = mmap.mmap(-1, size)
            memory[: _HEADER.size] = header
            return cls(memory)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            # All of it now: on a file system without space, the first look at a hole would end its reader (SIGBUS).
            os.posix_fallocate(descriptor, 0, size)
            os.pwrite(descriptor, header, 0)
            return cls(mmap.mmap(descriptor, size), path)
        except OSError:
            Path(path).unlink()
            raise
        finally:
            os.close(descriptor)

    @classmethod
    def open(cls, path: str) -> Board:
        """Raises OSError when it is not there, ValueError when it is not a scoreboard."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if size < _HEADER.size:
                raise ValueError("truncated scoreboard")
            return cls(mmap.mmap(descriptor, size), path)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        self._memory.close()

    def _offset(self, index: int) -> int:
        return _HEADER.size + index * SLOT_BYTES

    def read(self) -> list[Slot]:
        """Every claimed slot."""
        return [slot for index in range(self.slots) if (slot := self.read_slot(index)) is not None]

    def read_slot(self, index: int) -> Slot | None:
        """One slot; None when nobody claimed it.

        A slot whose writer died inside a write stays odd for ever: after some tries it is read as it is.
        """
        offset = self._offset(index)
        for _ in range(_READ_TRIES):
            before = _SEQUENCE.unpack_from(self._memory, offset)[0]
            raw = bytes(self._memory[offset : offset + _SLOT.size])
            if before % 2 == 0 and _SEQUENCE.unpack_from(self._memory, offset)[0] == before:
                break
        fields = _SLOT.unpack(raw)
        _, pid, ticks, claimed, started, soft, hard, processed, failed, latency, duration = fields[:11]
        if not claimed:
            return None
        task_id, name, queue, user = (_text(item) for item in fields[11:15])
        flags, monotonic, waited, base = fields[15:]
        running = None
        if started:
            running = Running(
                task_id, name, queue, user or None, started, soft or None, hard or None,
                bool(flags & _EARLY_ACK), monotonic, None if math.isnan(waited) else waited,
                self._waits(offset, monotonic),
            )  # fmt: skip
        ended_id = None if running else task_id or None
        return Slot(index, pid, ticks, running, processed, failed, latency, duration, ended_id, base)

    def _waits(self, offset: int, started: float) -> bool:
        at: float = _WAITED.unpack_from(self._memory, offset + _WAITED_AT)[0]
        return at >= started and time.monotonic() - at < _WAITS_S

    def glance(self, index: int) -> tuple[int, int, float]:
        """(sequence, claimed, started) of a slot: tells a watcher, for next to nothing, whether to read it anew."""
        sequence, _, _, claimed, started, _ = _HEAD.unpack_from(self._memory, self._offset(index))
        return sequence, claimed, started

    # The sentence.

    def sentence(self, slot: Slot) -> Sentence | None:
        """What was decided about the task that `slot` runs; None: nothing."""
        if slot.running is None:
            return None
        started, reason, settled = _SENTENCE.unpack_from(self._memory, self._offset(slot.index) + _SENTENCE_AT)
        if started != slot.running.started or reason >= len(REASONS):
            return None
        return Sentence(started, REASONS[reason], settled)

    def condemn(self, slot: Slot, reason: str) -> bool:
        """Write why the task of `slot` is about to be ended, before it is. False: somebody was there first."""
        return self._write_sentence(slot, lambda known: known is None, reason, BY_NOBODY)

    def settle(self, slot: Slot, who: int) -> bool:
        """Take over what is left to do for the ended task of `slot`; False when somebody else has.

        A worker that died between BY_WORKER and BY_WORKER_DONE has not done it: the daemon may take that over. A daemon
        that died between BY_DAEMON and BY_DAEMON_DONE neither: that is for the next one.
        """

        def free(known: Sentence | None) -> bool:
            settled = known.settled if known is not None else BY_NOBODY
            # The daemon may be done long after the slot has gone on to another task, whose sentence that is not.
            return (settled, who) in _TAKEN_OVER or (settled == BY_NOBODY and who != BY_DAEMON_DONE)

        return self._write_sentence(slot, free, None, who)

    def _write_sentence(
        self, slot: Slot, allowed: Callable[[Sentence | None], bool], reason: str | None, who: int
    ) -> bool:
        """Under a lock between processes, so that two never both believe that they were first."""
        if slot.running is None:
            return False
        offset = self._offset(slot.index) + _SENTENCE_AT
        descriptor = None
        if self.path is not None:
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                descriptor = None  # removed with the death of the worker: we are alone with the memory
        try:
            if descriptor is not None:
                self._lock(descriptor, offset)
            known = self.sentence(slot)
            if not allowed(known):
                return False
            code = REASONS.index(reason if reason is not None else known.reason if known else None)
            _SENTENCE.pack_into(self._memory, offset, slot.running.started, code, who)
            return True
        except BlockingIOError:
            return False  # for now it is in the hands of somebody else
        finally:
            if descriptor is not None:
                os.close(descriptor)  # which frees the lock

    def _lock(self, descriptor: int, offset: int) -> None:
        """Raises BlockingIOError when patience ends."""
        if self.patience_s is None:
            fcntl.lockf(descriptor, fcntl.LOCK_EX, _SENTENCE.size, offset)
            return
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _SENTENCE.size, offset)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_LOCK_STEP_S)
            else:
                return

    # The answer.

    def answer(self, pid: int, number: int, *, yes: bool) -> None:
        """Tell the process `pid` whether what it asks with `number` (of one process, growing) is granted."""
        for index in range(self.slots):
            _, owner, _, claimed, _, _ = _HEAD.unpack_from(self._memory, self._offset(index))
            if not claimed:
                return  # they are claimed from the first on
            if owner == pid:
                _NUMBER.pack_into(self._memory, self._offset(index) + _ANSWER_AT, number if yes else number | _NO)

    def answer_no_more(self, number: int) -> None:
        """Whoever asks with `number` or a lower one, and has no answer yet, gets none."""
        _NUMBER.pack_into(self._memory, _UNANSWERED_AT, number)

    def claim(self, *, index: int | None = None) -> SlotWriter | None:
        """Take a free slot (or `index`) for the calling process; None when all are taken.

        The caller holds whatever lock keeps two processes of one worker from claiming at once.
        """
        for candidate in range(self.slots) if index is None else (index,):
            slot = self.read_slot(candidate)
            if slot is None or process_start_ticks(slot.pid) != slot.start_ticks:
                return SlotWriter(self._memory, self._offset(candidate), candidate, keep=slot)
        return None


class SlotWriter:
    """Writes one slot. `begin` and `end` are all that a task pays."""

    def __init__(self, memory: mmap.mmap, offset: int, index: int, keep: Slot | None = None) -> None:
        self._memory = memory
        self._offset = offset
        self.index = index
        self._sequence = _SEQUENCE.unpack_from(memory, offset)[0] & ~1
        self._pid = os.getpid()
        self._ticks = process_start_ticks(self._pid) or 0
        # Totals of the worker survive the death of a child: its successor in the slot goes on counting.
        self._processed = keep.processed if keep else 0
        self._failed = keep.failed if keep else 0
        self._latency = keep.latency_sum_ms if keep else 0.0
        self._duration = keep.duration_sum_ms if keep else 0.0
        self._task_id = b""
        self._base = 0
        self._write(0.0, 0.0, 0.0, b"", b"", b"", b"")

    def _write(
        self,
        started: float,
        soft: float,
        hard: float,
        task_id: bytes,
        name: bytes,
        queue: bytes,
        user: bytes,
        flags: int = 0,
        monotonic: float = 0.0,
        latency: float = math.nan,
    ) -> None:
        self._sequence += 1
        _SEQUENCE.pack_into(self._memory, self._offset, self._sequence)
        self._sequence += 1
        packed = _SLOT.pack(
            self._sequence - 1, self._pid, self._ticks, 1, started, soft, hard,
            self._processed, self._failed, self._latency, self._duration, task_id, name, queue, user,
            flags, monotonic, latency, self._base,
        )  # fmt: skip
        self._memory[self._offset : self._offset + _SLOT.size] = packed
        _SEQUENCE.pack_into(self._memory, self._offset, self._sequence)

    def answer(self, number: int) -> bool | None:
        """What the main process says to `number`; None: nothing yet."""
        # In this order: an answer that was given before the end of answers counts.
        over = _NUMBER.unpack_from(self._memory, _UNANSWERED_AT)[0] >= number
        answer = _NUMBER.unpack_from(self._memory, self._offset + _ANSWER_AT)[0]
        if answer == number:
            return True
        return False if over or answer == number | _NO else None

    def weigh(self, base_bytes: int) -> None:
        """Note the private memory of this process, right after its fork."""
        self._base = base_bytes
        self._write(0.0, 0.0, 0.0, b"", b"", b"", b"")

    def begin(
        self,
        task_id: str,
        name: str,
        queue: str,
        user: str | None = None,
        soft_limit_s: float | None = None,
        time_limit_s: float | None = None,
        *,
        early_ack: bool = False,
        latency_ms: float | None = None,
    ) -> None:
        """This slot starts a task now."""
        self._task_id = task_id.encode()
        self._write(
            time.time(), soft_limit_s or 0.0, time_limit_s or 0.0,
            self._task_id, name.encode(), queue.encode(), (user or "").encode(),
            _EARLY_ACK if early_ack else 0, time.monotonic(), math.nan if latency_ms is None else latency_ms,
        )  # fmt: skip

    def wait(self) -> None:
        """The task of this slot has just met a result store that is away, and will try again."""
        _WAITED.pack_into(self._memory, self._offset + _WAITED_AT, time.monotonic())

    def end(self, *, failed: bool, latency_ms: float | None, duration_ms: float) -> None:
        """The task of this slot has ended."""
        self._processed += 1
        self._failed += failed
        self._latency += latency_ms or 0.0
        self._duration += duration_ms
        self._write(0.0, 0.0, 0.0, self._task_id, b"", b"", b"")

    def abandon(self) -> None:
        """The task left this slot without an end (a retry, a rejected message): idle, not counted."""
        self._write(0.0, 0.0, 0.0, b"", b"", b"", b"")
