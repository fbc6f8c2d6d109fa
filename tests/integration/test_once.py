"""What must not run twice: tasks that may run at most once, over deaths and broken connections, and what runs still."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import psutil
import pytest
import redis
from kombu import Connection

from limetaskd import create_app
from limetaskd.tasks import redis_owners
from tests.support.brokers import RabbitMQ, Redis
from tests.support.channel import Bench, drain_and_wait, settings_of
from tests.support.daemon import Daemon
from tests.support.jobs import JOBS, Urls, urls  # noqa: F401
from tests.support.limits import agent_pid, events, failed_once, noted, notes, start
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]


@pytest.mark.parametrize(
    ("pool", "name"),
    [("solo", "once"), ("threads", "once"), ("prefork", "once"), ("prefork", "parricide")],
)
def test_at_most_once_is_failure_at_once_also_when_the_worker_dies(
    urls: Urls, make_daemon: MakeDaemon, pool: str, name: str  # noqa: F811
) -> None:
    daemon = start(make_daemon, urls.broker, urls.backend, pools={"all": {"pool": pool, "concurrency": 1}})
    agent = agent_pid(daemon)
    with Sender(daemon) as sender:
        # It can put up no tombstone in time: its message must have been acknowledged before it began.
        os.kill(agent, signal.SIGSTOP)
        try:
            lost = sender.send(f"bad.{name}", str(daemon.folder))
            assert isinstance(sender.result(sender.send("bad.pid")), int)
        finally:
            os.kill(agent, signal.SIGCONT)
        assert failed_once(daemon, sender, lost, "worker_lost").startswith("WorkerLostError")
    assert daemon.stop() == 0
    assert len(notes(daemon, "once")) == 1


def waiting(urls: Urls, queue: str) -> int:  # noqa: F811
    with Connection(urls.broker) as connection:
        channel = connection.default_channel
        if urls.kind == "redis":
            return int(channel.client.llen(queue))
        return int(channel.queue_declare(queue, passive=True).message_count)


def break_connections(daemon: Daemon, urls: Urls, rabbitmq: RabbitMQ, redis_server: Redis) -> None:  # noqa: F811
    """All of them, for the first time; returns when the worker is back."""
    if urls.kind == "amqp":
        connections = "rabbit_networking:connections()"
        rabbitmq.evaluate(f'[rabbit_networking:close_connection(P, "test") || P <- {connections}].')
    else:
        redis_server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    wait_until(lambda: len(events(daemon, "consuming")) == 2, 60)


def test_at_most_once_is_once_over_a_connection_that_breaks(
    urls: Urls, rabbitmq: RabbitMQ, redis_server: Redis, make_daemon: MakeDaemon  # noqa: F811
) -> None:
    """What waits for a thread goes back to its queue, and comes again: only one of the two may run."""
    pools = {"all": {"pool": "threads", "concurrency": 1, "prefetch": 4}}
    daemon = start(make_daemon, urls.broker, urls.backend, delivery="at-most-once", pools=pools)
    worker = daemon.worker("all:0")["pid"]
    words = ["a", "b", "c", "d"]
    with Sender(daemon) as sender:
        tasks = sender.send_many("bad.until", [[str(daemon.folder), word] for word in words])
        wait_until(lambda: waiting(urls, "lime_default_task_queue") == 0, 30)  # the worker has all of them
        break_connections(daemon, urls, rabbitmq, redis_server)
        (daemon.folder / "go").touch()
        assert sender.results(tasks) == words
    assert daemon.worker("all:0")["pid"] == worker
    assert daemon.stop() == 0
    assert [len(notes(daemon, word)) for word in words] == [1, 1, 1, 1]
    assert sorted(record["task_id"] for record in daemon.records()) == sorted(tasks)


def test_a_child_that_has_a_task_when_the_connection_breaks_does_not_begin_it(
    urls: Urls, rabbitmq: RabbitMQ, redis_server: Redis, make_daemon: MakeDaemon  # noqa: F811
) -> None:
    """It is in its queue again, and comes again."""
    pools = {"all": {"concurrency": 1, "prefetch": 4}}  # on Redis, a worker that wants no more hears of no break
    daemon = start(make_daemon, urls.broker, urls.backend, pools=pools)
    main, child = (process.pid for process in daemon.named("all:0"))
    with Sender(daemon) as sender:
        os.kill(child, signal.SIGSTOP)
        lost = sender.send("bad.once", str(daemon.folder))
        wait_until(lambda: waiting(urls, "lime_default_task_queue") == 0, 30)
        wait_until(lambda: psutil.Process(main).status() == psutil.STATUS_SLEEPING)  # the child has it
        break_connections(daemon, urls, rabbitmq, redis_server)
        os.kill(child, signal.SIGCONT)
        failed_once(daemon, sender, lost, "worker_lost")
        assert isinstance(sender.result(sender.send("bad.pid")), int)
    assert daemon.stop() == 0
    assert len(notes(daemon, "once")) == 1
    assert len(daemon.records(lost)) == 1


@pytest.mark.parametrize("then", ["the broker is back", "a stop"])
def test_at_most_once_does_not_begin_while_the_broker_is_away(
    own_redis: Redis, redis_url: str, make_daemon: MakeDaemon, then: str
) -> None:
    """Nor is it ended for the time that it would have to wait: its message is in its queue."""
    pools = {"all": {"pool": "threads", "concurrency": 1, "prefetch": 4}}
    daemon = start(make_daemon, own_redis.url, redis_url, delivery="at-most-once", pools=pools)
    worker = daemon.worker("all:0")["pid"]
    with Sender(daemon) as sender:
        first, second = sender.send_many("bad.until", [[str(daemon.folder), word] for word in ("a", "b")])
        noted(daemon, "a")
        with redis.Redis.from_url(own_redis.url) as client:
            wait_until(lambda: client.llen("lime_default_task_queue") == 0, 30)
        own_redis.kill()
        wait_until(lambda: "waits for" in (daemon.worker("all:0")["reason"] or ""), 60)
        (daemon.folder / "go").touch()
        assert sender.result(first) == "a"
        # Its thread is free, and its message is in its queue.
        wait_until(lambda: daemon.worker("all:0")["active"] == 0, 30)
        assert notes(daemon, "b") == []
        if then == "a stop":
            assert daemon.stop() == 0  # in time, since nothing runs
            own_redis.start()
            daemon.start()
            daemon.wait_running()
        else:
            own_redis.start()
        assert sender.result(second) == "b"
    assert (daemon.worker("all:0")["pid"] == worker) == (then != "a stop")
    assert daemon.stop() == 0
    assert len(notes(daemon, "b")) == 1
    assert [record["task_outcome"] for record in daemon.records(second)] == ["SUCCESS"]


def test_at_most_once_does_not_begin_when_somebody_else_has_its_message(
    redis_url: str, make_daemon: MakeDaemon
) -> None:
    """Its worker was not seen for so long that what it held went back: a frozen machine, say."""
    pools = {"all": {"pool": "threads", "concurrency": 1, "prefetch": 4}}
    daemon = start(make_daemon, redis_url, redis_url, delivery="at-most-once", pools=pools)
    with Sender(daemon) as sender:
        tasks = sender.send_many("bad.until", [[str(daemon.folder), word] for word in ("a", "b")])
        noted(daemon, "a")
        with redis.Redis.from_url(redis_url) as client:
            wait_until(lambda: client.llen("lime_default_task_queue") == 0, 30)
            assert redis_owners.restore_dead(client, alive=lambda *_: False) == 1
        (daemon.folder / "go").touch()
        assert sender.results(tasks) == ["a", "b"]
    assert daemon.stop() == 0
    assert len(notes(daemon, "b")) == 1
    assert any("is not begun" in record["message"] for record in daemon.logs())
    assert len(daemon.records()) == 2


def test_at_most_once_is_failure_when_its_worker_is_stopped_at_once(redis_url: str, make_daemon: MakeDaemon) -> None:
    """Nobody can give it back."""
    daemon = start(make_daemon, redis_url, redis_url, delivery="at-most-once", concurrency=1)
    with Sender(daemon) as sender:
        task = sender.send("bad.until", str(daemon.folder))
        noted(daemon, "until")
        daemon.ctl("shutdown", "--now")
        assert daemon.wait_exit() == 0
        assert "was stopped" in sender.result(task)
    assert any("1 that may run at most once" in record["message"] for record in daemon.logs())
    (record,) = daemon.records(task)
    assert (record["task_outcome"], record["task_failure_reason"]) == ("FAILURE", "worker_lost")
    assert len(notes(daemon, "until")) == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_runs_still_when_the_connection_is_back_does_not_run_beside_itself(
    urls: Urls, rabbitmq: RabbitMQ, redis_server: Redis, make_daemon: MakeDaemon, pool: str  # noqa: F811
) -> None:
    pools = {"all": {"pool": pool, "concurrency": 2, "prefetch": 2}}
    daemon = start(make_daemon, urls.broker, urls.backend, pools=pools)
    with Sender(daemon) as sender:
        task = sender.send("bad.until", str(daemon.folder))
        noted(daemon, "until")
        break_connections(daemon, urls, rabbitmq, redis_server)
        wait_until(lambda: events(daemon, "runs_still"), 60)
        (daemon.folder / "go").touch()
        assert sender.result(task) == "until"
        assert isinstance(sender.result(sender.send("bad.pid")), int)
    wait_until(lambda: waiting(urls, "lime_default_task_queue") == 0, 30)
    assert daemon.stop() == 0
    assert len(notes(daemon, "until")) == 1
    assert [record["task_outcome"] for record in daemon.records(task)] == ["SUCCESS"]
    # Its message has been acknowledged: nobody gets it again.
    assert waiting(urls, "lime_default_task_queue") == 0


@pytest.mark.parametrize("why", ["expired", "revoked"])
def test_a_copy_that_comes_too_late_does_not_end_what_runs(
    urls: Urls, rabbitmq: RabbitMQ, redis_server: Redis, make_daemon: MakeDaemon, why: str  # noqa: F811
) -> None:
    pools = {"all": {"concurrency": 2, "prefetch": 2}}
    daemon = start(make_daemon, urls.broker, urls.backend, pools=pools)
    # RabbitMQ itself drops what has expired in its queue, and no copy comes.
    expires = 3.0 if why == "expired" and urls.kind == "redis" else None
    with Sender(daemon) as sender:
        task = sender.send("bad.until", str(daemon.folder), expires=expires)
        too_late = time.monotonic() + (expires or 0) + 0.1
        noted(daemon, "until")
        if why == "revoked":
            with create_app(str(daemon.config_path)) as app:
                app.control.revoke(task)  # limetaskctl refuses that of a task that runs
            wait_until(lambda: any("flagged as revoked" in record["message"] for record in daemon.logs()))
        wait_until(lambda: time.monotonic() > too_late)
        break_connections(daemon, urls, rabbitmq, redis_server)
        wait_until(lambda: events(daemon, "runs_still"), 60)
        (daemon.folder / "go").touch()
        assert sender.result(task) == "until"
    wait_until(lambda: waiting(urls, "lime_default_task_queue") == 0, 30)
    assert daemon.stop() == 0
    assert [record["task_outcome"] for record in daemon.records(task)] == ["SUCCESS"]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_copy_that_comes_too_late_adds_nothing_to_what_has_ended(
    own_redis: Redis, make_daemon: MakeDaemon, pool: str
) -> None:
    daemon = start(make_daemon, own_redis.url, own_redis.url, pools={"all": {"pool": pool, "concurrency": 2}})
    go = daemon.folder / "go"
    with Sender(daemon) as sender:
        task = sender.send("bad.until", str(daemon.folder), expires=4)
        too_late = time.monotonic() + 4.1
        noted(daemon, "until")
        own_redis.kill()
        go.touch()
        wait_until(lambda: time.monotonic() > too_late)
        own_redis.start()
        assert sender.result(task) == "until"
        other = sender.send("bad.pid")
        assert isinstance(sender.result(other), int)
    seen = Urls("redis", own_redis.url, own_redis.url)
    wait_until(lambda: waiting(seen, "lime_default_task_queue") == 0, 30)
    wait_until(lambda: events(daemon, "runs_still") or events(daemon, "ended_before"), 30)
    assert daemon.stop() == 0
    assert {record["task_id"]: record["task_outcome"] for record in daemon.records()} == dict.fromkeys(
        (task, other), "SUCCESS"
    )
    assert len(daemon.records()) == 2


@pytest.mark.parametrize("then", ["it ends", "it fails", "it dies"])
def test_what_runs_still_in_another_worker_of_the_host_is_waited_for(
    rabbitmq: RabbitMQ, amqp_url: str, redis_url: str, then: str
) -> None:
    """The copy of what it runs comes to us before its own connection is back."""
    with Bench(settings_of(amqp_url, redis_url), {"jobs": JOBS}) as bench:
        first = bench.worker("w:0", concurrency=1)
        gate = bench.folder / "gate"
        task = bench.app.send_task("jobs.until" if then != "it fails" else "jobs.fail_after", (str(gate),))
        wait_until(lambda: bench.lines() == ["begin0"])
        first.signal(signal.SIGSTOP)  # its main process alone
        second = bench.worker("w:1", concurrency=1)
        connections = "rabbit_networking:connections()"
        rabbitmq.evaluate(f'[rabbit_networking:close_connection(P, "test") || P <- {connections}].')
        bench.consuming("w:1")
        wait_until(lambda: bench.daemon.states["w:1"].reserved == 1)
        # It waits outside of the slot, which others may have.
        assert bench.app.send_task("jobs.number", (7,)).get(timeout=60) == 7
        if then == "it dies":
            first.end()
        gate.touch()
        first.signal(signal.SIGCONT)

        def outcomes() -> list[str]:
            records = bench.records("w:0") + bench.records("w:1")
            return [record["task_outcome"] for record in records if record["task_id"] == task.id]

        wait_until(outcomes, 60)
        wait_until(lambda: bench.daemon.states["w:1"].reserved == 0)
        for process in (first, second):
            if process.popen.poll() is None:
                assert drain_and_wait(process) == 0
        assert outcomes() == (["FAILURE"] if then == "it fails" else ["SUCCESS"])
        assert bench.lines().count("begin0") == (2 if then == "it dies" else 1)


def test_what_came_again_leaves_the_slots_to_others_while_the_store_is_away(amqp_url: str, own_redis: Redis) -> None:
    """In a slot its time limit would end it, though it has not run."""
    with Bench(settings_of(amqp_url, own_redis.url, time_limit_s=3.0), {"jobs": JOBS}) as bench:
        first = bench.worker("w:0", concurrency=1)
        tasks = [bench.app.send_task("jobs.until", (str(bench.folder / "gate"), n)) for n in range(2)]
        wait_until(lambda: bench.lines() == ["begin0"])
        own_redis.kill()
        first.end()
        second = bench.worker("w:1", concurrency=1)
        wait_until(lambda: bench.daemon.states["w:1"].reserved >= 1)
        too_late = time.monotonic() + 5
        wait_until(lambda: time.monotonic() > too_late)
        (bench.folder / "gate").touch()
        own_redis.start()
        assert [task.get(timeout=60) for task in tasks] == [None, None]
        assert drain_and_wait(second) == 0
        assert [record["task_outcome"] for record in bench.records("w:1")] == ["SUCCESS", "SUCCESS"]


@pytest.mark.parametrize("backend", [None, "rpc://", "cache+memory://"])
def test_what_came_again_with_a_time_to_expire_needs_no_result_store(amqp_url: str, backend: str | None) -> None:
    with Bench(settings_of(amqp_url, backend), {"jobs": JOBS}) as bench:
        first = bench.worker("w:0", concurrency=1)
        gate = bench.folder / "gate"
        task = bench.app.send_task("jobs.until", (str(gate),), expires=600)
        wait_until(lambda: bench.lines() == ["begin0"])
        first.end()
        second = bench.worker("w:1", concurrency=1)
        gate.touch()
        wait_until(lambda: bench.records("w:1"), 60)
        assert drain_and_wait(second) == 0
        assert [(record["task_id"], record["task_outcome"]) for record in bench.records("w:1")] == [
            (task.id, "SUCCESS")
        ]
