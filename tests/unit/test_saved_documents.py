"""What processes and daemons leave for the next daemon: every kind of damage is a ValueError that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limetaskd.core.record import ProcessRecord
from limetaskd.daemon.files import write_atomically
from limetaskd.daemon.succession import Memory, UnitMemory

RECORD = ProcessRecord("asap:0", "worker", 1, 42, 7, "f", None, "/log", 2, 600.0)
MEMORY = Memory("boot", 3, {"asap:0": UnitMemory(1, (2.0,), True)})
DEEP = "[" * 100_000


def test_what_is_written_is_read() -> None:
    assert ProcessRecord.from_json(RECORD.to_json()) == RECORD
    assert Memory.from_json(MEMORY.to_json()) == MEMORY


@pytest.mark.parametrize(
    "change",
    [
        {"shutdown_timeout_s": None}, {"shutdown_timeout_s": "600"}, {"shutdown_timeout_s": -1.0},
        {"shutdown_timeout_s": float("inf")}, {"shutdown_timeout_s": float("nan")}, {"pid": 2**70}, {"pid": 0},
        {"pid": True}, {"pid": 1.5}, {"start_ticks": -1}, {"name": None}, {"version": 2}, {"unknown": 1},
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


@pytest.mark.parametrize("text", ["", "{", "[]", "null", DEEP])
def test_what_is_no_document(text: str) -> None:
    for kind in (ProcessRecord, Memory):
        with pytest.raises(ValueError):
            kind.from_json(text)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OSError):  # a file cannot replace a folder
        write_atomically(str(target), "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
