"""kill -9 of pool children and of whole workers, at any moment and under load, loses no task."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter

from limetaskd.core.channel import Phase
from tests.support.channel import Bench, Process, drain_and_wait, settings_of, settled
from tests.support.jobs import JOBS, Urls, urls  # noqa: F401
from tests.support.waiting import pause, wait_until

TOTAL = 300


def _send_all(bench: Bench, seconds: float, ids: list[str]) -> threading.Thread:
    sending = threading.Thread(
        target=lambda: ids.extend(bench.app.send_task("jobs.number", (n, seconds)).id for n in range(TOTAL))
    )
    sending.start()
    return sending


def _kill_child(process: Process) -> None:
    children = process.children()
    if children:
        try:
            os.kill(random.choice(children), signal.SIGKILL)
        except ProcessLookupError:
            return


def test_kill_9_of_pool_children_loses_no_task(urls: Urls) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker, urls.backend), {"jobs": JOBS}) as bench:
        process = bench.worker(concurrency=2, prefetch=4)
        ids: list[str] = []
        sending = _send_all(bench, 0.005, ids)
        deadline = time.monotonic() + 60
        kills = 0
        while len(set(bench.lines())) < TOTAL and time.monotonic() < deadline:
            if kills < 15:
                _kill_child(process)
                kills += 1
            pause(random.uniform(0.02, 0.2))
        sending.join()
        settled(lambda: len(set(bench.lines())), TOTAL)
        assert process.popen.poll() is None
        assert bench.daemon.phase("w:0") == Phase.CONSUMING
        assert drain_and_wait(process) == 0
        ended = Counter(record["task_id"] for record in bench.records() if "task_outcome" in record)
        assert [task_id for task_id, count in ended.items() if count > 1] == []
        log = process.log.read_text().splitlines()
        missing = [task_id for task_id in ids if task_id not in ended]
        assert [line for line in log for task_id in missing if task_id in line] == []
        assert missing == []
        assert kills >= 5


def test_kill_9_of_workers_loses_no_task(urls: Urls) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker, urls.backend), {"jobs": JOBS}) as bench:
        process = bench.worker(concurrency=2, prefetch=4)
        sending = _send_all(bench, 0.01, [])
        for _ in range(4):
            pause(random.uniform(0.1, 0.5))
            process.signal(signal.SIGKILL)
            process.wait()
            process = bench.worker(concurrency=2, prefetch=4)
        sending.join()
        settled(lambda: len(set(bench.lines())), TOTAL)
        assert drain_and_wait(process) == 0


def test_the_children_of_a_killed_worker_die_with_it(urls: Urls) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker), {"jobs": JOBS}) as bench:
        process = bench.worker()
        children = process.children()
        assert len(children) == 2
        process.signal(signal.SIGKILL)
        process.wait()
        # The daemon (here: the test's channel) sees the end at once: no child holds the connection.
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}/exe") for pid in children))  # noqa: PTH110


def test_a_killed_broker_comes_back_and_the_worker_goes_on(own_rabbitmq: object, redis_url: str) -> None:
    from tests.support.brokers import RabbitMQ

    assert isinstance(own_rabbitmq, RabbitMQ)
    with Bench(settings_of(own_rabbitmq.url, redis_url), {"jobs": JOBS}) as bench:
        process = bench.worker()
        pid = bench.daemon.states["w:0"].pid
        own_rabbitmq.kill()
        wait_until(lambda: bench.daemon.phase("w:0") == Phase.CONNECTING, 60)
        wait_until(lambda: "guest:***@" in (bench.daemon.states["w:0"].reason or ""), 30)
        own_rabbitmq.start()
        bench.consuming()
        assert bench.app.send_task("jobs.number", (7,)).get(timeout=60) == 7
        assert bench.daemon.states["w:0"].pid == pid
        assert drain_and_wait(process) == 0


def test_a_worker_waits_for_a_broker_that_is_not_there(own_redis: object) -> None:
    from tests.support.brokers import Redis

    assert isinstance(own_redis, Redis)
    own_redis.stop()
    with Bench(settings_of(own_redis.url), {"jobs": JOBS}) as bench:
        process = bench.start(bench.spec())
        wait_until(lambda: bench.daemon.phase("w:0") == Phase.CONNECTING, 60)
        wait_until(lambda: bench.daemon.states["w:0"].reason, 30)
        own_redis.start()
        bench.consuming()
        assert drain_and_wait(process) == 0
