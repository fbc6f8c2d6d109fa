"""A result store that is away: what has done its work waits for it, and no task fails for that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from limetaskd.daemon.unstored import from_json
from tests.support.brokers import Redis
from tests.support.channel import Bench, drain_and_wait, records_of, settings_of, settled
from tests.support.crm import SOURCE, configuration
from tests.support.daemon import Daemon
from tests.support.jobs import JOBS
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MORE = JOBS + '''
@task(delivery="at-most-once")
def die_when(path):
    note("begin")
    while not os.path.exists(path):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


@task
def reject_when(path):
    note("begin")
    while not os.path.exists(path):
        time.sleep(0.01)
    raise Reject("no", requeue=False)


@task(retry_on_worker_lost=True, max_retries=3, default_retry_delay=0)
def die_first(path):
    note("begin")
    if os.path.exists(path):
        return
    while not os.path.exists(path):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


@task(time_limit=2)
def limited(path):
    note("begin")
    time.sleep(120)
'''
ENDING = '''
    import signal


    @task(name="crm.die_when", delivery="at-most-once")
    def die_when(path, started):
        wait_for(path, started)
        os.kill(os.getpid(), signal.SIGKILL)


    @task(name="crm.limited", time_limit=2)
    def limited(started):
        Path(started).touch()
        time.sleep(120)
'''
AWAY = "the result store cannot be used, trying again"


def _said(bench: Bench, text: str, name: str = "w:0") -> int:
    return sum(text in str(record.get("message")) for record in records_of(bench.folder / f"{name}.log"))


def left(bench: Bench) -> int:
    """Messages in the queue: when the worker has gone, what it had not acknowledged, too."""
    with bench.app.connection() as connection:
        return int(
            connection.default_channel.queue_declare(bench.settings.queues[0].actual, passive=True).message_count
        )


@pytest.mark.parametrize(
    ("pool_kind", "delivery"),
    [("prefork", "at-least-once"), ("prefork", "at-most-once"), ("threads", "at-least-once"), ("solo", "at-most-once")],
)
def test_a_task_that_ends_meanwhile_is_stored_and_recorded_once(
    amqp_url: str, own_redis: Redis, pool_kind: str, delivery: str
) -> None:
    with Bench(settings_of(amqp_url, own_redis.url, delivery=delivery), {"jobs": JOBS}) as bench:
        process = bench.worker(pool_kind=pool_kind, concurrency=1 if pool_kind == "solo" else 2)
        gate = bench.folder / "gate"
        results = [bench.app.send_task("jobs.until", (str(gate), n)) for n in range(1 if pool_kind == "solo" else 2)]
        results.append(bench.app.send_task("jobs.fail"))
        wait_until(lambda: len(bench.lines()) == len(results) - 1)
        own_redis.kill()
        gate.touch()
        wait_until(lambda: _said(bench, AWAY) >= 1)
        own_redis.start()
        wait_until(lambda: len(bench.records()) == len(results))
        assert [result.get(timeout=30) for result in results[:-1]] == [None] * (len(results) - 1)
        with pytest.raises(Exception, match="on purpose"):
            results[-1].get(timeout=30)
        assert drain_and_wait(process) == 0
        outcomes = {record["task_id"]: record["task_outcome"] for record in bench.records()}
        assert outcomes == {result.id: "SUCCESS" for result in results[:-1]} | {results[-1].id: "FAILURE"}
        assert len(bench.records()) == len(results)
        assert Counter(bench.lines()) == Counter(
            f"{word}{n}" for word in ("begin", "end") for n in range(len(results) - 1)
        )


def test_what_comes_again_meanwhile_waits_to_hear_whether_it_had_ended(amqp_url: str, own_redis: Redis) -> None:
    with Bench(settings_of(amqp_url, own_redis.url), {"jobs": JOBS}) as bench:
        first = bench.worker(concurrency=1)
        gate = bench.folder / "gate"
        result = bench.app.send_task("jobs.until", (str(gate),))
        settled(lambda: len(bench.lines()), 1)
        own_redis.kill()
        first.end()
        second = bench.worker("w:1", concurrency=1)
        wait_until(lambda: _said(bench, "the result store is away", "w:1") >= 1)
        wait_until(lambda: bench.daemon.states["w:1"].reserved == 1)
        gate.touch()
        assert bench.lines() == ["begin0"]
        assert bench.records("w:1") == []
        own_redis.start()
        assert result.get(timeout=60) is None
        wait_until(lambda: bench.records("w:1"))
        assert drain_and_wait(second) == 0
        assert [(record["task_id"], record["task_outcome"]) for record in bench.records("w:1")] == [
            (result.id, "SUCCESS")
        ]
        assert bench.lines() == ["begin0", "begin0", "end0"]


def test_an_operator_may_choose_not_to_wait(amqp_url: str, own_redis: Redis) -> None:
    chosen = {"result_backend_always_retry": False}
    with Bench(settings_of(amqp_url, own_redis.url, celery=chosen), {"jobs": JOBS}) as bench:
        process = bench.worker(concurrency=1)
        gate = bench.folder / "gate"
        result = bench.app.send_task("jobs.until", (str(gate),))
        settled(lambda: len(bench.lines()), 1)
        own_redis.kill()
        gate.touch()
        record = wait_until(bench.records)[0]
        assert (record["task_id"], record["task_outcome"]) == (result.id, "FAILURE")
        own_redis.start()
        assert drain_and_wait(process) == 0
        assert len(bench.records()) == 1
        assert Path(process.log).read_text().count(AWAY) == 0


@pytest.mark.parametrize(
    ("what", "pool_kind"),
    [
        ("worker_lost", "prefork"),
        ("time_limit", "prefork"),
        ("rejected", "prefork"),
        ("revoked", "threads"),
        ("expired", "prefork"),
        ("not_registered", "threads"),
    ],
)
def test_what_the_main_process_ends_is_recorded_and_left_to_the_daemon(
    amqp_url: str, own_redis: Redis, what: str, pool_kind: str
) -> None:
    with Bench(settings_of(amqp_url, own_redis.url), {"jobs": MORE}) as bench:
        process = bench.worker(pool_kind=pool_kind, concurrency=3)
        gate = bench.folder / "gate"
        send = bench.app.send_task
        names = {"worker_lost": "jobs.die_when", "time_limit": "jobs.limited", "rejected": "jobs.reject_when"}
        first, later = names.get(what), None
        running = send(first or "jobs.until", (str(gate),))
        if what in ("revoked", "expired"):
            later = send("jobs.number", (1,), countdown=3, expires=1 if what == "expired" else None)
        settled(lambda: len(bench.lines()), 1)
        own_redis.kill()
        if what == "revoked":
            bench.app.control.revoke(later.id)
        elif what == "not_registered":
            later = send("jobs.nobody_knows")
        if first is not None:
            gate.touch()
        ended = later or running
        (record,) = wait_until(lambda: [record for record in bench.records() if record["task_id"] == ended.id], 60)
        assert (record["task_outcome"], record["task_failure_reason"]) == ("FAILURE", what)
        (event,) = wait_until(lambda: [event for event in bench.daemon.events if event.event == "task_end_not_stored"])
        assert event.fields["task_id"] == ended.id
        assert event.fields["state"] == ("REVOKED" if what in ("revoked", "expired") else "FAILURE")
        own_redis.start()
        gate.touch()
        assert drain_and_wait(process) == 0
        assert left(bench) == 0
        assert len([record for record in bench.records() if record["task_id"] == ended.id]) == 1
        assert len(bench.records()) == (1 if later is None else 2)


def test_a_store_that_hangs_is_not_asked_for_each_end(amqp_url: str, own_redis: Redis) -> None:
    with Bench(settings_of(amqp_url, own_redis.url), {"jobs": MORE}) as bench:
        process = bench.worker(concurrency=4)
        gate = bench.folder / "gate"
        tasks = [bench.app.send_task("jobs.die_when", (str(gate),)) for _ in range(4)]
        settled(lambda: len(bench.lines()), 4)
        own_redis.pause()
        gate.touch()
        # Ten seconds for each question would be more than a minute.
        wait_until(lambda: len(bench.records()) == 4, 50)
        own_redis.resume()
        assert {record["task_id"]: record["task_failure_reason"] for record in bench.records()} == {
            task.id: "worker_lost" for task in tasks
        }
        wait_until(lambda: sum(event.event == "task_end_not_stored" for event in bench.daemon.events) == 4)
        assert drain_and_wait(process) == 0


def test_a_retry_after_a_lost_worker_is_no_end(amqp_url: str, own_redis: Redis) -> None:
    with Bench(settings_of(amqp_url, own_redis.url), {"jobs": MORE}) as bench:
        process = bench.worker(concurrency=2)
        gate = bench.folder / "gate"
        task = bench.app.send_task("jobs.die_first", (str(gate),))
        settled(lambda: len(bench.lines()), 1)
        own_redis.kill()
        gate.touch()
        wait_until(lambda: len(bench.lines()) == 2)
        own_redis.start()
        wait_until(lambda: [record for record in bench.records() if "task_outcome" in record])
        assert drain_and_wait(process) == 0
        assert left(bench) == 0
        assert [record.get("task_outcome") for record in bench.records()] == [None, "SUCCESS"]
        assert {record["task_id"] for record in bench.records()} == {task.id}
        assert [event for event in bench.daemon.events if event.event == "task_end_not_stored"] == []


@pytest.mark.parametrize("trouble", ["kill", "pause"])
def test_a_solo_worker_that_is_idle_waits_for_no_store(amqp_url: str, own_redis: Redis, trouble: str) -> None:
    with Bench(settings_of(amqp_url, own_redis.url), {"jobs": JOBS}) as bench:
        process = bench.worker(pool_kind="solo", concurrency=1)
        assert bench.app.send_task("jobs.number", (1,)).get(timeout=60) == 1
        getattr(own_redis, trouble)()
        unknown = bench.app.send_task("jobs.nobody_knows")
        wait_until(lambda: [record for record in bench.records() if record["task_id"] == unknown.id], 60)
        assert bench.daemon.ask("w:0", "reopen").error is None
        getattr(own_redis, {"kill": "start", "pause": "resume"}[trouble])()
        assert bench.app.send_task("jobs.number", (2,)).get(timeout=60) == 2
        assert drain_and_wait(process) == 0


@pytest.mark.parametrize("then", ["goes on", "dies", "stops"])
def test_a_daemon_stores_it_when_the_store_is_back(
    amqp_url: str, own_redis: Redis, make_daemon: Callable[..., Daemon], then: str
) -> None:
    daemon = make_daemon(configuration(amqp_url, own_redis.url, strategy="all-in-one", concurrency=4))
    daemon.module("crmtasks", SOURCE + ENDING)
    daemon.start()
    daemon.wait_running()
    started = [daemon.folder / name for name in ("one", "two")]
    gate = daemon.folder / "gate"
    with Sender(daemon) as sender:
        dying = sender.send("crm.die_when", str(gate), str(started[0]))
        limited = sender.send("crm.limited", str(started[1]))
        revoked = sender.send("crm.add", 1, 1, countdown=3)
        wait_until(lambda: all(path.exists() for path in started))
        own_redis.kill()
        gate.touch()
        daemon.ctl("revoke", revoked)
        reasons = {dying: "worker_lost", limited: "time_limit", revoked: "revoked"}
        wait_until(lambda: {record["task_id"] for record in daemon.records()} == set(reasons), 60)
        kept = daemon.state_dir / "unstored.json"
        wait_until(lambda: kept.exists() and len(from_json(kept.read_text())) == 3, 60)
        if then == "dies":
            daemon.kill()
            daemon.start()
        elif then == "stops":
            assert daemon.stop() == 0
            daemon.start()
        own_redis.start()
        kinds = [str(result).partition(":")[0] for result in sender.results(list(reasons))]
        assert kinds == ["WorkerLostError", "TimeLimitExceeded", "TaskRevokedError"]
    wait_until(lambda: not kept.exists())
    assert {record["task_id"]: record["task_failure_reason"] for record in daemon.records()} == reasons
    daemon.wait_running()
    assert daemon.stop() == 0
    assert len(daemon.records()) == 3


def test_an_operator_sees_what_waits_for_it(
    amqp_url: str, own_redis: Redis, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon(configuration(amqp_url, own_redis.url, strategy="all-in-one", concurrency=2))
    daemon.module("crmtasks", SOURCE)
    daemon.start()
    daemon.wait_running()
    gate, started = daemon.folder / "gate", daemon.folder / "started"
    with Sender(daemon) as sender:
        task = sender.send("crm.wait_for", str(gate), str(started))
        wait_until(started.exists)
        assert [one["waits"] for one in daemon.ctl("tasks")["tasks"]] == [False]
        own_redis.kill()
        gate.touch()
        wait_until(lambda: [one["waits"] for one in daemon.ctl("tasks")["tasks"]] == [True])
        assert "1 of these wait for the result store" in daemon.run_ctl("status").stdout
        own_redis.start()
        assert isinstance(sender.result(task), int)
    wait_until(lambda: daemon.ctl("tasks")["tasks"] == [])
    assert daemon.stop() == 0
