"""Latency, queue and outcome of one try; planned times of the schedule. No broker."""

from __future__ import annotations

import os
from collections import namedtuple
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery.app.trace import TraceInfo
from celery.exceptions import Ignore, Reject, Retry
from celery.schedules import crontab, schedule
from hypothesis import given
from hypothesis import strategies as st

from limetaskd.beat.scheduler import planned_at
from limetaskd.core.board import BY_DAEMON, BY_DAEMON_DONE, BY_NOBODY, BY_WORKER, TIME_LIMIT
from limetaskd.core.settings import Queue, Routing, Settings
from limetaskd.worker.once import NotBegunError
from limetaskd.worker.records import Recorder, Tracer, latency_ms, outcome_of
from limetaskd.worker.request import RequestMixin
from limetaskd.worker.scoreboard import Scoreboard

NOW = datetime(2026, 11, 25, 10, 0, 0, 500000, tzinfo=UTC)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"__sent_at": None, "eta": None}, None),
        ({"__sent_at": "yesterday"}, None),
        ({"__sent_at": True}, None),
        ({"__sent_at": 90.0}, 10_000),
        ({"__sent_at": 200.0}, 0),  # clocks differ between hosts
        ({"__sent_at": 50.0, "eta": _iso(99.0)}, 1000),
        ({"__sent_at": 99.0, "eta": _iso(50.0)}, 1000),
        ({"eta": _iso(99.0)}, 1000),
        ({"__sent_at": 99.0, "eta": "no time"}, 1000),
    ],
)
def test_latency_counts_from_the_later_of_sending_and_eta(headers: dict[str, Any], expected: float | None) -> None:
    assert latency_ms(headers, 100.0) == expected


@given(sent=st.floats(0, 2e9), eta=st.none() | st.floats(0, 2e9), started=st.floats(0, 2e9))
def test_latency_is_never_negative(sent: float, eta: float | None, started: float) -> None:
    latency = latency_ms({"__sent_at": sent, "eta": None if eta is None else _iso(eta)}, started)
    assert latency is not None
    assert latency >= 0
    assert latency <= max(0.0, (started - sent) * 1000) + 1


def _recorder() -> Recorder:
    queues = [
        Queue("q", "prod_q", "ex", "direct", "prod_key"),
        Queue("t", "prod_t", "ex", "topic", "prod_t", "quorum"),
    ]
    return Recorder(Settings("app", "amqp://", None, "prod", "", "ex", queues, Routing("q")))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"delivery_info": {"exchange": "ex", "routing_key": "prod_key"}}, "prod_q"),
        ({"delivery_info": {"exchange": "", "routing_key": "prod_q"}}, "prod_q"),
        (
            {
                "delivery_info": {"exchange": "celery_delayed_27", "routing_key": "0.1.prod_t"},
                "__routed_queue": "prod_t",
            },
            "prod_t",
        ),
        ({"delivery_info": {"exchange": "", "routing_key": "other"}}, "other"),
        ({"delivery_info": None}, None),
        ({}, None),
    ],
)
def test_the_queue_is_the_actual_one(headers: dict[str, Any], expected: str | None) -> None:
    assert _recorder().queue_of(headers) == expected


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (None, ("SUCCESS", None)),
        (TraceInfo("FAILURE", ValueError()), ("FAILURE", None)),
        (TraceInfo("RETRY", Retry()), (None, None)),
        (TraceInfo("IGNORED", Ignore()), ("SUCCESS", None)),
        (TraceInfo("IGNORED", Ignore("Replaced by new task")), (None, None)),
        (TraceInfo("REJECTED", Reject(requeue=True)), (None, None)),
        (TraceInfo("REJECTED", Reject(requeue=False)), ("FAILURE", "rejected")),
    ],
)
def test_outcomes(info: Any, expected: tuple[str | None, str | None]) -> None:
    assert outcome_of(info) == expected


@dataclass
class Entry:
    schedule: Any
    last_run_at: datetime


