"""Execution records: exactly one for each task that ends for good, whatever ends it."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from celery.exceptions import TimeLimitExceeded, WorkerLostError

from limetaskd.core.jsonlog import EXECUTION_FIELDS
from tests.support.channel import Bench, drain_and_wait, settings_of, settled
from tests.support.jobs import JOBS, Urls, urls  # noqa: F401
from tests.support.waiting import wait_until


def _record_of(bench: Bench, task_id: str) -> dict[str, Any]:
    """The one record with an outcome of a task."""
    found = wait_until(lambda: [r for r in bench.records() if r["task_id"] == task_id and "task_outcome" in r])
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("pool_kind", ["prefork", "threads", "solo"])
def test_what_ends_by_itself(urls: Urls, pool_kind: str) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker, urls.backend), {"jobs": JOBS}) as bench:
        process = bench.worker(pool_kind=pool_kind)
        send = bench.app.send_task
        good = send("jobs.number", (1, 0.02), headers={"__user_id": "42"})
        bad = send("jobs.fail")
        again = send("jobs.retried", headers={"__qos_category": "asap", "__user_id": "7"})
        ignored, rejected, unknown = send("jobs.ignored"), send("jobs.rejected"), send("jobs.nobody_knows")
        # Delivered at once, too late when its time has come. (What expires in a queue, RabbitMQ drops itself.)
        expired = send("jobs.number", (2,), countdown=2, expires=1)
        later = send("jobs.number", (3,), countdown=1)
        record = _record_of(bench, good.id)
        assert set(EXECUTION_FIELDS) <= set(record)
        assert (record["task_name"], record["task_outcome"], record["level"]) == ("jobs.number", "SUCCESS", "INFO")
        assert (record["task_queue"], record["task_user_id"]) == ("lime_default_task_queue", "42")
        assert record["application"] == "tests"
        assert record["process"] == "w:0"
        assert record["task_duration_ms"] >= 20
        assert record["task_latency_ms"] >= 0
        assert "task_failure_reason" not in record
        assert _record_of(bench, bad.id)["task_outcome"] == "FAILURE"
        assert _record_of(bench, again.id)["task_outcome"] == "SUCCESS"
        # Other slots run the next try while the former still writes: no order among them.
        tries = wait_until(lambda: len(t := [r for r in bench.records() if r["task_id"] == again.id]) >= 3 and t)
        assert isinstance(tries, list)
        assert sorted("task_outcome" in r for r in tries) == [False, False, True]
        assert {(r["task_queue"], r["task_user_id"]) for r in tries} == {("lime_task_queue_asap", "7")}
        assert _record_of(bench, ignored.id)["task_outcome"] == "SUCCESS"
        for result, reason in ((rejected, "rejected"), (unknown, "not_registered"), (expired, "expired")):
            record = _record_of(bench, result.id)
            assert (record["task_outcome"], record["task_failure_reason"]) == ("FAILURE", reason)
            assert set(EXECUTION_FIELDS) <= set(record)
        assert _record_of(bench, later.id)["task_latency_ms"] < 900  # from its ETA, not from its sending
        assert drain_and_wait(process) == 0
        ended = [r["task_id"] for r in bench.records() if "task_outcome" in r]
        assert len(ended) == len(set(ended)) == 8


def test_what_is_ended_from_outside(urls: Urls) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker, urls.backend), {"jobs": JOBS}) as bench:
        process = bench.worker(concurrency=1)
        limited = bench.app.send_task("jobs.too_long")
        with pytest.raises(TimeLimitExceeded):
            limited.get(timeout=60)
        record = _record_of(bench, limited.id)
        assert record["task_failure_reason"] == "time_limit"
        assert record["task_duration_ms"] >= 900
        lost = bench.app.send_task("jobs.die_once")
        with pytest.raises(WorkerLostError):
            lost.get(timeout=60)
        assert _record_of(bench, lost.id)["task_failure_reason"] == "worker_lost"
        ended = bench.app.send_task("jobs.until", (str(bench.folder / "never"), 1))
        settled(lambda: len(bench.lines()), 1)
        bench.app.control.revoke(ended.id, terminate=True)
        assert _record_of(bench, ended.id)["task_failure_reason"] == "operator"
        # All three are gone for good, and the pool is whole.
        assert bench.app.send_task("jobs.number", (5,)).get(timeout=60) == 5
        assert drain_and_wait(process) == 0
        assert sorted(bench.lines()) == ["5", "begin1"]
        assert all(r["task_outcome"] == "FAILURE" for r in bench.records() if "task_failure_reason" in r)
        assert len(bench.records()) == 4


def test_a_redelivered_task_has_no_record_until_it_ends(urls: Urls) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker, urls.backend), {"jobs": JOBS}) as bench:
        gate = bench.folder / "gate"
        process = bench.worker(concurrency=1)
        sent = bench.app.send_task("jobs.until", (str(gate), 1))
        settled(lambda: len(bench.lines()), 1)
        os.kill(process.children()[0], signal.SIGKILL)
        settled(lambda: len(bench.lines()), 2)
        assert bench.records() == []
        assert [event.event for event in bench.daemon.events] == ["child_died", "task_redelivered"]
        gate.touch()
        sent.get(timeout=60)
        assert _record_of(bench, sent.id)["task_outcome"] == "SUCCESS"
        assert drain_and_wait(process) == 0


@pytest.mark.parametrize("pool_kind", ["threads", "solo"])
def test_sys_exit_in_a_shared_process_ends_the_task_only(urls: Urls, pool_kind: str) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker, urls.backend), {"jobs": JOBS}) as bench:
        process = bench.worker(pool_kind=pool_kind)
        sent = bench.app.send_task("jobs.leave")
        with pytest.raises(Exception, match="end its process"):
            sent.get(timeout=60)
        assert _record_of(bench, sent.id)["task_outcome"] == "FAILURE"
        assert bench.app.send_task("jobs.number", (1,)).get(timeout=60) == 1
        assert drain_and_wait(process) == 0


def test_everything_is_in_the_log_once_as_json_or_as_a_raw_line(redis_url: str) -> None:
    source = (
        "import logging, sys, warnings\n"
        "from celery.utils.log import get_task_logger\n"
        "from limetaskd.tasks.decorators import task\n"
        "@task\n"
        "def talk():\n"
        "    get_task_logger(__name__).info('by the task logger')\n"
        "    logging.getLogger('mine').info('by my logger', extra={'colour': 'red'})\n"
        "    warnings.warn('by a warning')\n"
        "    print('by print')\n"
        "    sys.stderr.write('by stderr\\n')\n"
        "    logging.getLogger('mine').info('redis://u:secret@h/')\n"
    )
    with Bench(settings_of(redis_url, redis_url), {"talking": source}) as bench:
        process = bench.worker(concurrency=1)
        bench.app.send_task("talking.talk").get(timeout=60)
        wait_until(bench.records)
        assert drain_and_wait(process) == 0
        text = (bench.folder / "w:0.log").read_text()
        raw = [line for line in text.splitlines() if not line.startswith("{")]
        assert raw == ["by print", "by stderr"]
        messages = [r["message"] for r in bench.records(logger=None)]
        for message in ("by the task logger", "by my logger", "redis://u:***@h/"):
            assert messages.count(message) == 1
        assert sum("by a warning" in message for message in messages) == 1
        assert next(r for r in bench.records(logger=None) if r["message"] == "by my logger")["colour"] == "red"
        assert "secret" not in text
