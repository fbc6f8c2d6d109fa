"""The log handlers: one write a record, files that move, descriptors 1 and 2 that follow; claims of slots."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery
from celery.backends.base import Backend

from limetaskd.core.board import Board
from limetaskd.worker.logs import LineHandler, WatchedFile
from limetaskd.worker.scoreboard import Scoreboard


def _record(message: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": message, "levelname": "INFO", "name": "n"})


def test_a_line_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    writes: list[int] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: writes.append(len(data)) or write(fd, data))
    LineHandler(writer).emit(_record("grüße"))
    monkeypatch.undo()
    assert os.read(reader, 100) == "grüße\n".encode()
    assert writes == [len("grüße\n".encode())]
    os.close(reader)
    os.close(writer)


def test_celerys_word_on_a_store_that_is_away_is_one_line_now_and_then(tmp_path: Path) -> None:
    path = tmp_path / "w.log"
    handler = WatchedFile(str(path), own_stdio=False)
    logger = logging.Logger("celery.backends.base")
    logger.addHandler(handler)
    backend = Backend(Celery(set_as_current=False), max_retries=3)
    backend.always_retry, backend.exception_safe_to_retry, backend.max_retries = True, lambda _error: True, 3
    backend._sleep = lambda _amount: None

    def store() -> None:
        raise ConnectionError("refused")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr("celery.backends.base.logger", logger)
        backend._ensure_retryable(store)
    assert path.read_text() == "the result store cannot be used, trying again until it can: ConnectionError: refused\n"


def test_a_renamed_or_removed_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "w.log"
    handler = WatchedFile(str(path), own_stdio=False)
    handler.emit(_record("one"))
    path.rename(tmp_path / "w.log.1")
    handler.emit(_record("two"))
    path.unlink()
    handler.emit(_record("three"))
    path.unlink()
    handler.reopen()
    assert path.read_text() == ""
    handler.emit(_record("four"))
    assert (tmp_path / "w.log.1").read_text() == "one\n"
    assert path.read_text() == "four\n"


def test_a_folder_that_is_gone_loses_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sub" / "w.log"
    path.parent.mkdir()
    handler = WatchedFile(str(path), own_stdio=False)
    kept = tmp_path / "kept.log"
    os.link(path, kept)
    path.unlink()
    path.parent.rmdir()
    handler.emit(_record("still written"))
    assert kept.read_text() == "still written\n"
    assert "No such file" in capsys.readouterr().err


def test_stdio_follows_and_celerys_copies_go(tmp_path: Path) -> None:
    path = tmp_path / "w.log"
    code = (
        "import logging, os, sys\n"
        "from limetaskd.worker import logs\n"
        f"logs.set_up('w:0', level='INFO', path={str(path)!r}, own_stdio=True, max_message_bytes=5)\n"
        "print('printed')\n"
        f"os.rename({str(path)!r}, {str(path) + '.1'!r})\n"
        "logging.getLogger('celery.x').error('é' * 9, extra={'data': {'id': 'i', 'name': 'n', 'args': 'secret'}})\n"
        "print('again')\n"
        "sys.stderr.write('err\\n')\n"
        "logging.getLogger('limetaskd.execution').info('always')\n"
        "logging.getLogger('celery.app.trace').info('never')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert Path(f"{path}.1").read_text() == "printed\n"
    first, second, third, fourth = path.read_text().splitlines()
    assert (second, third) == ("again", "err")
    document = json.loads(first)
    assert (document["message"], document["truncated"]) == ("éé", True)
    assert (document["task_id"], document["task_name"], document["process"]) == ("i", "n", "w:0")
    assert "secret" not in first
    assert json.loads(fourth)["logger"] == "limetaskd.execution"


def test_children_claim_different_slots_and_the_dead_stay_readable(tmp_path: Path) -> None:
    path = str(tmp_path / "board")
    Board.create(path, 4).close()
    board = Scoreboard(path, 2)
    reader, writer = os.pipe()
    pids = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            slot = board.writer()
            assert slot is not None
            slot.begin("t", "n", "q")
            os.write(writer, b"x")
            os._exit(0)
        pids.append(pid)
        os.read(reader, 1)
    for pid in pids:
        os.waitpid(pid, 0)
    slots = board.board.read()
    assert sorted(slot.pid for slot in slots) == sorted(pids)
    assert all(slot.running is not None and slot.running.id == "t" for slot in slots)
    # A newcomer takes the slot that nobody used, before one whose owner died in a task.
    mine = board.writer()
    assert mine is not None
    assert mine.index == 3
    mine.begin("mine", "n", "q")
    assert not board.ended(os.getpid(), "mine")
    mine.end(failed=False, latency_ms=None, duration_ms=1)
    assert board.ended(os.getpid(), "mine")
    assert not board.ended(pids[0], "t")


def test_a_scoreboard_that_cannot_be_used_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "board"
    path.write_bytes(b"garbage")
    board = Scoreboard(str(path), 1)
    assert board.writer() is not None
