"""Live control through the real limetaskctl: start, stop, rolling restart, scale, tasks, logs, events, purge."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.support.brokers import RabbitMQ, Redis
from tests.support.crm import SOURCE, configuration
from tests.support.daemon import Daemon, command
from tests.support.sender import Sender
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def daemon(rabbitmq: RabbitMQ, redis_server: Redis) -> Iterator[Daemon]:
    """One daemon for this module; each test leaves all pools running."""
    config = configuration(rabbitmq.new_vhost(), redis_server.url_of(7), supervisor_socket=True)
    daemon = Daemon(config)
    daemon.module("crmtasks", SOURCE)
    with daemon:
        daemon.wait_running()
        yield daemon


@pytest.fixture(scope="module")
def sender(daemon: Daemon) -> Iterator[Sender]:
    with Sender(daemon) as made:
        yield made


def test_stop_and_start_a_worker_and_a_pool(daemon: Daemon) -> None:
    old = daemon.worker("asap:0")["pid"]
    assert daemon.ctl("stop", "asap:0", "background")["changed"] == [
        {"name": "asap:0", "action": "stopped", "state": "STOPPED"},
        {"name": "background:0", "action": "stopped", "state": "STOPPED"},
    ]
    assert daemon.worker("asap:0")["state"] == "STOPPED"
    assert daemon.worker("asap:0")["pid"] is None
    assert daemon.ctl("stop", "asap")["changed"][0]["action"] == "already stopped"
    daemon.ctl("start", "asap", "background:0")
    assert daemon.worker("asap:0")["ready"] is True
    assert daemon.worker("asap:0")["pid"] != old
    assert daemon.worker("asap:0")["restarts"] == 0
    assert daemon.ctl("start", "asap")["changed"][0]["action"] == "already running"


def test_a_restart_rolls_the_new_one_consumes_before_the_old_one_drains(daemon: Daemon, sender: Sender) -> None:
    gate, started = daemon.folder / "gate-roll", daemon.folder / "started-roll"
    task_id = sender.send("crm.wait_for", str(gate), str(started), qos="background")
    wait_until(started.exists)
    old = daemon.worker("background:0")["pid"]
    daemon.ctl("restart", "background")
    worker = daemon.worker("background:0")
    assert worker["ready"] is True
    assert worker["pid"] != old
    assert worker["draining"] == [old]
    # The running task is still shown, with the worker that drains; new tasks run meanwhile.
    assert [task["id"] for task in daemon.ctl("tasks", "--pool", "background")["tasks"]] == [task_id]
    assert sender.result(sender.send("crm.add", 1, 2, qos="background")) == 3
    gate.touch()
    assert isinstance(sender.result(task_id), int)
    wait_until(lambda: daemon.worker("background:0")["draining"] == [])
    assert not Path(f"/proc/{old}").exists()


def test_scale_slots_live_and_back(daemon: Daemon, sender: Sender) -> None:
    pid = daemon.worker("asap:0")["pid"]
    daemon.ctl("scale", "asap=4")
    assert daemon.worker("asap:0")["concurrency"] == 4
    assert daemon.pool("asap")["concurrency"] == 4
    gate = daemon.folder / "gate-scale"
    ids = [
        sender.send("crm.wait_for", str(gate), str(daemon.folder / f"scaled-{number}"), qos="asap")
        for number in range(4)
    ]
    wait_until(lambda: len(daemon.ctl("tasks", "--pool", "asap")["tasks"]) == 4, message="four tasks at once")
    assert daemon.worker("asap:0")["active"] == 4
    # Shrinking waits for the tasks of the slots that go and kills nothing.
    shrinking = threading.Thread(target=daemon.ctl, args=("scale", "asap=1"))
    shrinking.start()
    assert daemon.status() is not None  # a command that waits does not block others
    gate.touch()
    shrinking.join(60)
    assert not shrinking.is_alive()
    assert all(isinstance(result, int) for result in sender.results(ids))
    assert daemon.worker("asap:0")["concurrency"] == 1
    assert daemon.worker("asap:0")["pid"] == pid
    daemon.ctl("scale", "asap=default")
    assert daemon.worker("asap:0")["concurrency"] == 2


def test_scale_worker_processes(daemon: Daemon, sender: Sender) -> None:
    daemon.ctl("scale", "--workers", "asap=3")
    workers = daemon.pool("asap")["workers"]
    assert [worker["name"] for worker in workers] == ["asap:0", "asap:1", "asap:2"]
    assert all(worker["ready"] for worker in workers)
    assert sender.results([sender.send("crm.add", n, n, qos="asap") for n in range(6)]) == [0, 2, 4, 6, 8, 10]
    daemon.ctl("scale", "--workers", "asap=default")
    assert [worker["name"] for worker in daemon.pool("asap")["workers"]] == ["asap:0"]


def test_routes_queues_logs_and_version(daemon: Daemon) -> None:
    routes = daemon.ctl("routes")
    assert {"category": "asap", "queue": "q_asap", "actual": "q_asap"} in routes["qos"]
    assert routes["default"]["queue"] == "lime_default_task_queue"
    names = {queue["name"] for queue in daemon.ctl("queues")["queues"]}
    assert names == {"lime_default_task_queue", "q_asap", "q_background"}
    wait_until(lambda: all(q["consumers"] == 1 for q in daemon.ctl("queues")["queues"]), message="one consumer each")
    assert daemon.ctl("version")["daemon"]["protocol"] == 1
    text = daemon.run_ctl("logs", "asap:0", "-n", "5").stdout
    assert "asap:0" in text
    assert len(text.splitlines()) <= 5


def test_purge_drops_what_waits(daemon: Daemon, sender: Sender) -> None:
    daemon.ctl("stop", "background")
    sender.send_many("crm.add", [[1, 1]] * 3, qos="background")
    refused = daemon.run_ctl("purge", "q_background")
    assert refused.returncode != 0
    assert daemon.ctl("purge", "q_background", "--yes")["purged"] == 3
    daemon.ctl("start", "background")


@pytest.mark.parametrize(
    "arguments",
    [
        ("stop", "asapp"), ("start", "asap:9"), ("restart", "nothing"), ("status", "nope"), ("tasks", "--pool", "nope"),
        ("scale", "nope=3"), ("logs", "nope:0"), ("purge", "nope", "--yes"),
    ],
)  # fmt: skip
def test_unknown_names_are_refused_with_the_known_ones(daemon: Daemon, arguments: tuple[str, ...]) -> None:
    done = daemon.run_ctl(*arguments)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "background" in done.stderr


def test_slots_out_of_range_are_refused(daemon: Daemon) -> None:
    assert daemon.run_ctl("scale", "asap=0").returncode in {1, 2}
    refused = daemon.run_ctl("scale", "asap=9999999")
    assert refused.returncode in {1, 2}
    assert len(refused.stderr.splitlines()) == 1
    assert daemon.worker("asap:0")["concurrency"] == 2


def test_events_tell_state_changes(daemon: Daemon) -> None:
    follower = subprocess.Popen(
        [command("limetaskctl"), "--socket", daemon.endpoint, "events"],
        stdout=subprocess.PIPE, text=True, env=daemon.environment,
    )  # fmt: skip
    try:
        assert follower.stdout is not None
        seen: list[dict[str, object]] = []
        reader = threading.Thread(target=lambda: seen.extend(json.loads(line) for line in follower.stdout or []))
        reader.start()
        # The follower starts "from now on": stop and start until it has seen a whole round.
        wait_until(
            lambda: daemon.ctl("restart", "asap") and any(event["event"] == "process_replaced" for event in seen), 60
        )
    finally:
        follower.kill()
        follower.wait()
    reader.join(30)


def test_malformed_frames_get_errors_and_disturb_nobody(daemon: Daemon) -> None:
    context = zmq.Context()
    try:
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(daemon.endpoint)
        codes = []
        for frame in (b"", b"\xff", b"[]", b'{"jsonrpc": "2.0", "id": 1, "method": "nope"}', b"[" * 5000):
            socket.send(frame)
            assert socket.poll(10_000)
            codes.append(json.loads(socket.recv())["error"]["code"])
        assert codes == [-32700, -32700, -32600, -32601, -32700]
        socket.send_multipart([b"a", b"b", b"c"])
        assert socket.poll(10_000)
        socket.recv()
        socket.send(b" " * (2 * 1024 * 1024))  # dropped with its connection
        assert daemon.status() is not None
        socket.close()
    finally:
        context.term()


def test_what_is_added_to_a_pool_that_an_operator_has_stopped_stays_stopped(daemon: Daemon) -> None:
    daemon.ctl("stop", "asap")
    assert daemon.ctl("scale", "--workers", "asap=2")["changed"][0]["state"] == "STOPPED"
    assert [daemon.worker(f"asap:{number}")["state"] for number in range(2)] == ["STOPPED", "STOPPED"]
    daemon.ctl("start", "asap")
    assert [daemon.worker(f"asap:{number}")["ready"] for number in range(2)] == [True, True]
    daemon.ctl("scale", "--workers", "asap=default")


def test_the_stock_supervisorctl_drives_the_same_processes(daemon: Daemon) -> None:
    config = daemon.folder / "supervisorctl.conf"
    config.write_text(f"[supervisorctl]\nserverurl=unix://{daemon.runtime_dir}/supervisor.sock\n")

    def run(*arguments: str) -> str:
        return subprocess.run(
            [command("supervisorctl"), "-c", str(config), *arguments],
            capture_output=True, text=True, timeout=120, check=False,
        ).stdout  # fmt: skip

    states = {line.split()[0]: line.split()[1] for line in run("status").splitlines()}
    assert states["asap:0"] == "RUNNING"
    assert states["limetaskd:agent"] == "RUNNING"
    pid = daemon.worker("asap:0")["pid"]
    assert "asap:0: stopped" in run("stop", "asap:0")
    assert daemon.worker("asap:0")["state"] == "STOPPED"
    assert "asap:0: started" in run("start", "asap:0")
    assert daemon.worker("asap:0")["ready"] is True
    assert run("restart", "asap:0").splitlines() == ["asap:0: stopped", "asap:0: started"]
    assert daemon.worker("asap:0")["pid"] != pid
    assert "consuming" in run("tail", "-4000", "asap:0")
    assert run("pid", "asap:0").strip() == str(daemon.worker("asap:0")["pid"])
    assert "no such process" in run("stop", "nothing:0")
