"""What processes and daemons leave for the next daemon: every kind of damage is a ValueError that says so."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from limetaskd.core.record import ProcessRecord
from limetaskd.daemon import unstored
from limetaskd.daemon.files import remove_unfinished, write_atomically
from limetaskd.daemon.postmortem import recorded
from limetaskd.daemon.succession import Memory, UnitMemory

RECORD = ProcessRecord("asap:0", "worker", 1, 42, 7, "f", None, "/log", 2, 600.0)
MEMORY = Memory("boot", 3, {"asap:0": UnitMemory(1, (2.0,), True, True)})
END = unstored.End("id-1", "FAILURE", "worker_lost", "signal 9", 1795000000.5)
DEEP = "[" * 100_000


def test_what_is_written_is_read() -> None:
    assert ProcessRecord.from_json(RECORD.to_json()) == RECORD
    assert Memory.from_json(MEMORY.to_json()) == MEMORY
    assert unstored.from_json(unstored.to_json([END, END])) == [END, END]


@pytest.mark.parametrize(
    "change",
    [
        {"shutdown_timeout_s": None}, {"shutdown_timeout_s": "600"}, {"shutdown_timeout_s": -1.0},
        {"shutdown_timeout_s": float("inf")}, {"shutdown_timeout_s": float("nan")}, {"pid": 2**70}, {"pid": 0},
        {"pid": True}, {"pid": 1.5}, {"start_ticks": -1}, {"name": None}, {"place": 7}, {"version": 2}, {"unknown": 1},
    ],
)  # fmt: skip
def test_a_damaged_record(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="process record"):
        ProcessRecord.from_json(json.dumps(json.loads(RECORD.to_json()) | change))


@pytest.mark.parametrize(
    "change",
    [
        {"units": {"a": {"restarts": float("inf"), "deaths": [], "stopped": False}}}, {"units": {"a": None}},
        {"units": []}, {"generation": "x"}, {"version": 0}, {"automatic": {"asap": float("inf")}},
    ],
)  # fmt: skip
def test_a_damaged_memory(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Memory.from_json(json.dumps(json.loads(MEMORY.to_json()) | change))


@pytest.mark.parametrize(
    "change",
    [{"ends": None}, {"ends": [7]}, {"ends": [{"id": "a"}]}, {"ends": [{**vars(END), "at": "soon"}]}, {"version": 2}],
)
def test_a_damaged_list_of_ends(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        unstored.from_json(json.dumps(json.loads(unstored.to_json([END])) | change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", DEEP])
def test_what_is_no_document(text: str) -> None:
    for kind in (ProcessRecord, Memory):
        with pytest.raises(ValueError):
            kind.from_json(text)
    with pytest.raises(ValueError):
        unstored.from_json(text)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError):  # a file cannot replace a folder
        write_atomically(str(target), "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_killed_writers_have_left_goes_once_it_is_old(tmp_path: Path) -> None:
    for name in (".memory.json.1.0.new", ".young.json.1.new", "memory.json"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".folder.1.new").mkdir()
    for name in (".memory.json.1.0.new", ".folder.1.new"):
        os.utime(tmp_path / name, (1, 1))
    remove_unfinished(str(tmp_path), str(tmp_path / "nowhere"))
    assert {path.name for path in tmp_path.iterdir()} == {".folder.1.new", ".young.json.1.new", "memory.json"}


def test_the_end_of_a_task_is_found_in_any_log_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "asap:0.log").write_text('{"task_id": "a"}\n')
    ended = '{"@timestamp": "2026-01-01T00:00:00.500Z", "task_id": "b", "task_outcome": "FAILURE"}\n'
    (tmp_path / "limetaskd.log.1").write_text("no record of b\n" + ended)
    began = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert recorded(str(tmp_path), dict.fromkeys("abc", began)) == {"b"}
    assert recorded(str(tmp_path), {"b": began + 1}) == set()  # of an earlier run
    (tmp_path / "asap:0.log").write_text(ended.replace('"b"', '"gr\u00fcn"'), encoding="utf-8")
    assert recorded(str(tmp_path), {"gr\u00fcn": began}) == {"gr\u00fcn"}
