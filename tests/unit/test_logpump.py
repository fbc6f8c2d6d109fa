"""The log pump, with real files: every line once, over rotation, restarts and raw output."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limetaskd.daemon import logpump
from limetaskd.daemon.logpump import LogPump
from limetaskd.plan.model import LoggingPlan
from tests.support.waiting import wait_until


class Pumped:
    """A folder of logs with a pump that writes to `out`."""

    def __init__(self, folder: Path) -> None:
        self.logs = folder / "log"
        self.logs.mkdir()
        self.out = folder / "out.jsonl"
        self.pump: LogPump | None = None

    def start(self, **options: Any) -> None:
        self.pump = LogPump(str(self.logs), LoggingPlan(destination=str(self.out), **options))
        self.pump.start()

    def stop(self) -> None:
        if self.pump is not None:
            self.pump.close()
            self.pump = None

    def _files(self) -> list[tuple[Path, int]]:
        paths = sorted(self.out.parent.glob("out.jsonl*"), reverse=True)
        return [(path, path.stat().st_ino) for path in paths]

    def _texts(self) -> list[str] | None:
        """None: the files were rotated while they were read."""
        try:
            files = self._files()
            texts = [path.read_text() for path, _ in files]
            return texts if self._files() == files else None
        except FileNotFoundError:
            return None

    def messages(self) -> list[str]:
        while (texts := self._texts()) is None:
            continue
        return [json.loads(line)["message"] for text in texts for line in text.splitlines()]


@pytest.fixture
def pumped(tmp_path: Path) -> Iterator[Pumped]:
    result = Pumped(tmp_path)
    yield result
    result.stop()


def line(message: str) -> str:
    return json.dumps({"@timestamp": "2026-01-01T00:00:00.000Z", "level": "INFO", "message": message}) + "\n"


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_whole_lines_arrive_once_and_raw_output_becomes_records(pumped: Pumped) -> None:
    pumped.start()
    append(pumped.logs / "asap:0.log", line("one") + "printed amqp://u:secret@h\nhalf a li")
    wait_until(lambda: pumped.messages() == ["one", "printed amqp://u:***@h"])
    append(pumped.logs / "asap:0.log", "ne\n")
    wait_until(lambda: pumped.messages() == ["one", "printed amqp://u:***@h", "half a line"])
    last = json.loads(pumped.out.read_text().splitlines()[-1])
    assert (last["process"], last["logger"]) == ("asap:0", "stdout")


def test_a_record_behind_something_printed_is_still_a_record(pumped: Pumped) -> None:
    """print(..., end=""), or a child that dumps its stacks in many writes while another one ends a task."""
    pumped.start()
    append(pumped.logs / "asap:0.log", "no end of line" + line("one") + 'not: {"@timestamp" one\n' + line("two"))
    wait_until(lambda: pumped.messages() == ["no end of line", "one", 'not: {"@timestamp" one', "two"])
    assert [json.loads(text).get("logger") for text in pumped.out.read_text().splitlines()] == [
        "stdout", None, "stdout", None,
    ]  # fmt: skip


def test_nothing_that_a_task_prints_ends_the_pump(pumped: Pumped) -> None:
    pumped.start()
    deep = '{"@timestamp": ' + "[" * 100_000
    append(pumped.logs / "asap:0.log", deep + "\n" + line("after"))
    wait_until(lambda: pumped.messages() == [deep, "after"])


def nested(depth: int) -> str:
    return '{"@timestamp": "t", "message": "deep", "x": ' + "[" * depth + "]" * depth + "}"


@pytest.mark.parametrize("format", ["json", "text"])
def test_no_record_that_a_task_prints_ends_the_pump(pumped: Pumped, format: str) -> None:
    pumped.start(format=format)
    odd = [
        '{"@timestamp": null, "level": null, "process": [], "pid": {}, "message": 7}', '{"@timestamp": 1, "level": {}}'
    ]  # fmt: skip
    deep = [nested(depth) for depth in (100, 700, 990, 1495, 3000, 9996, 40_000)]
    append(pumped.logs / "asap:0.log", "\n".join([*odd, *deep]) + "\n" + line("after"))
    wait_until(lambda: pumped.out.exists() and "after" in pumped.out.read_text())
    assert len(pumped.out.read_text().splitlines()) == len(odd) + len(deep) + 1
    # Nor does it the next one.
    pumped.stop()
    append(pumped.logs / "asap:0.log", odd[0] + "\n" + line("later"))
    pumped.start(format=format)
    wait_until(lambda: "later" in pumped.out.read_text())


def test_a_fault_of_ours_does_not_end_the_pump(pumped: Pumped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logpump, "_PAUSE_AFTER_ERROR_S", 0.01)
    faults = iter([ZeroDivisionError()])

    def drain(_pump: LogPump) -> None:
        for fault in faults:
            raise fault

    monkeypatch.setattr(LogPump, "_drain_old", drain)
    pumped.start()
    append(pumped.logs / "asap:0.log", line("one"))
    wait_until(lambda: pumped.messages() == ["one"])
    assert next(faults, None) is None


ONTO_STDERR = """
import sys
from limetaskd.daemon.logpump import LogPump
from limetaskd.plan.model import LoggingPlan
pump = LogPump(sys.argv[1], LoggingPlan(destination="stderr"))
pump.start()
print("up", flush=True)
sys.stdin.read()
pump.close(60)
"""


def test_a_standard_error_that_does_not_block_loses_no_line(pumped: Pumped) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    room = fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    daemon = subprocess.Popen(
        [sys.executable, "-c", ONTO_STDERR, str(pumped.logs)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=write,
    )  # fmt: skip
    os.close(write)
    assert daemon.stdin is not None
    assert daemon.stdout is not None
    assert daemon.stdout.readline() == b"up\n"
    expected = [f"{number} " + "x" * 600 for number in range(200)]
    append(pumped.logs / "asap:0.log", "".join(map(line, expected)))

    def waiting() -> int:
        return int.from_bytes(fcntl.ioctl(read, termios.FIONREAD, b"\0" * 4), sys.byteorder)

    wait_until(lambda: waiting() > room - 700)  # full before anybody reads
    daemon.stdin.close()
    with open(read) as file:  # noqa: PTH123  a descriptor
        texts = file.read().splitlines()
    assert [json.loads(text)["message"] for text in texts] == expected
    assert daemon.wait(60) == 0


def test_a_line_that_was_written_in_part_does_not_swallow_the_next_one(
    pumped: Pumped, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    room = [10, 0]  # bytes that the disk takes of the first line, each time

    def stingy(descriptor: int, data: memoryview) -> int:
        if room and b"first" in bytes(data):
            taken = room.pop(0)
            if not taken:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, data[:taken])
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", stingy)
    pumped.start()
    append(pumped.logs / "asap:0.log", line("first") + line("second"))
    wait_until(lambda: pumped.out.exists() and "second" in pumped.out.read_text())
    assert json.loads(pumped.out.read_text().splitlines()[1])["message"] == "second"
    assert not room


def test_the_next_pump_goes_on_where_the_last_one_stopped(pumped: Pumped) -> None:
    path = pumped.logs / "asap:0.log"
    pumped.start()
    append(path, line("one"))
    wait_until(lambda: pumped.messages() == ["one"])
    pumped.stop()
    append(path, line("two"))
    append(pumped.logs / "new:0.log", line("three"))
    pumped.start()
    wait_until(lambda: pumped.messages() == ["one", "two", "three"])


def test_the_last_lines_before_a_stop_are_passed_on(pumped: Pumped) -> None:
    for number in range(20):
        pumped.start()
        append(pumped.logs / "asap:0.log", line(f"last {number}"))
        append(pumped.logs / f"new-{number}:0.log", line(f"only {number}"))
        pumped.stop()
    assert len(pumped.messages()) == len(set(pumped.messages())) == 40


def test_a_closed_pump_leaves_no_descriptor(pumped: Pumped) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    pumped.start()
    append(pumped.logs / "asap:0.log", line("one"))
    wait_until(lambda: pumped.messages() == ["one"])
    pumped.stop()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_killed_pump_repeats_nothing(pumped: Pumped) -> None:
    """kill -9 of the process that pumps: the offset of what was passed on is there for the next one."""
    path = pumped.logs / "asap:0.log"
    append(path, line("old"))
    pid = os.fork()
    if pid == 0:
        pumped.start()
        signal.pause()
    wait_until(lambda: pumped.out.exists() and pumped.messages() == ["old"])
    wait_until(lambda: (pumped.logs / ".asap:0.offset").read_text().strip())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    append(path, line("new"))
    pumped.start()
    wait_until(lambda: pumped.messages() == ["old", "new"])


def test_rotation_loses_nothing_also_from_a_writer_that_has_not_noticed(pumped: Pumped) -> None:
    path = pumped.logs / "asap:0.log"
    pumped.start(max_size_bytes=300, keep=2)
    slow = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    sent = []
    for number in range(10):
        sent.append(f"slow {number}")
        os.write(slow, line(sent[-1]).encode())
    wait_until((pumped.logs / "asap:0.log.1").exists)
    os.write(slow, line("late").encode())
    append(path, line("fresh"))
    wait_until(lambda: {"late", "fresh"} <= set(pumped.messages()))
    os.close(slow)
    messages = pumped.messages()
    assert len(messages) == len(set(messages))


def pump_until(pumped: Pumped, expected: list[str], **options: Any) -> None:
    """A pump that is killed (kill -9) when it has passed `expected` on."""
    pid = os.fork()
    if pid == 0:
        pumped.start(**options)
        signal.pause()
    try:
        wait_until(lambda: pumped.out.exists() and pumped.messages() == expected)
        wait_until(lambda: not (pumped.logs / "asap:0.log").exists() or "max_size_bytes" not in options)
        # How far it came is saved right after.
        sizes = {str(path.stat().st_size) for path in pumped.logs.glob("asap:0.log*")}
        wait_until(lambda: sizes <= set((pumped.logs / ".asap:0.offset").read_text().split()))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_next_pump_goes_on_with_a_file_that_was_just_rotated(pumped: Pumped) -> None:
    path = pumped.logs / "asap:0.log"
    append(path, line("one"))
    pump_until(pumped, ["one"], max_size_bytes=10)
    rotated = path.with_name("asap:0.log.1")
    append(rotated, line("two"))  # its writer has not noticed
    append(path, line("three"))
    pump_until(pumped, ["one", "two", "three"])
    append(rotated, line("four"))
    pumped.start()
    wait_until(lambda: pumped.messages() == ["one", "two", "three", "four"])


def test_a_file_that_was_renamed_while_no_pump_ran_is_read_to_its_end(pumped: Pumped) -> None:
    path = pumped.logs / "asap:0.log"
    append(path, line("one"))
    pump_until(pumped, ["one"])
    append(path, line("two"))
    path.rename(path.with_name("asap:0.log.1"))
    append(path, line("three"))
    pumped.start()
    wait_until(lambda: pumped.messages() == ["one", "two", "three"])


def test_what_is_printed_into_a_rotated_file_arrives_however_late(
    pumped: Pumped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limetaskd.daemon.logpump._OLD_FILE_S", 0.0)
    path = pumped.logs / "asap:0.log"
    pumped.start(max_size_bytes=10, keep=20)
    for number in range(3):
        append(path, line(f"rotated {number}"))
        wait_until(lambda: not path.exists())
        append(path.with_name("asap:0.log.1"), line(f"late {number}"))
    expected = [f"{word} {number}" for number in range(3) for word in ("rotated", "late")]
    wait_until(lambda: sorted(pumped.messages()) == sorted(expected))
    wait_until(lambda: pumped.pump is not None and len(pumped.pump._old) == 1)


def test_own_records_go_to_the_own_file_and_to_the_destination(pumped: Pumped) -> None:
    pumped.start()
    assert pumped.pump is not None
    pumped.pump.put(line("hello").strip())
    wait_until(lambda: pumped.messages() == ["hello"])
    assert (pumped.logs / "limetaskd.log").read_text() == line("hello")


def test_text_is_rendered_for_people(pumped: Pumped) -> None:
    pumped.start(format="text")
    append(pumped.logs / "asap:0.log", line("one"))
    wait_until(lambda: pumped.out.exists() and "one" in pumped.out.read_text())
    assert pumped.out.read_text().startswith("2026-01-01T00:00:00.000Z INFO")


def test_reopen_writes_to_a_new_file(pumped: Pumped) -> None:
    pumped.start()
    assert pumped.pump is not None
    pumped.pump.put(line("one").strip())
    wait_until(lambda: pumped.messages() == ["one"])
    pumped.out.rename(pumped.out.with_name("moved"))
    pumped.pump.reopen()
    wait_until(pumped.out.exists)
    pumped.pump.put(line("two").strip())
    wait_until(lambda: pumped.messages() == ["two"])
