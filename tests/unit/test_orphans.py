"""What a dead daemon left behind, told by files and sockets that are real."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from limetaskd.core.process import known_place, process_start_ticks
from limetaskd.core.record import NumberTakenError, ProcessRecord, write_own_record
from limetaskd.core.spec import ProcessSpec
from limetaskd.daemon import orphans
from limetaskd.daemon.files import make_folders
from limetaskd.daemon.launch import Paths
from limetaskd.daemon.orphans import embedded_server, find_all, folders_left, remove_record
from limetaskd.errors import LimetaskError

OURS = ProcessRecord(
    "asap:0", "worker", 1, os.getpid(), process_start_ticks(os.getpid()) or 0, "f", None, "/log", 2, 600.0
)


def write_record(paths: Paths, record: ProcessRecord) -> Path:
    make_folders(paths.processes, paths.boards)
    path = Path(paths.record(record.name, record.generation))
    path.write_text(record.to_json())
    return path


def test_records_of_another_boot_name_nobody(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path), str(tmp_path))
    places = {"old": None, "here": known_place(), "before": "0123abcd-1"}
    files = {}
    for name, place in places.items():
        files[name] = write_record(paths, dataclasses.replace(OURS, name=name, place=place))
    found, remains, _ = find_all(paths)
    assert {orphan.record.name for orphan in found} == {"old", "here"}
    assert remains == []
    assert [name for name, path in files.items() if path.exists()] == ["old", "here"]
    for orphan in found:
        orphan.ref.close()


def test_the_number_of_a_process_whose_record_is_damaged_is_taken(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path), str(tmp_path))
    for number in (9, 10):
        write_record(paths, dataclasses.replace(OURS, generation=number)).write_text("{")
    (Path(paths.processes) / "somebody's.json").touch()
    assert find_all(paths) == ([], [], {"asap:0": 10})


def test_the_number_of_a_process_that_has_no_record_yet_is_taken(tmp_path: Path) -> None:
    """Its daemon makes the scoreboard first."""
    paths = Paths(str(tmp_path), str(tmp_path))
    make_folders(paths.processes, paths.boards)
    Path(paths.board("asap:0", 3)).touch()
    assert find_all(paths) == ([], [], {"asap:0": 3})


def test_who_comes_late_takes_no_number_from_the_living(tmp_path: Path) -> None:
    path = tmp_path / "asap:0.1.json"
    spec = ProcessSpec("worker", "asap:0", "asap", 1, "", "", "/log", record=str(path))
    with subprocess.Popen(["sleep", "60"]) as other:
        ticks = process_start_ticks(other.pid) or 0
        path.write_text(dataclasses.replace(OURS, pid=other.pid, start_ticks=ticks).to_json())
        with pytest.raises(NumberTakenError, match=str(other.pid)):
            write_own_record(spec)
        assert ProcessRecord.from_json(path.read_text()).pid == other.pid
        other.kill()
    write_own_record(spec)
    write_own_record(spec)  # it is its own
    assert ProcessRecord.from_json(path.read_text()).pid == os.getpid()
    assert list(tmp_path.iterdir()) == [path]


def test_the_record_of_the_living_is_not_removed_with_the_dead(tmp_path: Path) -> None:
    path = write_record(Paths(str(tmp_path), str(tmp_path)), OURS)
    remove_record(str(path), OURS.pid + 1)
    assert path.exists()
    remove_record(str(path), OURS.pid)
    assert not path.exists()
    remove_record(str(path), OURS.pid)
    path.write_text("damaged")
    remove_record(str(path), OURS.pid)
    assert path.exists()


def test_who_does_not_know_where_he_is_takes_nobody_for_dead() -> None:
    record = dataclasses.replace(OURS, place="0123abcd-1")
    assert [record.may_live(place) for place in (None, "0123abcd-1", "0123abcd-2")] == [True, True, False]
    assert OURS.may_live("0123abcd-1")


@pytest.mark.parametrize("changed", ["runtime_dir", "state_dir"])
def test_other_folders_are_those_in_which_somebody_lives(tmp_path: Path, changed: str) -> None:
    old = Paths(str(tmp_path / "run"), str(tmp_path / "state"))
    new = dataclasses.replace(old, **{changed: str(tmp_path / "new")})
    make_folders(old.runtime_dir, old.state_dir)
    assert folders_left(new) is None
    for path in old.folders:
        Path(path).write_text(json.dumps({**dataclasses.asdict(old), "config_file": "/c.yaml"}))
    assert folders_left(new) is None  # nobody is there
    record = write_record(old, OURS)
    assert folders_left(old) is None
    assert folders_left(new) == {**dataclasses.asdict(old), "config_file": "/c.yaml"}
    if changed == "runtime_dir":
        # Own processes are in the own folders, whoever else has written into one of them.
        own = write_record(new, OURS)
        assert folders_left(new) is None
        own.unlink()
    write_record(old, dataclasses.replace(OURS, start_ticks=OURS.start_ticks + 1))
    assert folders_left(new) is None
    record.write_text("damaged")
    assert folders_left(new) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe"])
def test_a_damaged_file_of_folders_keeps_nobody_from_starting(tmp_path: Path, content: bytes) -> None:
    paths = Paths(str(tmp_path), str(tmp_path))
    Path(paths.folders[0]).write_bytes(content)
    assert folders_left(paths) is None


def test_only_a_socket_that_nobody_serves_means_that_there_is_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "SERVER_PATIENCE_S", 0.2)
    path = str(tmp_path / "valkey.sock")
    assert embedded_server(path) is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert embedded_server(path) is None  # its server is dead
        listener.listen(0)
        found = embedded_server(path)
        assert found is not None
        assert found.pid == os.getpid()
        found.close()
        # It lives and accepts nobody: its queue, in which that call still is, is full.
        with pytest.raises(LimetaskError, match="may run"):
            embedded_server(path)
    assert embedded_server(path) is None
