"""What becomes of tasks that do not end by themselves: one record, one result, an answer. Quarantine, kill, revoke."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import redis
from kombu import Connection

from limetaskd.core.board import BY_DAEMON, BY_DAEMON_DONE, MEMORY_LIMIT, Board, Slot
from limetaskd.tasks import redis_owners
from tests.support.brokers import RabbitMQ, Redis
from tests.support.daemon import Daemon
from tests.support.jobs import Urls, urls  # noqa: F401
from tests.support.limits import SOURCE, configuration, failed_once, noted, notes
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]


def start(make_daemon: MakeDaemon, broker: str, backend: str, **limetaskd: Any) -> Daemon:
    daemon = make_daemon(configuration(broker, backend, **limetaskd))
    daemon.module("badtasks", SOURCE)
    daemon.start()
    daemon.wait_running()
    return daemon


def events(daemon: Daemon, name: str) -> list[dict[str, Any]]:
    return [record for record in daemon.logs() if record.get("action") == name]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_poison_task_goes_to_quarantine_and_the_others_go_on(
    urls: Urls, make_daemon: MakeDaemon, pool: str  # noqa: F811
) -> None:
    queue_type = "quorum" if urls.kind == "amqp" and pool == "prefork" else "classic"
    # Threads share their process: whoever runs beside the poison dies with it, and counts.
    pools = {"all": {"pool": pool, "concurrency": 2 if pool == "prefork" else 1}}
    daemon = start(
        make_daemon, urls.broker, urls.backend, pools=pools, queue_type=queue_type, max_deliveries=2
    )
    folder = str(daemon.folder)
    with Sender(daemon) as sender:
        word = "segv" if pool == "prefork" else "exit"
        poison = sender.send(f"bad.{word}", folder)
        good = sender.send_many("bad.pid", [[]] * 10)
        assert failed_once(daemon, sender, poison, "worker_lost").startswith("WorkerLostError")
        assert all(isinstance(result, int) for result in sender.results(good))
        assert len(notes(daemon, word)) == 2
        (listed,) = daemon.ctl("quarantine", "list")["tasks"]
        assert (listed["id"], listed["name"], listed["deaths"]) == (poison, f"bad.{word}", 2)
        (shown,) = daemon.ctl("quarantine", "show", poison)["tasks"]
        assert folder in shown["body"]
        assert [death["worker"] for death in shown["history"]] == ["all:0", "all:0"]
        (process,) = daemon.ctl("show", "all:0")["processes"]
        found = process["post_mortems"]
        assert [item["kind"] for item in found] == ["child_crash" if pool == "prefork" else "crash"] * 2
        assert all(item["tasks"][0]["id"] == poison for item in found)
        if pool == "prefork":
            assert any("Segmentation fault" in line for line in found[0]["last_lines"])
            assert "SIGSEGV" in found[0]["exit"]
        assert f"bad.{word} {poison}" in daemon.run_ctl("show", "all").stdout
        # Looking does not use it up, and it keeps its arguments when it is sent again.
        assert daemon.run_ctl("quarantine", "list").stdout.count(poison) == 1
        assert daemon.run_ctl("quarantine", "show", "nobody").returncode == 1
        daemon.ctl("quarantine", "replay", poison)
        noted(daemon, word, 4)
        (again,) = wait_until(lambda: daemon.ctl("quarantine", "list")["tasks"], 60)
        assert (again["id"], again["deaths"]) == (poison, 2)
        assert daemon.ctl("quarantine", "drop", "--all", "--yes")["count"] == 1
        assert daemon.ctl("quarantine", "list")["tasks"] == []
    assert daemon.stop() == 0
    assert len(daemon.records(poison)) == 2  # one for each time that it was given up
    assert len(daemon.records()) == 12


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


def test_at_most_once_does_not_begin_while_the_broker_is_away(
    own_redis: Redis, redis_url: str, make_daemon: MakeDaemon
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
        wait_until(lambda: any("is not begun" in record["message"] for record in daemon.logs()), 30)
        assert notes(daemon, "b") == []
        own_redis.start()
        assert sender.result(second) == "b"
    assert daemon.worker("all:0")["pid"] == worker
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


@pytest.mark.parametrize("delivery", ["at-most-once", "at-least-once"])
def test_what_dies_while_no_daemon_runs_is_dealt_with_by_the_next(
    redis_url: str, make_daemon: MakeDaemon, delivery: str
) -> None:
    daemon = start(make_daemon, redis_url, redis_url, delivery=delivery, max_deliveries=1)
    with Sender(daemon) as sender:
        task = sender.send("bad.until", str(daemon.folder))
    noted(daemon, "until")
    daemon.kill()
    for process in daemon.processes():
        process.kill()
    daemon.start()
    if delivery == "at-least-once":
        # Nobody knows who killed it, so nobody is to blame: one death would be too many here.
        noted(daemon, "until", 2)
        (daemon.folder / "go").touch()
    with Sender(daemon) as sender:
        if delivery == "at-most-once":
            assert failed_once(daemon, sender, task, "worker_lost").startswith("WorkerLostError")
        else:
            assert sender.result(task) == "until"
            assert [record["task_outcome"] for record in daemon.records(task)] == ["SUCCESS"]


def test_a_sentence_that_a_dead_daemon_left_is_carried_out_by_the_next(
    redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = start(make_daemon, redis_url, redis_url, concurrency=1)
    with Sender(daemon) as sender:
        task = sender.send("bad.until", str(daemon.folder))
        noted(daemon, "until")
        daemon.kill()
        board, slot = running_slot(daemon)
        assert board.condemn(slot, MEMORY_LIMIT)
        daemon.start()
        failed_once(daemon, sender, task, "memory_limit")
        assert isinstance(sender.result(sender.send("bad.pid")), int)
    assert len(notes(daemon, "until")) == 1


def test_a_worker_whose_task_was_told_to_have_ended_is_killed_by_the_next_daemon(
    redis_url: str, make_daemon: MakeDaemon
) -> None:
    """The one before had stopped it, and died before the kill."""
    pools = {"all": {"pool": "threads", "concurrency": 1}}
    daemon = start(make_daemon, redis_url, redis_url, delivery="at-most-once", pools=pools)
    worker = daemon.worker("all:0")["pid"]
    with Sender(daemon) as sender:
        task = sender.send("bad.until", str(daemon.folder))
        noted(daemon, "until")
        daemon.kill()
        os.kill(worker, signal.SIGSTOP)
        board, slot = running_slot(daemon)
        assert board.condemn(slot, MEMORY_LIMIT)
        assert board.settle(slot, BY_DAEMON)
        assert board.settle(slot, BY_DAEMON_DONE)
        daemon.start()
        assert sender.result(sender.send("bad.pid")) != worker
    assert any(record.get("action") == "replaced" for record in daemon.logs())
    assert not events(daemon, "hung")
    assert daemon.stop() == 0
    assert daemon.records(task) == []  # by the one before


def running_slot(daemon: Daemon) -> tuple[Board, Slot]:
    (path,) = daemon.folder.rglob("boards/all:0.*")
    board = Board.open(str(path))
    (slot,) = [slot for slot in board.read() if slot.running is not None]
    return board, slot


def agent_pid(daemon: Daemon) -> int:
    status = daemon.status()
    assert status is not None
    return next(int(helper["pid"]) for helper in status["daemon"]["helpers"] if helper["name"] == "limetaskd:agent")


def recorded(daemon: Daemon) -> set[int]:
    return {json.loads(path.read_text())["pid"] for path in daemon.folder.rglob("processes/*.json")}


def wait_settled(board: Board, slot: Slot, how: int = BY_DAEMON) -> None:
    def settled() -> bool:
        sentence = board.sentence(slot)
        return sentence is not None and sentence.settled == how

    wait_until(settled)


def upgrade(daemon: Daemon) -> None:
    """For the first time, without a client that waits until all is up."""
    daemon.signal(signal.SIGUSR2)
    wait_until(lambda: len(events(daemon, "starts")) == 2, 60)


def ended_without_agent(daemon: Daemon, sender: Sender, agent: int) -> str:
    """A task over its limit, whose end the daemon has begun to tell and cannot, since the agent stands still."""
    os.kill(agent, signal.SIGSTOP)
    task = sender.send("bad.gil", str(daemon.folder))
    noted(daemon, "gil")
    wait_settled(*running_slot(daemon))
    return task


@pytest.mark.parametrize("delivery", ["at-most-once", "at-least-once"])
def test_a_death_that_daemons_die_over_is_dealt_with_once(
    redis_url: str, make_daemon: MakeDaemon, delivery: str
) -> None:
    daemon = start(make_daemon, redis_url, redis_url, delivery=delivery, concurrency=1)
    agent = agent_pid(daemon)
    with Sender(daemon) as sender:
        task = sender.send("bad.until", str(daemon.folder))
        noted(daemon, "until")
        board, slot = running_slot(daemon)
        # The daemon begins with it, and cannot go on while the agent stands still.
        os.kill(agent, signal.SIGSTOP)
        os.kill(daemon.worker("all:0")["pid"], signal.SIGKILL)
        wait_settled(board, slot)
        daemon.kill()
        # Nor can the next one, which dies over it as well.
        daemon.start()
        wait_until(lambda: daemon.status() and daemon.worker("all:0")["ready"])
        daemon.kill()
        os.kill(agent, signal.SIGCONT)
        daemon.start()
        if delivery == "at-most-once":
            assert failed_once(daemon, sender, task, "worker_lost").startswith("WorkerLostError")
        else:
            noted(daemon, "until", 2)
            (daemon.folder / "go").touch()
            assert sender.result(task) == "until"
            wait_until(lambda: daemon.records(task))
        # What the dead have left is gone, what the living need is there.
        wait_until(lambda: recorded(daemon) <= {process.pid for process in daemon.processes()})
        assert isinstance(sender.result(sender.send("bad.pid")), int)
    assert daemon.stop() == 0
    assert len(daemon.records(task)) == 1
    assert list(daemon.folder.rglob("processes/*")) == list(daemon.folder.rglob("boards/*")) == []


def test_a_task_that_a_daemon_was_ending_when_it_died_fails_once(redis_url: str, make_daemon: MakeDaemon) -> None:
    pools = {"all": {"time_limit": "1s", "pool": "threads"}}
    daemon = start(make_daemon, redis_url, redis_url, pools=pools)
    agent = agent_pid(daemon)
    before = daemon.worker("all:0")["pid"]
    with Sender(daemon) as sender:
        task = ended_without_agent(daemon, sender, agent)
        daemon.kill()
        os.kill(agent, signal.SIGCONT)
        daemon.start()
        failed_once(daemon, sender, task, "time_limit")
        assert isinstance(sender.result(sender.send("bad.pid")), int)
        assert daemon.worker("all:0")["pid"] != before
    assert daemon.stop() == 0
    assert len(notes(daemon, "gil")) == 1
    assert len(daemon.records(task)) == 1


@pytest.mark.parametrize("how", ["upgrade", "kill"])
def test_a_task_whose_end_cannot_be_told_yet_does_not_run_again(
    redis_url: str, make_daemon: MakeDaemon, how: str
) -> None:
    """The newer daemon has an agent that is not up yet."""
    pools = {"all": {"time_limit": "1s", "pool": "threads"}}
    daemon = start(make_daemon, redis_url, redis_url, pools=pools, concurrency=1)
    agent = agent_pid(daemon)
    with Sender(daemon) as sender:
        task = ended_without_agent(daemon, sender, agent)
        if how == "upgrade":
            upgrade(daemon)
        else:
            daemon.kill()
            os.kill(agent, signal.SIGKILL)
            daemon.start()
        failed_once(daemon, sender, task, "time_limit")
        assert isinstance(sender.result(sender.send("bad.pid")), int)
    assert daemon.stop() == 0
    assert len(notes(daemon, "gil")) == 1
    assert len(daemon.records(task)) == 1


@pytest.mark.parametrize("how", ["upgrade", "stop"])
def test_an_end_that_cannot_be_stored_is_stored_by_the_next_daemon(
    redis_url: str, make_daemon: MakeDaemon, how: str
) -> None:
    daemon = start(make_daemon, redis_url, redis_url, delivery="at-most-once", concurrency=1)
    agent = agent_pid(daemon)
    with Sender(daemon) as sender:
        task = sender.send("bad.until", str(daemon.folder))
        noted(daemon, "until")
        os.kill(agent, signal.SIGSTOP)
        os.kill(daemon.worker("all:0")["pid"], signal.SIGKILL)
        wait_until(lambda: any("is not stored yet" in record["message"] for record in daemon.logs()), 60)
        if how == "upgrade":
            upgrade(daemon)
        else:
            assert daemon.stop(60) == 0
            daemon.start()
        failed_once(daemon, sender, task, "worker_lost")
    assert daemon.stop() == 0
    assert len(daemon.records(task)) == 1


def test_what_a_daemon_has_ended_is_no_matter_for_the_next_one(redis_url: str, make_daemon: MakeDaemon) -> None:
    """The slot of a child that is dead goes on naming its task, for longer than logs are kept."""
    daemon = start(make_daemon, redis_url, redis_url, pools={"all": {"time_limit": "1s"}}, concurrency=2)
    main = daemon.worker("all:0")["pid"]
    with Sender(daemon) as sender:
        task = sender.send("bad.sleep", str(daemon.folder))
        noted(daemon, "sleep")
        board, slot = running_slot(daemon)
        os.kill(main, signal.SIGSTOP)  # so that the daemon does it all
        failed_once(daemon, sender, task, "time_limit")
        wait_settled(board, slot, BY_DAEMON_DONE)
        os.kill(main, signal.SIGCONT)
        daemon.kill()
        for log in daemon.folder.rglob("log/*.log"):
            log.write_text("")
        daemon.start()
        wait_until(lambda: daemon.status() and daemon.worker("all:0")["ready"])
        assert daemon.worker("all:0")["pid"] == main
        assert isinstance(sender.result(sender.send("bad.pid")), int)
    assert daemon.stop() == 0
    assert len(daemon.records(task)) == 1


def test_kill_ends_one_task_for_good(urls: Urls, make_daemon: MakeDaemon) -> None:  # noqa: F811
    daemon = start(make_daemon, urls.broker, urls.backend)
    with Sender(daemon) as sender:
        killed, other = sender.send_many("bad.sleep", [[str(daemon.folder), 120], [str(daemon.folder), 3]])
        noted(daemon, "sleep", 2)
        assert daemon.run_ctl("revoke", killed).returncode == 1  # it runs
        answer = daemon.ctl("kill", killed)
        assert answer["task"]["name"] == "bad.sleep"
        assert "operator" in failed_once(daemon, sender, killed, "operator")
        assert sender.result(other) == "slept"
        done = daemon.run_ctl("kill", killed)
        assert done.returncode == 1
        assert "runs on this host" in done.stderr
    assert daemon.worker("all:0")["restarts"] == 0
    assert daemon.stop() == 0
    assert len(notes(daemon, "sleep")) == 2


def test_a_revoked_task_does_not_run_also_after_a_restart_of_its_worker(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = start(make_daemon, amqp_url, redis_url)
    with Sender(daemon) as sender:
        soon = sender.send("bad.sleep", str(daemon.folder), 0, countdown=3)
        waiting = sender.send("bad.sleep", str(daemon.folder), 0, countdown=9)
        assert daemon.ctl("revoke", soon)["everywhere"] is True
        daemon.ctl("revoke", waiting)
        assert sender.result(soon).startswith("TaskRevokedError")
        daemon.ctl("restart", "all")
        assert sender.result(waiting).startswith("TaskRevokedError")
    records = wait_until(lambda: len(found := daemon.records()) == 2 and found)
    assert {record["task_failure_reason"] for record in records} == {"revoked"}
    assert daemon.stop() == 0
    assert notes(daemon, "sleep") == []


def test_sent_is_recorded_is_stored(amqp_url: str, redis_url: str, make_daemon: MakeDaemon) -> None:
    """Everything at once: each task has one record and one result."""
    daemon = start(
        make_daemon, amqp_url, redis_url, max_deliveries=1, pools={"all": {"time_limit": "2s"}},
        limits={"memory_hard": "150MiB"},
    )  # fmt: skip
    folder = str(daemon.folder)
    with Sender(daemon) as sender:
        bad = [
            sender.send(name, *arguments)
            for name, *arguments in (
                ("bad.sleep", folder), ("bad.grow", folder, 300), ("bad.exit", folder), ("bad.segv", folder),
                ("bad.once", folder), ("bad.fork", folder), ("bad.gil", folder),
            )
        ]  # fmt: skip
        good = sender.send_many("bad.pid", [[]] * 20)
        results = sender.results(bad + good, 100)
    kinds = [str(result).partition(":")[0] for result in results[: len(bad)]]
    assert kinds == [
        "TimeLimitExceeded", "TaskKilledError", "WorkerLostError", "WorkerLostError", "WorkerLostError",
        "TimeLimitExceeded", "TimeLimitExceeded",
    ]  # fmt: skip
    assert all(isinstance(result, int) for result in results[len(bad) :])
    wait_until(lambda: len(daemon.records()) >= len(bad + good), 30)
    assert daemon.stop() == 0
    assert sorted(record["task_id"] for record in daemon.records()) == sorted(bad + good)
