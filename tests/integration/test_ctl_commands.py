"""limetaskctl as a process, against a real ROUTER socket: every command and what it prints."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from limetaskctl.commands import SUMMARIES
from limetaskctl.parser import find_command
from limetaskd.version import __version__
from tests.support import ctl as support
from tests.support.ctl import DEADLINE_S, assert_fails, ctl, in_terminal, start, start_daemon
from tests.support.ctl_server import ControlServer, examples, result
from tests.support.waiting import wait_until

folder = support.folder
server = support.server

# Command -> the words that give the parameters of its example in docs/control-protocol.md.
WORDS = {
    "status": "",
    "start": "background",
    "stop": "background:1",
    "restart": "asap:0 background",
    "scale": "asap=4 background=default",
    "reload": "",
    "pause": "lime_task_queue_asap --reason=maintenance",
    "resume": "lime_task_queue_asap",
    "drain": "asap",
    "why": "asap",
    "tasks": "",
    "kill": "0b7a1c5e-8a52-4f0e-9c55-6f2d3c1b7e10",
    "revoke": "0b7a1c5e-8a52-4f0e-9c55-6f2d3c1b7e10",
    "quarantine": "list",
    "show": "asap:0",
    "routes": "",
    "queues": "",
    "purge": "lime_task_queue_background --yes",
    "logs": "asap:0",
}


# Every command.


@pytest.mark.parametrize("name", WORDS)
def test_a_command_calls_its_method_with_the_documented_parameters(server: ControlServer, name: str) -> None:
    done = ctl(server, f"{name} {WORDS[name]}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n")
    (request,) = server.requests
    client = request.pop("client")
    assert (client["uid"], client["user"]) == (os.getuid(), pwd.getpwuid(os.getuid()).pw_name)
    assert request == {"jsonrpc": "2.0", "id": 1, "method": name, "params": examples()[name]["params"]}


@pytest.mark.parametrize("name", sorted(WORDS.keys() - {"logs"}))
def test_json_prints_the_result_as_it_is(server: ControlServer, name: str) -> None:
    done = ctl(server, f"{name} {WORDS[name]} --json")
    assert (done.returncode, done.stderr) == (0, "")
    value = examples()[name]["result"]
    assert done.stdout == json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def test_the_document_describes_every_command() -> None:
    assert set(examples()) == set(SUMMARIES) - {"completion"}


def test_status_shows_daemon_pools_workers_tasks_and_queues(server: ControlServer) -> None:
    lines = ctl(server, "status").stdout.splitlines()
    assert lines[0].startswith("limetaskd 0.1.0 RUNNING  pid 4711  up 2h 3m  generation 2")
    workers = {line.split()[0]: line.split() for line in lines if line.startswith("  ")}
    assert workers["asap:0"] == ["asap:0", "RUNNING", "yes", "4720", "2h", "3m", "0", "2", "1", "150.0", "MiB", "12.5%"]
    assert workers["background:1"] == ["background:1", "BACKOFF", "no", "-", "-", "2", "2", "-", "-", "-"]
    assert "background:1: killed by SIGKILL" in lines
    assert any("crm.tasks.rename" in line and "4732" in line and "0.4s" in line for line in lines)
    assert ["prod_lime_task_queue_scheduled", "-", "-"] in [line.split() for line in lines]


def test_log_records_are_readable_and_raw_with_json(server: ControlServer) -> None:
    lines = examples()["logs"]["result"]["lines"]
    assert ctl(server, "logs asap:0 --json").stdout == "\n".join(lines) + "\n"
    text = ctl(server, "logs asap:0").stdout.splitlines()
    assert text[0].startswith("2026-11-24T10:00:00.123Z INFO     asap:0[4732] task succeeded task_name=")
    assert text[1] == "a line that a task printed"


def test_logs_of_the_daemon_and_an_empty_log(server: ControlServer) -> None:
    server.answer("logs", {"lines": [], "cursor": "0:0"})
    done = ctl(server, "logs -n 5")
    assert (done.returncode, done.stdout) == (0, "")
    assert server.requests[0]["params"] == {"lines": 5}


def test_logs_follow_the_cursor(server: ControlServer) -> None:
    released = threading.Event()

    def answer(request: dict[str, Any]) -> list[bytes]:
        number = len(server.requests)
        if number == 3:
            released.wait(DEADLINE_S)
        # The second answer is empty: nothing came within wait_s.
        lines = [] if number == 2 else [json.dumps({"message": f"line {number}"})]
        return [result(request, {"lines": lines, "cursor": f"c{number}"})] if number < 4 else []

    server.answers["logs"] = answer
    client = start(server, "logs asap:0 -f -n 1")
    assert client.stdout is not None
    assert client.stdout.readline().endswith("line 1\n")
    released.set()
    assert client.stdout.readline().endswith("line 3\n")
    wait_until(lambda: len(server.requests) == 4)
    client.send_signal(signal.SIGINT)
    assert client.communicate(timeout=DEADLINE_S) == ("", "")
    assert client.returncode == 130
    first, *others = [request["params"] for request in server.requests]
    assert first == {"name": "asap:0", "lines": 1}
    assert others == [{"name": "asap:0", "cursor": f"c{number}", "wait_s": 10.0} for number in (1, 2, 3)]


def test_events_are_a_json_object_a_line(server: ControlServer) -> None:
    def answer(request: dict[str, Any]) -> list[bytes]:
        number = len(server.requests)
        events = [{"n": number, "event": "ä"}, {"n": number}] if number != 2 else []
        return [result(request, {"events": events, "cursor": number})] if number < 4 else []

    server.answers["events"] = answer
    client = start(server, "events")
    assert client.stdout is not None
    found = [json.loads(client.stdout.readline()) for _ in range(4)]
    assert found == [{"n": 1, "event": "ä"}, {"n": 1}, {"n": 3, "event": "ä"}, {"n": 3}]
    wait_until(lambda: len(server.requests) == 4)
    client.terminate()
    client.communicate(timeout=DEADLINE_S)
    assert [request["params"]["cursor"] for request in server.requests] == [None, 1, 2, 3]


def test_version_of_both(server: ControlServer) -> None:
    assert ctl(server, "version").stdout == f"limetaskctl {__version__} (protocol 1)\nlimetaskd 0.1.0 (protocol 1)\n"
    assert json.loads(ctl(server, "version --json").stdout) == {
        "client": {"version": __version__, "protocol": 1},
        "daemon": {"version": "0.1.0", "protocol": 1},
    }


def test_version_of_the_client_alone(folder: Path) -> None:
    done = ctl(folder / "missing.sock", "version")
    assert (done.returncode, done.stdout) == (3, f"limetaskctl {__version__} (protocol 1)\n")
    assert "cannot reach limetaskd" in done.stderr
    document = json.loads(ctl(folder / "missing.sock", "version --json").stdout)
    assert document["client"]["version"] == __version__
    assert document["daemon"] is None
    assert "cannot reach limetaskd" in document["error"]["message"]


def test_a_newer_protocol_is_named(server: ControlServer) -> None:
    server.answer("version", {"version": "9.0.0", "protocol": 2})
    done = ctl(server, "version")
    assert done.returncode == 1
    assert "limetaskd 9.0.0 (protocol 2)" in done.stdout
    assert "speaks protocol 2" in done.stderr


# Purge asks.


def test_purge_without_a_terminal_needs_yes(server: ControlServer) -> None:
    assert_fails(ctl(server, "purge q"), 1, "--yes")
    assert server.requests == []


@pytest.mark.parametrize("typed", ["n", "nonsense", "\x04"])
def test_purge_asks_and_takes_no_for_an_answer(server: ControlServer, typed: str) -> None:
    code, shown = in_terminal(server, "purge q", typed)
    assert code == 1
    assert "Drop every task that waits in q?" in shown
    assert "nothing purged" in shown
    assert server.requests == []


def test_purge_goes_on_after_yes(server: ControlServer) -> None:
    code, shown = in_terminal(server, "purge q", "y")
    assert code == 0
    assert "prod_lime_task_queue_background: 1204 tasks dropped" in shown
    assert server.methods() == ["purge"]


# Colours and width.


def test_colours_on_a_terminal_only(server: ControlServer) -> None:
    assert "\x1b[32mRUNNING" in in_terminal(server, "status")[1]
    assert "\x1b[3" not in in_terminal(server, "status", NO_COLOR="1")[1]
    assert "\x1b" not in ctl(server, "status").stdout


def test_nothing_is_cut_in_a_pipe(server: ControlServer) -> None:
    value = json.loads(json.dumps(examples()["status"]["result"]))
    value["pools"][0]["queues"] = [f"queue_{number:04d}" for number in range(300)]
    server.answer("status", value)
    assert "queue_0299" in ctl(server, "status").stdout
    assert "queue_0299" not in in_terminal(server, "status")[1]


# The page.

PAGE = Path(__file__).parents[2] / "docs" / "limetaskctl.md"
EXAMPLE = re.compile(r"^```console\n\$ limetaskctl ?(.*?)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def page_examples() -> list[tuple[str, str]]:
    """(words, output) of every example of docs/limetaskctl.md."""
    return EXAMPLE.findall(PAGE.read_text("utf-8"))


def test_the_page_has_an_example_of_every_command() -> None:
    shown = {find_command(words.split()) for words, _ in page_examples()}
    assert set(SUMMARIES) - {"completion", "events"} <= shown


@pytest.mark.parametrize(("words", "output"), page_examples())
def test_the_examples_of_the_page(server: ControlServer, words: str, output: str) -> None:
    if find_command(words.split()) != "shutdown":
        done = ctl(server, words)
    else:  # that needs a process that ends
        path = server.path.with_name("other.sock")
        with start_daemon(path, stdin=subprocess.DEVNULL):
            done = ctl(path, words)
    assert done.stdout + done.stderr == output
