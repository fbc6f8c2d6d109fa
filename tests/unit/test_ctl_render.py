"""Text for people."""

from __future__ import annotations

import json
from typing import Any

import pytest

from limetaskctl.commands import load
from limetaskctl.render import View, clean, duration, log_line, percent, size, state, table, total, yes_no
from limetaskd.core.jsonlog import as_text
from tests.support.ctl_server import examples

PLAIN = View()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (0, "0.0s"), (0.42, "0.4s"), (0.949, "0.9s"), (0.96, "1s"), (59.4, "59s"), (59.6, "1m 0s"),
        (192, "3m 12s"), (3599.7, "1h 0m"), (7384.2, "2h 3m"), (86400, "1d 0h"), (350000, "4d 1h"), (-1, "0.0s"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (157286400, "150.0 MiB"), (3 * 2**40, "3.0 TiB")],
)
def test_sizes(count: int | None, text: str) -> None:
    assert size(count) == text


def test_what_is_unknown_is_a_dash_and_never_nought() -> None:
    assert (percent(None), yes_no(None), clean(None)) == ("-", "-", "-")
    assert total([None, None]) is None
    assert total([None, 2, 3.5]) == 5.5
    assert total([0]) == 0


def test_a_table_without_a_terminal_is_never_cut() -> None:
    text = table(["NAME", "N", "LAST"], [["a", 1, "x" * 500], ["bb", None, "y"]], PLAIN)
    assert text == "NAME  N  LAST\na     1  " + "x" * 500 + "\nbb    -  y"


def test_on_a_terminal_the_last_column_is_cut_to_its_width() -> None:
    lines = table(["NAME", "LAST"], [["a", "x" * 500]], View(width=40)).splitlines()
    assert [len(line) for line in lines] == [10, 40]
    assert lines[1].endswith("…")
    assert table(["NAME", "LAST"], [["a", "short"]], View(width=40)).endswith("short")


def test_figures_stand_to_the_right_and_empty_tables_are_a_head() -> None:
    assert table(["N"], [[5], [100], [None]], PLAIN) == "  N\n  5\n100\n  -"
    assert table(["A", "B"], [], PLAIN) == "A  B"
    ids = table(["ID", "UP"], [["0b7a-1c5e", "2h 3m"], ["4-8", "42s"]], PLAIN)
    assert ids == "ID            UP\n0b7a-1c5e  2h 3m\n4-8          42s"


def test_states_have_colours_on_a_terminal_only() -> None:
    colour = View(colour=True)
    assert state("RUNNING", colour) == "\x1b[32mRUNNING\x1b[0m"
    assert state("RUNNING draining", colour) == "\x1b[32mRUNNING draining\x1b[0m"
    assert state("SOMETHING", colour) == "SOMETHING"
    assert state("FATAL", PLAIN) == "FATAL"
    coloured = table(["STATE", "X"], [["FATAL", "b"]], colour, states=[0])
    assert coloured == "STATE  X\n\x1b[31mFATAL\x1b[0m  b"


def test_nothing_from_outside_drives_the_terminal() -> None:
    assert clean("a\x1b[2J\nb\x9b") == "a\\x1b[2J\\x0ab\\x9b"
    assert log_line("raw \x1b]0;title\x07 line") == "raw \\x1b]0;title\\x07 line"
    assert "\x1b" not in log_line(json.dumps({"message": "x\x1b[31m"}))


@pytest.mark.parametrize(
    "record",
    [
        {"@timestamp": "2026-11-24T10:00:00.123Z", "level": "INFO", "logger": "x", "message": "hello", "host": "h",
         "pid": 7, "process": "asap:0"},
        {"@timestamp": "t", "level": "WARNING", "message": "m", "pid": 7, "process": "p", "task_id": "a", "n": None},
        {"@timestamp": "t", "level": "ERROR", "message": "m", "pid": 7, "process": "p", "exception": "Traceback\n  x"},
        {"message": "only"},
    ],
)  # fmt: skip
def test_log_records_read_as_the_daemon_writes_them_in_text(record: dict[str, Any]) -> None:
    assert log_line(json.dumps(record)) == as_text(record)


@pytest.mark.parametrize("line", ["", "plain", "{broken", "[1]", '"text"', '{"no": "record"}', "[" * 100_000])
def test_lines_that_are_no_records_stay_as_they_are(line: str) -> None:
    assert log_line(line) == line


def rendered(name: str, result: dict[str, Any]) -> str:
    command: Any = load(name)
    return str(command.render(result, PLAIN))


def test_a_status_in_which_nothing_is_known_yet() -> None:
    result = examples()["status"]["result"]
    worker = dict.fromkeys(result["pools"][0]["workers"][0])
    worker |= {"name": "asap:0", "state": "STARTING", "children": []}
    text = rendered(
        "status",
        {
            "daemon": dict.fromkeys(result["daemon"]) | {"state": "STARTING", "helpers": []},
            "pools": [
                {"name": "a", "queues": [], "state": "STARTING", "concurrency": 1, "paused": [], "workers": [worker]}
            ],
            "queues": [{"name": "q", "depth": None, "consumers": None}],
        },
    )
    line = next(line for line in text.splitlines() if line.startswith("  asap:0"))
    assert line.split() == ["asap:0", "STARTING", *["-"] * 8]
    assert "no owner" in text
    assert "no task is running" in text


def test_a_status_works_without_its_optional_keys() -> None:
    result = json.loads(json.dumps(examples()["status"]["result"]))
    for key in ("status", "last_reload_error", "last_upgrade_error", "warnings", "beat", "helpers", "broker"):
        del result["daemon"][key]
    for pool in result["pools"]:
        for worker in pool["workers"]:
            for key in ("reason", "draining"):
                del worker[key]
    assert "asap:0" in rendered("status", result)


def test_a_status_tells_of_failed_reloads_and_warnings() -> None:
    result = json.loads(json.dumps(examples()["status"]["result"]))
    result["daemon"]["last_reload_error"] = "x.yaml: tasks.timezone\nx.yaml: tasks.routing"
    result["daemon"]["last_upgrade_error"] = "cannot import crmtasks"
    result["daemon"]["warnings"] = ["runs as root"]
    lines = rendered("status", result).splitlines()
    assert "the last reload failed: x.yaml: tasks.routing" in lines
    assert "the last upgrade failed: cannot import crmtasks" in lines
    assert "warning: runs as root" in lines


def test_empty_results_say_so() -> None:
    assert rendered("restart", {"changed": []}) == "nothing to change"
    assert rendered("tasks", {"tasks": []}) == "no task is running"
    unchanged = {"changed": False, "generation": 3, "summary": ["nothing changes"]}
    assert rendered("reload", unchanged) == "nothing changed (generation 3)"
