"""limetaskctl and a daemon that refuses, answers nonsense, answers late, or ends meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from limetaskctl.client import Client
from limetaskctl.errors import ReplyError, UnreachableError
from tests.support import ctl as support
from tests.support.ctl import COMMAND, DEADLINE_S, assert_fails, ctl, environment, start, start_daemon
from tests.support.ctl_server import ControlServer, examples, result
from tests.support.waiting import pause, wait_until

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
    "tasks": "",
    "routes": "",
    "queues": "",
    "purge": "lime_task_queue_background --yes",
    "logs": "asap:0",
}
WAITING = ["start a", "stop a", "restart a", "scale a=1", "reload", "purge q --yes", "shutdown"]


# Refusals.


def test_the_reason_of_a_refusal_is_shown(server: ControlServer) -> None:
    server.refuse("start", -32000, "no worker or pool 'asapp': did you mean 'asap'?")
    assert_fails(ctl(server, "start asapp"), 1, "limetaskctl: no worker or pool 'asapp': did you mean 'asap'?")


def test_every_line_of_a_reason_has_our_name_in_front(server: ControlServer) -> None:
    server.refuse("reload", -32000, "x.yaml: tasks.timezone: 'Mars'\nx.yaml: \x1b[31m")
    done = ctl(server, "reload")
    assert done.returncode == 1
    assert done.stderr == "limetaskctl: x.yaml: tasks.timezone: 'Mars'\nlimetaskctl: x.yaml: \\x1b[31m\n"


def test_with_json_the_error_is_a_document_on_stdout_too(server: ControlServer) -> None:
    server.refuse("scale", -32602, "no pool 'x'")
    done = ctl(server, "--json scale x=1")
    assert (done.returncode, done.stderr) == (1, "limetaskctl: no pool 'x'\n")
    assert json.loads(done.stdout) == {"error": {"code": -32602, "message": "no pool 'x'"}}


def test_streams_hold_records_only(server: ControlServer) -> None:
    server.refuse("logs", -32000, "no worker 'x'")
    assert_fails(ctl(server, "--json logs x"), 1, "no worker 'x'")


def test_a_method_that_the_daemon_does_not_know(server: ControlServer) -> None:
    server.refuse("queues", -32601, "no method 'queues'")
    assert_fails(ctl(server, "queues"), 1, "another version")


def test_an_error_without_an_id_or_a_message_counts(server: ControlServer) -> None:
    server.raw("status", b'{"jsonrpc": "2.0", "id": null, "error": {"code": -32700, "message": ""}}')
    assert_fails(ctl(server, "status"), 1, "gave no reason")


# Answers that cannot be understood.


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([b"hello"], "not JSON"),
        ([b"\xff\x00"], "not JSON"),
        ([b"[" * 200_000], "not JSON"),
        ([b""], "not JSON"),
        ([b"{}"], "not a JSON-RPC 2.0 response"),
        ([b'{"jsonrpc": "2.0", "id": 1, "result": 5}'], "not a JSON-RPC 2.0 response"),
        ([b'{"jsonrpc": "2.0", "id": 1, "result": {}}'], "another shape"),
        ([b'{"jsonrpc": "2.0", "id": 1, "result": {"daemon": null, "pools": 5, "queues": {}}}'], "another shape"),
        ([b"", b'{"jsonrpc": "2.0", "id": 1, "result": {}}'], "2 frames"),
    ],
)
def test_a_malformed_answer_is_one_clear_line(server: ControlServer, frames: list[bytes], message: str) -> None:
    server.raw("status", *frames)
    assert_fails(ctl(server, "status"), 1, message)


def test_an_answer_of_another_shape_is_printed_by_json(server: ControlServer) -> None:
    server.answer("status", {"new": [1]})
    done = ctl(server, "status --json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"new": [1]})


@pytest.mark.parametrize("name", [*WORDS, "version", "events"])
def test_no_shape_of_an_answer_makes_a_traceback(server: ControlServer, name: str) -> None:
    for value in ({"changed": 3}, {"lines": 1}, {"queues": [None]}, {"tasks": [[]], "qos": 1}, {"events": 1}):
        server.answer(name, value)
        done = ctl(server, f"--timeout 2 {name} {WORDS.get(name, '')}")
        assert done.returncode == 1, done
        assert "Traceback" not in done.stderr


def test_an_answer_to_an_earlier_request_is_not_taken(server: ControlServer) -> None:
    server.raw("queues")
    with Client(f"ipc://{server.path}") as client:
        with pytest.raises(UnreachableError, match="within"):
            client.call("queues", {}, 1.0)
        server.answers["status"] = lambda request: [result(server.requests[0], {"late": 1})]
        with pytest.raises(UnreachableError, match="within"):
            client.call("status", {}, 1.0)
        assert client.call("version", {}, DEADLINE_S) == {"version": "0.1.0", "protocol": 1}


def test_several_calls_over_one_connection(server: ControlServer) -> None:
    with Client(f"ipc://{server.path}") as client:
        for _ in range(3):
            assert client.call("version", {}, DEADLINE_S)["protocol"] == 1
        server.raw("status", b"x", b"y")
        with pytest.raises(ReplyError):
            client.call("status", {}, DEADLINE_S)
        assert client.call("version", {}, DEADLINE_S)["protocol"] == 1
    assert [request["id"] for request in server.requests] == [1, 2, 3, 4, 5]


# Time.


@pytest.mark.parametrize("words", ["status", "queues", "logs", "version"])
def test_no_answer_in_time_is_a_daemon_that_cannot_be_reached(server: ControlServer, words: str) -> None:
    server.raw(words)
    done = ctl(server, f"{words} --timeout 1")
    assert done.returncode == 3
    assert "did not answer within 1 s" in done.stderr


@pytest.mark.parametrize("words", WAITING)
def test_a_command_that_waits_is_refused_more_patience(server: ControlServer, words: str) -> None:
    name = words.split(maxsplit=1)[0]
    server.raw(name)
    assert_fails(ctl(server, f"--timeout 1000ms {words}"), 1, f"{name} is not done after 1 s; the daemon goes on")


@pytest.mark.parametrize("words", WAITING[:-1])
def test_a_command_that_waits_has_no_limit_by_itself(server: ControlServer, words: str) -> None:
    """Longer than the limit of the others would be: seen with that limit set to 0.4 s."""
    name = words.split(maxsplit=1)[0]
    value = examples()[name]["result"]
    server.answers[name] = lambda request: (pause(0.7), [result(request, value)])[1]
    program = (
        "import sys; from limetaskctl import session; session.DEFAULT_TIMEOUT_S = 0.4;"
        "from limetaskctl.main import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--socket", str(server.path), *words.split()],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False, env=environment(),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


# A daemon that goes away.


def test_a_daemon_that_dies_while_a_command_waits(server: ControlServer) -> None:
    server.raw("restart")
    client = start(server, "restart asap")
    wait_until(lambda: server.methods() == ["restart"])
    server.close()
    out, complaint = client.communicate(timeout=DEADLINE_S)
    assert (client.returncode, out) == (3, "")
    assert "went away before it answered" in complaint


def test_an_answer_that_was_sent_before_the_end_still_counts(folder: Path) -> None:
    for _ in range(5):
        server = ControlServer(folder / "control.sock")
        server.close_after("restart")
        client = start(server, "restart asap")
        out, complaint = client.communicate(timeout=DEADLINE_S)
        assert (client.returncode, complaint) == (0, ""), out
        server.close()


@pytest.mark.parametrize("words", ["shutdown", "shutdown --now"])
def test_shutdown_returns_when_the_process_of_the_daemon_has_ended(folder: Path, words: str) -> None:
    path = folder / "control.sock"
    with start_daemon(path) as daemon:
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        short = ctl(path, f"{words} --timeout 1")
        assert daemon.stdout.readline() == "closed\n"
        assert not path.exists()
        assert_fails(short, 1, "has not stopped after")
        daemon.stdin.close()
        assert daemon.wait(DEADLINE_S) == 0


def test_shutdown_waits_as_long_as_it_takes(folder: Path) -> None:
    path = folder / "control.sock"
    with start_daemon(path) as daemon:
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        client = subprocess.Popen(
            [*COMMAND, "--socket", str(path), "shutdown"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert daemon.stdout.readline() == "closed\n"
        pause(0.3)
        assert client.poll() is None, client.communicate()
        daemon.stdin.close()
        assert client.communicate(timeout=DEADLINE_S) == ("limetaskd has stopped\n", "")
        assert client.returncode == 0
        assert daemon.wait(DEADLINE_S) == 0
