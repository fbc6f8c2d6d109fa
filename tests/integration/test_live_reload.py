"""Changes under load, on both brokers: what was sent ran once, nothing was lost, nothing ran twice."""

from __future__ import annotations

import copy
import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from kombu import Connection

from tests.support import crm, load
from tests.support.daemon import Daemon
from tests.support.jobs import Urls, urls  # noqa: F401
from tests.support.load import Load
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]
CATEGORIES = ("asap", "background", "other")


@pytest.fixture
def config(urls: Urls) -> dict[str, Any]:  # noqa: F811
    return crm.configuration(
        urls.broker, urls.backend, imports=[crm.MODULE, load.MODULE], strategy="dedicated", pools={}
    )


@pytest.fixture
def daemon(config: dict[str, Any], make_daemon: MakeDaemon) -> Daemon:
    made = make_daemon(config)
    made.module(crm.MODULE, crm.SOURCE)
    made.module(load.MODULE, load.SOURCE)
    made.start()
    made.wait_running()
    return made


def reload(daemon: Daemon, config: dict[str, Any], **limetaskd: Any) -> dict[str, Any]:
    new = copy.deepcopy(config)
    new["limetaskd"].update(limetaskd)
    daemon.configure(new)
    answer: dict[str, Any] = daemon.ctl("reload")
    return answer


def pids(daemon: Daemon) -> dict[str, int]:
    status = daemon.status()
    assert status is not None
    return {worker["name"]: worker["pid"] for pool in status["pools"] for worker in pool["workers"]}


def consumed(daemon: Daemon, pool: str) -> list[str]:
    return sorted(daemon.pool(pool)["queues"])


def test_every_change_under_load(daemon: Daemon, config: dict[str, Any]) -> None:
    with Load(daemon, CATEGORIES) as work:
        work.goes_on()
        daemon.ctl("pause", "q_asap", "lime_default_task_queue")
        work.goes_on()
        daemon.ctl("resume", "q_asap", "lime_default_task_queue")
        work.goes_on()
        for size in ("asap=4", "asap=1", "asap=default"):
            daemon.ctl("scale", size)
            work.goes_on()
        daemon.ctl("scale", "--workers", "background=2")
        work.goes_on()
        daemon.ctl("restart", "background")
        work.goes_on()
        # A queue moves to another pool, in place.
        before = pids(daemon)
        reload(daemon, config, pools={"asap": {"queues": ["q_asap", "q_background"]}})
        assert consumed(daemon, "asap") == ["q_asap", "q_background"]
        work.goes_on()
        after = pids(daemon)
        assert (after["asap:0"], after["default:0"]) == (before["asap:0"], before["default:0"])
        assert "background:0" not in after
        # One pool for all, and back.
        reload(daemon, config, strategy="all-in-one")
        assert list(pids(daemon)) == ["all:0"]
        work.goes_on()
        reload(daemon, config)
        assert set(pids(daemon)) == {"asap:0", "background:0", "default:0"}
        work.goes_on()
        # What only new processes can take.
        reload(daemon, config, celery={"worker_max_tasks_per_child": 1000})
        work.goes_on()
        # A category and its queue go; what waits in it is still done.
        new = copy.deepcopy(config)
        del new["tasks"]["routing"]["qos"]["background"]
        reload(daemon, new)
        work.goes_on()
    work.check()


def test_no_queue_is_ever_without_a_consumer(amqp_url: str, redis_url: str, make_daemon: MakeDaemon) -> None:
    config = crm.configuration(amqp_url, redis_url, imports=[crm.MODULE, load.MODULE], pools={})
    daemon = make_daemon(config)
    daemon.module(crm.MODULE, crm.SOURCE)
    daemon.module(load.MODULE, load.SOURCE)
    daemon.start()
    daemon.wait_running()
    names = ("lime_default_task_queue", "q_asap", "q_background")
    seen: Counter[str] = Counter()
    bare: list[str] = []
    done = threading.Event()

    def look() -> None:
        with Connection(amqp_url) as connection:
            channel = connection.channel()
            while not done.is_set():
                for name in names:
                    seen[name] += 1
                    if not channel.queue_declare(name, passive=True).consumer_count:
                        bare.append(name)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        reload(daemon, config, pools={"asap": {"queues": ["q_asap", "q_background"]}})
        reload(daemon, config, pools={"default": {"queues": ["lime_default_task_queue", "q_asap"]}})
        reload(daemon, config, strategy="all-in-one")
        reload(daemon, config, celery={"worker_max_tasks_per_child": 1000})
        reload(daemon, config, imports=[crm.MODULE])
        daemon.ctl("restart", "asap", "background", "default")
    finally:
        done.set()
        looking.join()
    assert bare == []
    assert min(seen.values()) > 50