@given(period_s=st.integers(1, 100_000), away=st.floats(0, 50), begin=st.integers(0, 10**9))
def test_an_interval_is_planned_in_whole_periods(period_s: int, away: float, begin: int) -> None:
    last = datetime.fromtimestamp(begin, UTC)
    now = last + timedelta(seconds=period_s * (1 + away))
    every = schedule(timedelta(seconds=period_s), app=_Now(now))
    planned = planned_at(Entry(every, last), now)
    assert (planned - last) % timedelta(seconds=period_s) == timedelta(0)
    assert planned <= now < planned + timedelta(seconds=period_s)


class _Now:
    """What a schedule asks of its app."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self.timezone = UTC
        self.conf = namedtuple("Conf", "beat_cron_starting_deadline enable_utc timezone")(None, True, "UTC")

    def now(self) -> datetime:
        return self._now

    def uses_utc_timezone(self) -> bool:
        return True


def test_a_crontab_is_planned_at_its_latest_time() -> None:
    every_minute = crontab(app=_Now(NOW))
    assert planned_at(Entry(every_minute, NOW - timedelta(minutes=1)), NOW) == NOW.replace(microsecond=0)
    assert planned_at(Entry(every_minute, NOW - timedelta(hours=3)), NOW) == NOW.replace(microsecond=0)
    # Away for longer than is worth counting.
    assert planned_at(Entry(every_minute, NOW - timedelta(days=30)), NOW) == NOW


@pytest.mark.parametrize(("settled", "written"), [(BY_NOBODY, 1), (BY_WORKER, 1), (BY_DAEMON, 0), (BY_DAEMON_DONE, 0)])
def test_a_task_that_the_daemon_has_recorded_is_not_recorded_by_its_worker(settled: int, written: int) -> None:
    """A result store that was frozen for a minute: the daemon had given up on the worker."""
    scoreboard = Scoreboard(None, 1)
    writer = scoreboard.writer()
    assert writer is not None
    writer.begin("1", "t", "q")
    (slot,) = scoreboard.board.read()
    assert scoreboard.board.condemn(slot, TIME_LIMIT)
    if settled == BY_DAEMON_DONE:
        assert scoreboard.board.settle(slot, BY_DAEMON)
    if settled != BY_NOBODY:
        assert scoreboard.board.settle(slot, settled)
    records: list[Any] = []

    class Made(RequestMixin):
        runtime = SimpleNamespace(board=scoreboard)  # type: ignore[assignment]
        recorder = SimpleNamespace(write=lambda *args, **_: records.append(args))  # type: ignore[assignment]
        worker_pid, id, task, request_dict, time_start = os.getpid(), "1", SimpleNamespace(name="t"), {}, 1.0

    Made().record("FAILURE", TIME_LIMIT)
    assert len(records) == written


@pytest.mark.parametrize("granted", [True, False])
def test_what_may_run_once_asks_when_its_slot_says_that_it_runs(granted: bool) -> None:
    """From then on its death is told; one that must not begin leaves nothing."""
    scoreboard = Scoreboard(None, 1)
    asked: list[bool] = []

    def ask(_slot: Any, headers: Any) -> None:
        asked.append(scoreboard.running(os.getpid(), headers["id"]) is not None)
        if not granted:
            raise NotBegunError

    records: list[Any] = []
    recorder: Any = SimpleNamespace(queue_of=lambda _headers: "q", write=lambda *args, **_: records.append(args))
    permits: Any = SimpleNamespace(ask=ask)
    task = SimpleNamespace(name="t", soft_time_limit=None, time_limit=None, acks_late=False)
    traced = Tracer(recorder, scoreboard, (None, None), permits).wrap(task, lambda *_: (1, None, 0.1, None))
    with nullcontext() if granted else pytest.raises(NotBegunError):
        traced("1", (), {}, {"id": "1"})
    assert asked == [True]
    assert len(records) == granted
    assert scoreboard.running(os.getpid(), "1") is None
    assert scoreboard.ended(os.getpid(), "1") is granted
