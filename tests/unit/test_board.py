"""The scoreboard: what a slot says, also after the death of its writer."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import signal
from pathlib import Path

import pytest

from limetaskd.core.board import (
    BY_DAEMON,
    BY_DAEMON_DONE,
    BY_NOBODY,
    BY_WORKER,
    BY_WORKER_DONE,
    MEMORY_LIMIT,
    TIME_LIMIT,
    Board,
)
from limetaskd.core.process import process_start_ticks


def test_a_new_board_has_all_its_memory(tmp_path: Path) -> None:
    """A hole would be filled at the first look at it; without space that ends the process that looks."""
    board = Board.create(str(tmp_path / "board"), 256)
    status = (tmp_path / "board").stat()
    assert status.st_blocks * 512 >= status.st_size
    assert board.slots == 256
    with pytest.raises(FileNotFoundError):
        Board.create(str(tmp_path / "gone" / "board"), 4)


def test_a_slot_tells_what_runs_and_counts(tmp_path: Path) -> None:
    board = Board.create(str(tmp_path / "board"), 4)
    writer = board.claim()
    assert writer is not None
    writer.begin("id-1", "crm.rename", "q_asap", "42", 5.0, 9.0)
    (slot,) = Board.open(str(tmp_path / "board")).read()
    assert slot.running is not None
    assert (slot.running.id, slot.running.name, slot.running.queue, slot.running.user) == (
        "id-1", "crm.rename", "q_asap", "42",
    )  # fmt: skip
    assert (slot.running.soft_limit_s, slot.running.time_limit_s) == (5.0, 9.0)
    assert slot.pid == os.getpid()
    writer.end(failed=True, latency_ms=3.0, duration_ms=4.0)
    (slot,) = board.read()
    assert slot.running is None
    assert (slot.processed, slot.failed, slot.latency_sum_ms, slot.duration_sum_ms) == (1, 1, 3.0, 4.0)


def test_a_slot_says_for_a_while_that_its_task_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board.create(str(tmp_path / "board"), 2)
    writer = board.claim()
    assert writer is not None

    def waits() -> bool:
        (slot,) = board.read()
        assert slot.running is not None
        return slot.running.waits

    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    writer.begin("id-1", "crm.rename", "q_asap")
    assert not waits()
    now += 1
    writer.wait()
    now += 14
    assert waits()
    now += 2
    assert not waits()
    writer.wait()
    now += 1
    writer.begin("id-2", "crm.rename", "q_asap")  # the next one has not waited
    assert not waits()


def test_a_killed_writer_is_still_named_and_its_slot_is_taken_over_with_its_totals(tmp_path: Path) -> None:
    board = Board.create(str(tmp_path / "board"), 1)
    pid = os.fork()
    if pid == 0:
        writer = board.claim()
        assert writer is not None
        writer.end(failed=False, latency_ms=None, duration_ms=1.0)
        writer.begin("id-2", "crm.crash", "q")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (slot,) = board.read()
    assert slot.running is not None
    assert slot.running.id == "id-2"
    assert process_start_ticks(slot.pid) != slot.start_ticks
    assert board.claim() is not None
    (slot,) = board.read()
    assert (slot.pid, slot.running, slot.processed) == (os.getpid(), None, 1)


def test_claims_end_when_all_slots_are_taken() -> None:
    board = Board.create(None, 2)
    assert board.claim() is not None
    assert board.claim() is not None
    assert board.claim() is None


def test_over_long_names_are_cut_not_spilled() -> None:
    board = Board.create(None, 2)
    first, second = board.claim(), board.claim()
    assert first is not None
    assert second is not None
    second.begin("b", "other", "q")
    first.begin("a" * 500, "n" * 500, "q" * 500, "u" * 500)
    slots = board.read()
    assert slots[0].running is not None
    assert slots[0].running.name == "n" * 192
    assert slots[1].running is not None
    assert slots[1].running.id == "b"


@pytest.mark.parametrize("content", [b"", b"x" * 10, b"x" * 5000, b"LTB1" + b"\xff" * 5000])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "board"
    path.write_bytes(content)
    with pytest.raises(ValueError):
        Board.open(str(path))


def test_a_sentence_belongs_to_one_task_and_is_settled_once(tmp_path: Path) -> None:
    board = Board.create(str(tmp_path / "board"), 1)
    other = Board.open(str(tmp_path / "board"))
    writer = board.claim()
    assert writer is not None
    writer.begin("id-1", "a", "q", early_ack=True, latency_ms=7.0)
    (slot,) = board.read()
    assert slot.running is not None
    assert (slot.running.early_ack, slot.running.latency_ms) == (True, 7.0)
    assert board.sentence(slot) is None
    assert other.condemn(slot, TIME_LIMIT)
    assert not board.condemn(slot, MEMORY_LIMIT)
    assert board.settle(slot, BY_WORKER)
    assert not board.settle(slot, BY_WORKER)
    assert other.settle(slot, BY_DAEMON)  # the worker died in between
    assert not board.settle(slot, BY_WORKER_DONE)
    sentence = board.sentence(slot)
    assert sentence is not None
    assert (sentence.reason, sentence.settled) == (TIME_LIMIT, BY_DAEMON)
    assert board.settle(slot, BY_DAEMON_DONE)
    assert not board.settle(slot, BY_DAEMON)
    first = slot
    writer.end(failed=False, latency_ms=None, duration_ms=1.0)
    writer.begin("id-2", "b", "q")
    (slot,) = board.read()
    assert board.sentence(slot) is None
    assert other.condemn(slot, MEMORY_LIMIT)
    assert not other.settle(first, BY_DAEMON_DONE)  # of the task before it
    sentence = board.sentence(slot)
    assert sentence is not None
    assert (sentence.reason, sentence.settled) == (MEMORY_LIMIT, BY_NOBODY)
    assert not other.settle(dataclasses.replace(slot, running=None), BY_DAEMON)


def test_who_has_patience_does_not_wait_for_a_process_that_was_stopped(tmp_path: Path) -> None:
    board = Board.create(str(tmp_path / "board"), 1)
    writer = board.claim()
    assert writer is not None
    writer.begin("id-1", "a", "q")
    (slot,) = board.read()
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        with (tmp_path / "board").open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.write(told, b"x")
            os.kill(os.getpid(), signal.SIGSTOP)
    try:
        os.read(ready, 1)
        board.patience_s = 0.01
        assert not board.condemn(slot, TIME_LIMIT)
        assert board.sentence(slot) is None
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(told)
    assert board.condemn(slot, TIME_LIMIT)


def test_an_answer_is_for_one_number_of_one_process() -> None:
    board = Board.create(None, 2)
    writer = board.claim()
    assert writer is not None
    assert writer.answer(1) is None
    board.answer(os.getpid() + 1, 1, yes=True)  # somebody else
    assert writer.answer(1) is None
    board.answer(os.getpid(), 1, yes=True)
    writer.begin("task", "t", "q")  # what the slot says of itself is no answer
    assert [writer.answer(number) for number in (1, 2)] == [True, None]
    board.answer(os.getpid(), 2, yes=False)
    assert [writer.answer(number) for number in (2, 3)] == [False, None]


def test_what_is_not_answered_by_the_end_of_answers_is_refused() -> None:
    board = Board.create(None, 1)
    writer = board.claim()
    assert writer is not None
    board.answer(os.getpid(), 2, yes=True)
    board.answer_no_more(3)
    assert [writer.answer(number) for number in (1, 2, 3, 4)] == [False, True, False, None]
