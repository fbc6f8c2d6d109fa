"""What the operator is woken by: dead and hung processes, brokers that go away, a killed daemon. Nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.brokers import RabbitMQ
from tests.support.crm import SOURCE, configuration
from tests.support.daemon import Daemon
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]


def marks(folder: Path) -> Counter[int]:
    """How often each numbered task has run."""
    return Counter(int(path.name.split(".")[0]) for path in folder.iterdir())


def more_than(folder: Path, number: int) -> bool:
    return len(marks(folder)) > number


def make(make_daemon: MakeDaemon, broker: str, backend: str, **limetaskd: object) -> Daemon:
    daemon = make_daemon(configuration(broker, backend, **limetaskd))
    daemon.module("crmtasks", SOURCE)
    return daemon


def test_a_runtime_dir_that_somebody_has_emptied_is_made_again(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = make(make_daemon, amqp_url, redis_url).start()
    daemon.wait_running()
    workers = {name: daemon.worker(name)["pid"] for name in ("asap:0", "background:0")}
    with Sender(daemon) as sender:
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 3
        shutil.rmtree(daemon.runtime_dir)
        os.kill(workers["asap:0"], signal.SIGKILL)
        assert sender.result(sender.send("crm.add", 3, 4, qos="asap")) == 7
        assert sender.result(sender.send("crm.add", 5, 6, qos="background")) == 11
    assert any(record.get("action") == "runtime_dir_emptied" for record in daemon.logs())
    assert workers["background:0"] in [process.pid for process in daemon.named("background:0")]
    assert (daemon.runtime_dir / "processes" / "asap:0.2.json").exists()
    assert daemon.stop() == 0
    assert daemon.processes() == []


def test_killed_workers_are_replaced_and_no_task_is_lost(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = make(make_daemon, amqp_url, redis_url, restart={"initial": "100ms", "max": "1s", "intensity": 50}).start()
    daemon.wait_running()
    folder = daemon.folder / "marks"
    folder.mkdir()
    with Sender(daemon) as sender:
        sent = 0
        for kind in ("child", "main", "main", "child"):
            # So many before each kill that some wait and some run when it comes.
            batch = range(sent, sent + 60)
            sender.send_many("crm.mark", [[str(folder), n, 0.05] for n in batch], queue="q_background")
            sent = batch.stop
            wait_until(partial(more_than, folder, len(marks(folder))), 60, "the next task to run")
            worker = daemon.worker("background:0")
            victim = worker["children"][0]["pid"] if kind == "child" and worker["children"] else worker["pid"]
            if victim is not None:
                os.kill(victim, signal.SIGKILL)
            wait_until(lambda: daemon.worker("background:0")["ready"], 60, "a replacement that consumes")
        wait_until(lambda: len(marks(folder)) == sent, 90, lambda: f"{sent - len(marks(folder))} tasks to run")
    assert daemon.worker("background:0")["restarts"] == 2
    assert daemon.worker("asap:0")["restarts"] == 0
    assert daemon.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGRTMIN, signal.SIGRTMIN + 6])
def test_a_worker_that_dies_of_any_signal_is_replaced(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon, number: int
) -> None:
    daemon = make(make_daemon, amqp_url, redis_url).start()
    daemon.wait_running()
    before = daemon.worker("asap:0")["pid"]
    os.kill(before, number)
    wait_until(lambda: daemon.worker("asap:0")["pid"] not in (None, before) and daemon.worker("asap:0")["ready"], 60)
    assert daemon.worker("asap:0")["restarts"] == 1
    assert daemon.stop() == 0


def test_a_worker_that_dies_again_and_again_backs_off_and_ends_fatal(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = make(make_daemon, amqp_url, redis_url, restart={"initial": "50ms", "max": "200ms", "intensity": 3})
    daemon.start()
    daemon.wait_running()
    for _ in range(4):
        pid = wait_until(lambda: daemon.worker("asap:0")["ready"] and daemon.worker("asap:0")["pid"], 60)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: daemon.worker("asap:0")["pid"] != pid, 60)  # type: ignore[misc]
    wait_until(lambda: daemon.worker("asap:0")["state"] == "FATAL")
    assert daemon.worker("asap:0")["reason"] == "killed by SIGKILL"
    assert daemon.worker("background:0")["state"] == "RUNNING"
    assert daemon.run_ctl("start", "asap").returncode == 0  # an operator may try at once
    assert daemon.stop() == 0


def test_broker_away_at_start_and_later_restarts_nothing(
    own_rabbitmq: RabbitMQ, redis_url: str, make_daemon: MakeDaemon
) -> None:
    own_rabbitmq.stop()
    daemon = make(make_daemon, own_rabbitmq.url, redis_url).start()
    wait_until(
        lambda: daemon.status() and "waits for its broker" in str(daemon.worker("asap:0")["reason"]), 60,
        "the worker to say that it waits",
    )  # fmt: skip
    assert daemon.worker("asap:0")["state"] == "STARTING"
    own_rabbitmq.start()
    status = daemon.wait_running()
    pids = [worker["pid"] for pool in status["pools"] for worker in pool["workers"]]
    own_rabbitmq.kill()
    wait_until(lambda: not daemon.worker("asap:0")["ready"], 60, "the worker to notice")
    assert "waits for its broker" in wait_until(lambda: daemon.worker("asap:0")["reason"], 60)
    own_rabbitmq.start()
    status = daemon.wait_running()
    workers = [worker for pool in status["pools"] for worker in pool["workers"]]
    assert [worker["pid"] for worker in workers] == pids
    assert [worker["restarts"] for worker in workers] == [0, 0, 0]
    with Sender(daemon) as sender:
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 3
    assert daemon.stop() == 0


def test_kill_of_the_broker_under_load_loses_no_confirmed_task(
    own_rabbitmq: RabbitMQ, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = make(make_daemon, own_rabbitmq.url, redis_url).start()
    daemon.wait_running()
    folder = daemon.folder / "marks"
    folder.mkdir()
    with Sender(daemon) as sender:
        sender.send_many("crm.mark", [[str(folder), n, 0.01] for n in range(100)], queue="q_background")
        wait_until(lambda: len(marks(folder)) >= 5, 60)
        own_rabbitmq.kill()
        own_rabbitmq.start()
        sender.send_many("crm.mark", [[str(folder), n, 0.01] for n in range(100, 120)], queue="q_background")
        wait_until(lambda: len(marks(folder)) == 120, 90, lambda: f"{120 - len(marks(folder))} tasks are missing")
    assert daemon.stop() == 0


def test_a_frozen_main_process_is_killed_by_a_restart_before_it_is_replaced(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = make(make_daemon, amqp_url, redis_url).start()
    daemon.wait_running()
    frozen = daemon.worker("asap:0")["pid"]
    os.kill(frozen, signal.SIGSTOP)
    # Silence is noticed, the worker is killed and replaced by itself.
    wait_until(lambda: daemon.worker("asap:0")["pid"] not in {frozen, None}, 90, "the frozen worker to be replaced")
    wait_until(lambda: daemon.worker("asap:0")["ready"], 60)
    assert not Path(f"/proc/{frozen}").exists()
    assert any(record.get("action") == "hung" for record in daemon.logs())
    assert daemon.worker("background:0")["restarts"] == 0
    assert daemon.stop() == 0


@pytest.mark.parametrize("changed", [False, True])
def test_workers_outlive_a_killed_daemon_and_the_next_one_takes_them_over(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon, changed: bool
) -> None:
    daemon = make(make_daemon, amqp_url, redis_url).start()
    status = daemon.wait_running()
    pids = {worker["name"]: worker["pid"] for pool in status["pools"] for worker in pool["workers"]}
    gate, started = daemon.folder / "gate", daemon.folder / "started"
    with Sender(daemon) as sender:
        running = sender.send("crm.wait_for", str(gate), str(started))
        wait_until(started.exists)
        daemon.kill()
        # They go on consuming and running without any daemon.
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 3
        if changed:
            daemon.configure(configuration(amqp_url, redis_url, application="renamed"))
        daemon.start()
        status = daemon.wait_running()
        now = {worker["name"]: worker["pid"] for pool in status["pools"] for worker in pool["workers"]}
        if changed:
            assert not set(pids.values()) & set(now.values())
        else:
            assert now == pids
            assert daemon.worker("asap:0")["processed"] == 1
        gate.touch()
        assert isinstance(sender.result(running), int)
        assert len(wait_until(lambda: daemon.records(running))) == 1
        assert sender.result(sender.send("crm.add", 3, 4, qos="asap")) == 7
    if changed:
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()), 60)
    assert daemon.stop() == 0
    assert daemon.processes() == []
