"""How workers end: nothing that was sent is lost, and over a drain nothing runs twice."""

from __future__ import annotations

import signal
import threading
from collections import Counter

import pytest

from limetaskd.core.channel import Phase
from tests.support.channel import Bench, drain_and_wait, settings_of, settled
from tests.support.jobs import JOBS, Urls, urls  # noqa: F401
from tests.support.waiting import wait_until


@pytest.mark.parametrize("pool_kind", ["prefork", "threads", "solo"])
def test_over_drains_under_load_each_task_runs_exactly_once(urls: Urls, pool_kind: str) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker, urls.backend), {"jobs": JOBS}) as bench:
        total = 400
        first = bench.worker("w:1", pool_kind=pool_kind, prefetch=4)
        sending = threading.Thread(
            target=lambda: [bench.app.send_task("jobs.number", (n, 0.005)) for n in range(total)]
        )
        sending.start()
        settled(lambda: len(bench.lines()), 20)
        # Rolling: the next consumes before the former drains, twice.
        second = bench.worker("w:2", pool_kind=pool_kind, prefetch=4)
        assert drain_and_wait(first) == 0
        third = bench.worker("w:3", pool_kind=pool_kind, prefetch=4)
        assert drain_and_wait(second) == 0
        sending.join()
        settled(lambda: len(bench.lines()), total, timeout=90)
        assert drain_and_wait(third) == 0
        assert Counter(bench.lines()) == Counter(str(n) for n in range(total))
        ended = Counter(record["task_id"] for name in ("w:1", "w:2", "w:3") for record in bench.records(name))
        assert len(ended) == total
        assert set(ended.values()) == {1}


@pytest.mark.parametrize("how", ["signal", "command"])
def test_a_drain_waits_for_what_runs_and_gives_back_the_rest_at_once(urls: Urls, how: str) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker, urls.backend), {"jobs": JOBS}) as bench:
        gate = bench.folder / "gate"
        process = bench.worker("w:0", concurrency=1, prefetch=4)
        bench.app.send_task("jobs.until", (str(gate), 0))
        settled(lambda: len(bench.lines()), 1)
        for n in range(3):
            bench.app.send_task("jobs.number", (n,))
        bench.app.send_task("jobs.number", (3,), countdown=3600)
        wait_until(lambda: (bench.daemon.states["w:0"].reserved or 0) >= 4, 30, lambda: str(bench.daemon.states))
        if how == "signal":
            process.signal(signal.SIGTERM)
        else:
            assert bench.daemon.ask("w:0", "drain").error is None
        wait_until(lambda: bench.daemon.phase("w:0") == Phase.DRAINING)
        # While the first still runs, another worker gets what was only prefetched.
        bench.worker("w:1")
        settled(lambda: len(bench.lines()), 4)
        assert process.popen.poll() is None
        gate.touch()
        assert process.wait() == 0
        assert sorted(bench.lines()) == sorted(["begin0", "end0", "0", "1", "2"])
        assert (bench.daemon.states["w:1"].reserved or 0) >= 0


@pytest.mark.parametrize(
    ("pool_kind", "end"),
    [("prefork", "second"), ("prefork", "deadline"), ("threads", "quit"), ("solo", "second")],
)
def test_at_once_what_runs_is_given_back_and_runs_again(urls: Urls, pool_kind: str, end: str) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker, urls.backend), {"jobs": JOBS}) as bench:
        gate = bench.folder / "gate"
        spec_timeout = 0.5 if end == "deadline" else 120.0
        process = bench.worker("w:0", concurrency=1, pool_kind=pool_kind, shutdown_timeout_s=spec_timeout)
        bench.app.send_task("jobs.until", (str(gate), 0))
        bench.app.send_task("jobs.number", (1,))
        settled(lambda: len(bench.lines()), 1)
        if end == "quit":
            process.signal(signal.SIGQUIT)
        else:
            process.signal(signal.SIGTERM)
            if end == "second":
                wait_until(lambda: bench.daemon.phase("w:0") == Phase.DRAINING)
                process.signal(signal.SIGTERM)
        assert process.wait(30) != 0
        assert bench.records() == []
        gate.touch()
        bench.worker("w:1", pool_kind=pool_kind)
        settled(lambda: len(bench.lines()), 4)
        assert sorted(bench.lines()) == sorted(["begin0", "begin0", "end0", "1"])


def test_a_drain_works_while_the_broker_is_away(own_redis: object) -> None:
    from tests.support.brokers import Redis

    assert isinstance(own_redis, Redis)
    with Bench(settings_of(own_redis.url), {"jobs": JOBS}) as bench:
        process = bench.worker()
        own_redis.kill()
        wait_until(lambda: bench.daemon.phase("w:0") == Phase.CONNECTING, 60)
        wait_until(lambda: "refused" in (bench.daemon.states["w:0"].reason or ""))  # at first it is told of the reset
        assert bench.daemon.ask("w:0", "drain").error is None
        assert process.wait(30) == 0


def test_a_worker_that_was_told_to_stop_before_it_began_ends_cleanly(urls: Urls) -> None:  # noqa: F811
    slow = "import time\ntime.sleep(1)\n"
    with Bench(settings_of(urls.broker, imports=["slow"]), {"slow": slow}) as bench:
        process = bench.start(bench.spec())
        wait_until(lambda: bench.daemon.phase("w:0") == Phase.STARTING)
        process.signal(signal.SIGTERM)
        assert process.wait(30) == 0
