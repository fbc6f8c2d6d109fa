"""The daemon's life: start, status, stop by each way, refusals; on real RabbitMQ and Redis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support.crm import SOURCE, configuration
from tests.support.daemon import Daemon
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]


@pytest.fixture
def daemon(amqp_url: str, redis_url: str, make_daemon: MakeDaemon) -> Daemon:
    """A daemon with dedicated pools on real brokers, not started."""
    made = make_daemon(configuration(amqp_url, redis_url))
    made.module("crmtasks", SOURCE)
    return made


def test_dedicated_pools_run_tasks_and_say_so(daemon: Daemon) -> None:
    daemon.start()
    status = daemon.wait_running()
    assert [pool["name"] for pool in status["pools"]] == ["default", "asap", "background"]
    assert status["daemon"]["pid"] == daemon.pid
    assert status["daemon"]["beat_owner"]["pool"] == "default"
    with Sender(daemon) as sender:
        assert sender.result(sender.send("crm.add", 2, 3, qos="asap")) == 5
        assert sender.result(sender.send("crm.fail", "no", qos="background")) == "ValueError: no"
        task_id = sender.send("crm.print", "hello from a task", user_id="42")
        assert sender.result(task_id) == "hello from a task"
    wait_until(lambda: len(daemon.records()) == 3, message="three execution records")
    by_queue = {record["task_queue"]: record for record in daemon.records()}
    assert by_queue["q_asap"]["task_outcome"] == "SUCCESS"
    assert by_queue["q_background"]["task_outcome"] == "FAILURE"
    assert by_queue["lime_default_task_queue"]["task_user_id"] == "42"
    assert {record["application"] for record in daemon.records()} == {"limetask"}
    # What a task prints arrives once, as a record too.
    wait_until(lambda: [r for r in daemon.logs() if r["message"] == "hello from a task"])
    assert len([r for r in daemon.logs() if r["message"] == "hello from a task"]) == 1
    wait_until(lambda: daemon.worker("asap:0")["processed"] == 1)
    assert daemon.worker("background:0")["failed"] == 1
    assert daemon.stop() == 0
    assert daemon.processes() == []
    assert not (daemon.runtime_dir / "accepted.json").exists()


def test_all_in_one_consumes_every_queue(amqp_url: str, redis_url: str, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(configuration(amqp_url, redis_url, strategy="all-in-one"))
    daemon.module("crmtasks", SOURCE)
    daemon.start()
    status = daemon.wait_running()
    assert [pool["name"] for pool in status["pools"]] == ["all"]
    assert set(status["pools"][0]["queues"]) == {"lime_default_task_queue", "q_asap", "q_background"}
    with Sender(daemon) as sender:
        ids = [sender.send("crm.add", 1, 1, qos=qos) for qos in ("asap", "background", None)]
        assert sender.results(ids) == [2, 2, 2]
    queues = wait_until(
        lambda: [q for q in daemon.ctl("queues")["queues"] if q["consumers"] == 1], message="figures of the agent"
    )
    assert len(queues) >= 1


def test_a_stop_waits_for_the_running_task_and_a_second_signal_does_not(daemon: Daemon) -> None:
    daemon.start()
    daemon.wait_running()
    gate, started = daemon.folder / "gate", daemon.folder / "started"
    with Sender(daemon) as sender:
        task_id = sender.send("crm.wait_for", str(gate), str(started))
        wait_until(started.exists)
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: any(r.get("action") == "stopping" for r in daemon.logs()))
        gate.touch()
        assert daemon.wait_exit() == 0
        assert isinstance(sender.result(task_id), int)

        gate.unlink()
        started.unlink()
        daemon.start()
        daemon.wait_running()
        task_id = sender.send("crm.wait_for", str(gate), str(started))
        wait_until(started.exists)
        daemon.signal(signal.SIGINT)
        wait_until(lambda: [r for r in daemon.logs() if r.get("action") == "stopping"][1:])
        daemon.signal(signal.SIGINT)
        assert daemon.wait_exit(30) == 0
        # The task was requeued: the next daemon runs it.
        started.unlink()
        daemon.start()
        wait_until(started.exists, 60)
        gate.touch()
        assert isinstance(sender.result(task_id), int)


def test_quit_stops_at_once(daemon: Daemon) -> None:
    daemon.start()
    daemon.wait_running()
    started = daemon.folder / "started"
    with Sender(daemon) as sender:
        sender.send("crm.wait_for", str(daemon.folder / "never"), str(started))
        wait_until(started.exists)
    daemon.signal(signal.SIGQUIT)
    assert daemon.wait_exit(30) == 0
    assert daemon.processes() == []


@pytest.mark.parametrize("preload", [True, False])
def test_nothing_stays_in_the_temporary_directory(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon, tmp_path: Path, preload: bool
) -> None:
    daemon = make_daemon(configuration(amqp_url, redis_url, preload=preload), env={"TMPDIR": str(tmp_path)})
    daemon.module("crmtasks", SOURCE)
    daemon.start()
    daemon.wait_running()
    with Sender(daemon) as sender:
        assert sender.result(sender.send("crm.add", 2, 3, qos="asap")) == 5
    killed = daemon.worker("asap:0")["pid"]
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: daemon.worker("asap:0")["ready"] and daemon.worker("asap:0")["pid"] != killed)
    daemon.signal(signal.SIGQUIT)
    assert daemon.wait_exit(30) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", ["same", "runtime_dir", "state_dir"])
def test_a_second_daemon_in_one_folder_is_refused(daemon: Daemon, tmp_path: Path, other: str) -> None:
    daemon.start()
    daemon.wait_running()
    document = yaml.safe_load(daemon.config_path.read_text())
    if other != "same":
        document["limetaskd"][other] = str(tmp_path / "other")
    config = tmp_path / "second.yaml"
    config.write_text(yaml.safe_dump(document))
    second = subprocess.run(
        [sys.executable, "-m", "limetaskd.daemon.main", "--config", str(config)],
        env=daemon.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    holder = f"another limetaskd (pid {daemon.pid}) runs on" if other == "same" else str(daemon.config_path)
    assert holder in second.stderr
    assert str(daemon.runtime_dir) in second.stderr
    assert len(second.stderr.splitlines()) == 1
    assert daemon.status() is not None


def test_without_standard_error_logs_go_into_no_file_of_ours(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = make_daemon(configuration(amqp_url, redis_url))
    daemon.module("crmtasks", SOURCE)
    command = [daemon.python, "-m", "limetaskd.daemon.main", "--config", str(daemon.config_path)]
    shell = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *command]
    process = subprocess.Popen(shell, env=daemon.environment, cwd=daemon.folder, start_new_session=True)
    try:
        wait_until(lambda: daemon.run_ctl("status").returncode == 0, 60)
        descriptors = [Path(f"/proc/{process.pid}/fd/{number}").readlink() for number in range(3)]
        assert descriptors == [Path(os.devnull)] * 3
        assert (daemon.runtime_dir / "limetaskd.lock").read_text() == f"{process.pid}\n"
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_detached_with_a_pid_file(amqp_url: str, redis_url: str, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(configuration(amqp_url, redis_url), arguments=["--daemon"])
    daemon.module("crmtasks", SOURCE)
    daemon.start()
    assert daemon.wait_exit(30) == 0  # the parent returns
    pidfile = daemon.runtime_dir / "limetaskd.pid"
    pid = int(pidfile.read_text())  # there by then
    wait_until(lambda: daemon.run_ctl("status").returncode == 0, 60)
    status = json.loads(daemon.run_ctl("status", "--json").stdout)
    assert status["daemon"]["pid"] == pid
    assert os.getsid(pid) != os.getsid(0)
    assert (daemon.state_dir / "log" / "limetaskd.jsonl").exists()
    assert daemon.run_ctl("shutdown").returncode == 0
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    assert not pidfile.exists()

    # One that cannot begin says so, and by its exit code; whether early or late.
    for blocked, said in (("run/control.sock", "Is a directory"), ("state/log/limetaskd.log", "Is a directory: ")):
        path = daemon.folder / blocked
        path.unlink(missing_ok=True)
        path.mkdir()
        daemon.start()
        assert daemon.wait_exit(30) == 1
        assert not pidfile.exists()
        assert daemon.stderr_path.read_text().splitlines()[-1].startswith(f"limetaskd: {said}")
        path.rmdir()


def test_a_detached_daemon_comes_up_also_when_nobody_waits_for_it_any_more(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    destination = make_daemon({}).folder / "logs"
    os.mkfifo(destination)  # it hangs in the opening until somebody reads
    daemon = make_daemon(
        configuration(amqp_url, redis_url, logging={"destination": str(destination)}), arguments=["--daemon"]
    )
    daemon.module("crmtasks", SOURCE)
    daemon.start()
    lock = daemon.runtime_dir / "limetaskd.lock"
    wait_until(lambda: lock.exists() and lock.read_text().strip() not in ("", str(daemon.pid)))
    daemon.kill()  # as Ctrl-C would: the command that waits, not the daemon
    with destination.open() as logs:
        for line in logs:
            if json.loads(line).get("action") == "ready":
                break
        else:
            raise AssertionError("it has ended")
        assert daemon.run_ctl("status").returncode == 0
        assert daemon.run_ctl("shutdown").returncode == 0
        wait_until(lambda: not (daemon.runtime_dir / "limetaskd.pid").exists())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ("tasks: [", ":1:"),
        ("tasks: {brokre_connection_string: amqp://}", "broker_connection_string"),
        ("limetaskd: {concurrency: many}", "limetaskd.concurrency"),
    ],
)
def test_a_wrong_file_is_one_line_and_exit_code_2(make_daemon: MakeDaemon, text: str, expected: str) -> None:
    daemon = make_daemon(text)
    daemon.start()
    assert daemon.wait_exit() == 2
    output = daemon.stderr_path.read_text()
    assert expected in output
    assert "Traceback" not in output
    assert len(output.splitlines()) == 1


def test_a_module_that_raises_makes_its_pool_fatal_with_the_traceback_in_the_log(daemon: Daemon) -> None:
    daemon.module("crmtasks", "raise RuntimeError('broken module')")
    daemon.start()
    wait_until(lambda: daemon.status() and daemon.pool("asap")["state"] == "FATAL", 60)
    assert "broken module" in daemon.worker("asap:0")["reason"]
    assert any("RuntimeError: broken module" in json.dumps(record) for record in daemon.logs("asap:0"))
    refused = daemon.run_ctl("start", "asap")
    assert refused.returncode == 1
    assert "broken module" in refused.stderr
    daemon.module("crmtasks", SOURCE)
    assert daemon.run_ctl("start", "asap").returncode == 0
    assert daemon.pool("asap")["state"] == "RUNNING"
    assert daemon.stop() == 0
