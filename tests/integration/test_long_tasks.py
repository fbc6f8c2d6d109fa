"""Tasks that run longer than RabbitMQ's patience (`consumer_timeout`, here of seconds): `ack_deadline`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.brokers import RabbitMQ
from tests.support.daemon import Daemon
from tests.support.limits import SOURCE, configuration, noted, notes
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]
# The broker looks once a second at what is held for longer than this.
PATIENCE_S = 4


@pytest.fixture(scope="module")
def impatient() -> Iterator[RabbitMQ]:
    with RabbitMQ([f"consumer_timeout = {PATIENCE_S * 1000}"]) as server:
        server.evaluate("application:set_env(rabbit, channel_tick_interval, 1000).")
        yield server


def start(make_daemon: MakeDaemon, broker: RabbitMQ, backend: str, **limetaskd: Any) -> Daemon:
    config = configuration(broker.new_vhost(), backend, **{"ack_deadline": "1s", **limetaskd})
    daemon = make_daemon(config)
    daemon.module("badtasks", SOURCE)
    daemon.start()
    daemon.wait_running()
    return daemon


def kept(daemon: Daemon) -> list[Path]:
    return sorted(daemon.folder.rglob("kept/*.json"))


def actions(daemon: Daemon, action: str, name: str | None = None) -> list[dict[str, Any]]:
    return [record for record in daemon.logs(name) if record.get("action") == action]


def go(daemon: Daemon) -> None:
    (daemon.folder / "go").touch()


def outlast(seconds: float) -> None:
    """Until the broker must have lost its patience, had there been a reason."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end, seconds + 30)


def test_without_it_the_broker_loses_patience_and_delivers_again(
    impatient: RabbitMQ, redis_url: str, make_daemon: MakeDaemon
) -> None:
    """What the other tests would show if nothing were done: this broker is as impatient as they think."""
    daemon = start(make_daemon, impatient, redis_url, ack_deadline="1h")
    with Sender(daemon) as sender:
        long = sender.send("bad.until", str(daemon.folder))
        wait_until(lambda: actions(daemon, "runs_still"), 60)
        go(daemon)
        assert sender.result(long) == "until"
    assert len(notes(daemon, "until")) == 1
    # It is no death of the worker either.
    assert daemon.worker("all:0")["restarts"] == 0
    assert actions(daemon, "child_died") == []


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_that_outlasts_the_broker_runs_once(
    impatient: RabbitMQ, redis_url: str, make_daemon: MakeDaemon, pool: str
) -> None:
    daemon = start(make_daemon, impatient, redis_url, pools={"all": {"pool": pool, "concurrency": 2}})
    with Sender(daemon) as sender:
        folder = str(daemon.folder)
        long = sender.send("bad.until", folder)
        noted(daemon, "until")
        (path,) = wait_until(lambda: kept(daemon), 30)
        assert path.stat().st_mode & 0o077 == 0
        outlast(2 * PATIENCE_S)
        # The other slot goes on meanwhile, and only it: nothing waits behind the long task.
        assert all(isinstance(pid, int) for pid in sender.results(sender.send_many("bad.pid", [[]] * 20)))
        assert daemon.ctl("tasks")["tasks"][0]["id"] == long
        go(daemon)
        assert sender.result(long) == "until"
        wait_until(lambda: not kept(daemon), 30)
    assert len(notes(daemon, "until")) == 1
    assert [record["task_outcome"] for record in wait_until(lambda: daemon.records(long))] == ["SUCCESS"]
    assert len(actions(daemon, "kept", "all:0")) == 1


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_what_waits_behind_long_tasks_goes_back_to_its_queue(
    impatient: RabbitMQ, redis_url: str, make_daemon: MakeDaemon, queue_type: str
) -> None:
    daemon = start(make_daemon, impatient, redis_url, concurrency=1, queue_type=queue_type)
    with Sender(daemon) as sender:
        folder = str(daemon.folder)
        long = sender.send("bad.until", folder)
        noted(daemon, "until")
        waiting = sender.send_many("bad.until", [[folder, f"other{n}"] for n in range(3)])
        outlast(2 * PATIENCE_S)
        assert kept(daemon)
        go(daemon)
        assert sender.results([long, *waiting]) == ["until", "other0", "other1", "other2"]
    assert [len(notes(daemon, word)) for word in ("until", "other0", "other1", "other2")] == [1, 1, 1, 1]
    assert [record for record in daemon.logs("all:0") if "precondition" in str(record).lower()] == []