def test_a_removed_queue_is_consumed_until_it_is_empty(daemon: Daemon, config: dict[str, Any]) -> None:
    events = daemon.ctl("pause", "q_background")
    assert events["queues"][0]["action"] == "paused"
    with Sender(daemon) as sender:
        waits = sender.send_many("crm.add", [[n, 1] for n in range(5)], qos="background")
        delayed = sender.send("crm.add", 40, 2, qos="background", countdown=2)
        before = pids(daemon)
        new = copy.deepcopy(config)
        del new["tasks"]["routing"]["qos"]["background"]
        daemon.configure(new)
        wait_until(lambda: daemon.ctl("reload", "--plan")["waiting"][0]["depth"] == 6, message="the depth to be known")
        plan = daemon.ctl("reload", "--plan")
        assert plan["waiting"] == [{"queue": "q_background", "depth": 6, "pool": "default"}]
        assert (plan["workers"]["drained"], plan["workers"]["started"]) == (["background:0"], [])
        assert pids(daemon) == before
        reload(daemon, new)
        assert set(pids(daemon)) == {"asap:0", "default:0"}
        assert consumed(daemon, "default") == ["lime_default_task_queue", "q_background"]
        assert daemon.pool("default")["paused"] == daemon.pool("default")["departing"] == ["q_background"]
        # Killed and started anew: it is known still.
        daemon.kill()
        daemon.start()
        daemon.wait_running()
        assert consumed(daemon, "default") == ["lime_default_task_queue", "q_background"]
        daemon.ctl("resume", "q_background")
        assert sender.results(waits) == [n + 1 for n in range(5)]
        assert sender.result(delayed) == 42
        wait_until(lambda: consumed(daemon, "default") == ["lime_default_task_queue"], 60, "the queue to be let go")
        assert pids(daemon) == {name: before[name] for name in ("asap:0", "default:0")}
        assert json.loads((daemon.state_dir / "queues.json").read_text())["departing"] == []
        # Gone for good: what comes now waits.
        late = sender.send("crm.add", 1, 1, headers={"__queue": "q_background"})
        assert sender.result(sender.send("crm.add", 2, 2, qos="asap")) == 4
        assert daemon.records(late) == []
        # And it may come back.
        reload(daemon, config)
        assert sender.result(late) == 2


def test_a_failing_reload_leaves_senders_and_queues_alone(daemon: Daemon, config: dict[str, Any]) -> None:
    before = pids(daemon)
    new = copy.deepcopy(config)
    new["tasks"]["routing"]["qos"] = {"asap": "q_email", "background": "q_background"}
    new["limetaskd"]["pools"] = {"asap": {"env": {"PYTHONHOME": "/nowhere"}}, "background": {"concurrency": 3}}
    daemon.configure(new)
    with Load(daemon, CATEGORIES) as work:
        work.goes_on()
        done = daemon.run_ctl("reload")
        assert done.returncode == 1
        assert "undone" in done.stderr
        work.goes_on()
        assert pids(daemon) == before
    work.check()
    assert consumed(daemon, "asap") == ["q_asap"]
    assert daemon.worker("background:0")["concurrency"] == 2


def test_log_level_and_shutdown_timeout_change_in_place(daemon: Daemon, config: dict[str, Any]) -> None:
    before = pids(daemon)
    answer = reload(daemon, config, logging={"level": "DEBUG"}, shutdown_timeout="1s")
    assert pids(daemon) == before
    assert {change["how"] for change in answer["diff"]["pools_changed"]} == {"in_place"}
    gate, started = daemon.folder / "gate", daemon.folder / "started"
    with Sender(daemon) as sender:
        wait_until(
            lambda: sender.result(sender.send("crm.add", 1, 1, qos="asap")) == 2
            and any(record["level"] == "DEBUG" for record in daemon.logs("asap:0"))
        )
        # A task that takes longer than the new timeout goes back, and runs again.
        task = sender.send("crm.wait_for", str(gate), str(started), qos="asap")
        wait_until(started.exists)
        daemon.ctl("stop", "asap")
        gate.touch()
        daemon.ctl("start", "asap")
        assert isinstance(sender.result(task), int)


def test_a_rolling_restart_of_several_workers_ends_at_the_first_that_fails(
    daemon: Daemon, config: dict[str, Any]
) -> None:
    daemon.ctl("scale", "--workers", "asap=2")
    before = pids(daemon)
    with Load(daemon, CATEGORIES) as work:
        work.goes_on()
        daemon.ctl("restart", "asap", "asap:0", "--at-once", "2")
        after = pids(daemon)
        assert all(after[name] != before[name] for name in ("asap:0", "asap:1"))
        daemon.module(load.MODULE, "raise RuntimeError('broken on purpose')")
        done = daemon.run_ctl("restart", "asap")
        assert done.returncode == 1
        assert "broken on purpose" in done.stderr
        daemon.module(load.MODULE, load.SOURCE)
        work.goes_on()
        assert pids(daemon) == after
    work.check()


def test_many_reloads_under_load_leak_nothing(daemon: Daemon, config: dict[str, Any]) -> None:
    other = copy.deepcopy(config)
    other["tasks"]["routing"]["qos"]["email"] = "q_background"
    other["limetaskd"]["pools"] = {"asap": {"concurrency": 3}, "background": {"shutdown_timeout": "20s"}}

    def figures() -> tuple[int, int, int]:
        wait_until(lambda: len(daemon.processes()) <= 15, 60, lambda: f"{daemon.processes()} to end")
        descriptors = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
        return descriptors, len(daemon.processes()), psutil.Process(daemon.pid).memory_info().rss

    with Load(daemon, CATEGORIES) as work:
        work.goes_on()
        for _ in range(2):
            reload(daemon, other)
            reload(daemon, config)
        before, first = pids(daemon), figures()
        for _ in range(14):  # with both brokers about sixty; benchmarks/reloads.py does a thousand
            reload(daemon, other)
            reload(daemon, config)
        work.goes_on()
        last = figures()
        assert pids(daemon) == before
    work.check()
    # A client of this very moment may still be there.
    assert last[0] <= first[0] + 4, (first, last)
    assert last[1] <= first[1] + 1, (first, last)
    assert last[2] - first[2] < 8 * 1024 * 1024, (first, last)