@pytest.mark.parametrize("victim", ["worker", "child", "everything"])
def test_it_is_sent_again_when_its_worker_dies(
    impatient: RabbitMQ, redis_url: str, make_daemon: MakeDaemon, victim: str
) -> None:
    daemon = start(make_daemon, impatient, redis_url, concurrency=1)
    with Sender(daemon) as sender:
        long = sender.send("bad.until", str(daemon.folder))
    (child,) = noted(daemon, "until")
    wait_until(lambda: kept(daemon), 30)
    if victim == "everything":
        for process in daemon.processes():
            process.kill()
        daemon.wait_exit()
        assert len(kept(daemon)) == 1
        daemon.start()
    else:
        main = daemon.main_pid("all:0")
        assert main is not None
        os.kill(child if victim == "child" else main, signal.SIGKILL)
    noted(daemon, "until", 2)
    go(daemon)
    with Sender(daemon) as sender:
        assert sender.result(long) == "until"
    wait_until(lambda: not kept(daemon), 30)
    assert len(notes(daemon, "until")) == 2
    assert [record["task_outcome"] for record in wait_until(lambda: daemon.records(long))] == ["SUCCESS"]
    assert len(actions(daemon, "resent")) >= 1


def test_a_task_that_kills_its_workers_after_the_deadline_goes_to_quarantine(
    impatient: RabbitMQ, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = start(make_daemon, impatient, redis_url, concurrency=1, max_deliveries=2)
    with Sender(daemon) as sender:
        long = sender.send("bad.until", str(daemon.folder))
        for count in (1, 2):
            child = noted(daemon, "until", count)[-1]
            wait_until(lambda: kept(daemon), 30)
            os.kill(child, signal.SIGKILL)
        assert str(sender.result(long)).startswith("WorkerLostError")
        (listed,) = daemon.ctl("quarantine", "list")["tasks"]
        assert (listed["id"], listed["deaths"]) == (long, 2)
        wait_until(lambda: not kept(daemon), 30)


def test_a_restart_that_does_not_wait_gives_it_back(
    impatient: RabbitMQ, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = start(make_daemon, impatient, redis_url, concurrency=1, shutdown_timeout="1s")
    with Sender(daemon) as sender:
        long = sender.send("bad.until", str(daemon.folder))
        noted(daemon, "until")
        wait_until(lambda: kept(daemon), 30)
        daemon.ctl("restart", "all")
        noted(daemon, "until", 2)
        go(daemon)
        assert sender.result(long) == "until"
        wait_until(lambda: not kept(daemon), 30)
    assert daemon.ctl("quarantine", "list")["tasks"] == []


def test_an_operator_ends_it_for_good(impatient: RabbitMQ, redis_url: str, make_daemon: MakeDaemon) -> None:
    daemon = start(make_daemon, impatient, redis_url, concurrency=1)
    with Sender(daemon) as sender:
        long = sender.send("bad.until", str(daemon.folder))
        noted(daemon, "until")
        wait_until(lambda: kept(daemon), 30)
        daemon.ctl("kill", long)
        assert "operator" in str(sender.result(long))
        wait_until(lambda: not kept(daemon), 30)
        # The slot is free again, and takes others.
        assert isinstance(sender.result(sender.send("bad.pid")), int)
    assert len(notes(daemon, "until")) == 1


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_far_eta_is_not_held_at_the_broker_and_is_kept_on_time(
    impatient: RabbitMQ, redis_url: str, make_daemon: MakeDaemon, queue_type: str
) -> None:
    daemon = start(make_daemon, impatient, redis_url, concurrency=1, queue_type=queue_type)
    with Sender(daemon) as sender:
        begin = time.time()
        later = sender.send("bad.until", str(daemon.folder), countdown=2 * PATIENCE_S)
        if queue_type == "classic":
            wait_until(lambda: kept(daemon), 30)
            # It outlives its worker, and a restart of all.
            daemon.ctl("restart", "all")
            assert len(kept(daemon)) == 1
        noted(daemon, "until")
        assert time.time() - begin >= 2 * PATIENCE_S
        go(daemon)
        assert sender.result(later) == "until"
        wait_until(lambda: not kept(daemon), 30)
    (record,) = wait_until(lambda: daemon.records(later))
    assert record["task_outcome"] == "SUCCESS"
    assert len(notes(daemon, "until")) == 1


def test_a_revoked_task_that_is_kept_for_its_eta_does_not_run(
    impatient: RabbitMQ, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = start(make_daemon, impatient, redis_url, concurrency=1)
    with Sender(daemon) as sender:
        later = sender.send("bad.until", str(daemon.folder), countdown=2 * PATIENCE_S)
        wait_until(lambda: kept(daemon), 30)
        daemon.ctl("revoke", later)
        assert "revoked" in str(sender.result(later)).lower()
        wait_until(lambda: not kept(daemon), 30)
    assert notes(daemon, "until") == []


def test_the_broker_may_die_meanwhile(redis_url: str, own_rabbitmq: RabbitMQ, make_daemon: MakeDaemon) -> None:
    daemon = start(make_daemon, own_rabbitmq, redis_url, concurrency=2)
    with Sender(daemon) as sender:
        folder = str(daemon.folder)
        long = sender.send("bad.until", folder)
        later = sender.send("bad.until", folder, "later", countdown=10)
        noted(daemon, "until")
        wait_until(lambda: len(kept(daemon)) == 2, 30)
        own_rabbitmq.kill()
        wait_until(lambda: daemon.worker("all:0")["state"] == "STARTING", 60)
        own_rabbitmq.start()
        daemon.wait_running()
        noted(daemon, "later")
        go(daemon)
        assert sender.results([long, later]) == ["until", "later"]
        assert all(isinstance(pid, int) for pid in sender.results(sender.send_many("bad.pid", [[]] * 20)))
        wait_until(lambda: not kept(daemon), 30)
    assert [len(notes(daemon, word)) for word in ("until", "later")] == [1, 1]


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_what_ran_when_the_broker_died_disturbs_nobody_later(
    redis_url: str, own_rabbitmq: RabbitMQ, make_daemon: MakeDaemon, queue_type: str
) -> None:
    """Its message went back with the connection, and comes again: that one is acknowledged, and kept, in its place."""
    daemon = start(make_daemon, own_rabbitmq, redis_url, queue_type=queue_type, ack_deadline="3s")
    with Sender(daemon) as sender:
        folder = str(daemon.folder)
        long = sender.send("bad.until", folder)
        noted(daemon, "until")
        own_rabbitmq.kill()
        wait_until(lambda: daemon.worker("all:0")["state"] == "STARTING", 60)
        own_rabbitmq.start()
        daemon.wait_running()
        wait_until(lambda: kept(daemon), 60)
        connections = len(actions(daemon, "consuming", "all:0"))
        outlast(7)
        assert len(actions(daemon, "consuming", "all:0")) == connections
        go(daemon)
        assert sender.result(long) == "until"
        wait_until(lambda: not kept(daemon), 30)
    assert len(notes(daemon, "until")) == 1
    assert len(daemon.records(long)) == 1


def test_a_retry_of_a_task_that_was_sent_again_runs(
    impatient: RabbitMQ, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = start(make_daemon, impatient, redis_url, concurrency=2)
    with Sender(daemon) as sender:
        task = sender.send("bad.retry", str(daemon.folder))
        (child,) = noted(daemon, "retry0")
        wait_until(lambda: kept(daemon), 30)
        os.kill(child, signal.SIGKILL)
        noted(daemon, "retry0", 2)
        wait_until(lambda: kept(daemon), 30)
        go(daemon)
        assert sender.result(task) == 1
        wait_until(lambda: not kept(daemon), 30)
    assert len(notes(daemon, "retry1")) == 1


def test_a_drain_may_take_longer_than_the_broker_has_patience(
    impatient: RabbitMQ, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = start(make_daemon, impatient, redis_url, concurrency=2, ack_deadline="3s")
    with Sender(daemon) as sender:
        folder = str(daemon.folder)
        long = sender.send("bad.until", folder)
        noted(daemon, "until")
        daemon.run_ctl("restart", "all", "--timeout", "2")  # it waits no longer for that
        outlast(2 * PATIENCE_S)
        assert len(kept(daemon)) == 1
        go(daemon)
        assert sender.result(long) == "until"
        wait_until(lambda: not kept(daemon), 30)
    assert len(notes(daemon, "until")) == 1


def test_a_disk_that_refuses_is_told_and_the_task_goes_on(
    impatient: RabbitMQ, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = start(make_daemon, impatient, redis_url, concurrency=1)
    (daemon.folder / "state" / "kept").write_text("no folder")
    with Sender(daemon) as sender:
        long = sender.send("bad.until", str(daemon.folder))
        told = [wait_until(lambda: [r for r in daemon.logs("all:0") if "cannot be kept" in r["message"]], 30)]
        go(daemon)
        assert sender.result(long) == "until"
    assert len(told[0]) == 1
    assert "/state/kept" in told[0][0]["message"]


def test_on_redis_nobody_loses_patience(redis_url: str, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(configuration(redis_url, redis_url, ack_deadline="1s"))
    daemon.module("badtasks", SOURCE)
    daemon.start()
    daemon.wait_running()
    assert "limetaskd.ack_deadline" in daemon.tail(200)
    with Sender(daemon) as sender:
        long = sender.send("bad.until", str(daemon.folder))
        noted(daemon, "until")
        outlast(2)
        assert kept(daemon) == []
        go(daemon)
        assert sender.result(long) == "until"


def test_a_file_that_cannot_be_read_is_set_aside(
    impatient: RabbitMQ, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = start(make_daemon, impatient, redis_url, concurrency=1)
    with Sender(daemon) as sender:
        long = sender.send("bad.until", str(daemon.folder))
        noted(daemon, "until")
        (path,) = wait_until(lambda: kept(daemon), 30)
        (path.parent / "1-1.json").write_text("{")
        wait_until((path.parent / "1-1.damaged").exists, 30)
        go(daemon)
        assert sender.result(long) == "until"
