"""Limits of memory from outside, for children that grow fast and slow, and for whole workers; live through reload."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.limits import SOURCE, configuration, failed_once, noted, notes
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]


def actions(daemon: Daemon, action: str) -> list[dict[str, Any]]:
    return [record for record in daemon.logs() if record.get("action") == action]


def start(make_daemon: MakeDaemon, broker: str, backend: str, **limetaskd: Any) -> Daemon:
    daemon = make_daemon(configuration(broker, backend, **limetaskd))
    daemon.module("badtasks", SOURCE)
    daemon.start()
    daemon.wait_running()
    return daemon


@pytest.mark.parametrize("step_s", [0.0, 0.01])
def test_a_hog_is_killed_in_mid_task_and_others_are_not(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon, step_s: float
) -> None:
    daemon = start(make_daemon, amqp_url, redis_url, limits={"memory_hard": "150MiB"})
    with Sender(daemon) as sender:
        beside = sender.send("bad.sleep", str(daemon.folder), 6)
        noted(daemon, "sleep")
        hog = sender.send("bad.grow", str(daemon.folder), 300, step_s)
        answer = failed_once(daemon, sender, hog, "memory_limit")
        assert "memory_limit" in answer
        assert sender.result(beside) == "slept"
    (killed,) = actions(daemon, "task_killed")
    assert killed["memory_bytes"] >= killed["limit_bytes"] == 150 * 1024 * 1024
    assert 0 < killed["base_bytes"] < killed["limit_bytes"]
    assert daemon.worker("all:0")["restarts"] == 0
    assert daemon.stop() == 0
    assert len(notes(daemon, "grow")) == 1


def test_the_subprocesses_of_a_killed_child_go_with_it(redis_url: str, make_daemon: MakeDaemon) -> None:
    daemon = start(make_daemon, redis_url, redis_url)
    written = daemon.folder / "subprocess"
    with Sender(daemon) as sender:
        forking = sender.send("bad.fork", str(daemon.folder))
        child = int(wait_until(lambda: written.exists() and written.read_text()))
        daemon.ctl("kill", forking)
        failed_once(daemon, sender, forking, "operator")
    wait_until(lambda: not Path(f"/proc/{child}/exe").exists())
    assert daemon.stop() == 0


def test_a_leak_replaces_the_child_after_its_task_and_a_reload_changes_the_limit(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = start(make_daemon, amqp_url, redis_url, concurrency=1)
    with Sender(daemon) as sender:
        leaking = sender.result(sender.send("bad.leak", 120))
        assert sender.result(sender.send("bad.pid")) == leaking  # no limit yet
        daemon.configure(configuration(amqp_url, redis_url, concurrency=1, limits={"memory_soft": "100MiB"}))
        worker = daemon.worker("all:0")
        daemon.ctl("reload")
        assert daemon.worker("all:0")["pid"] == worker["pid"]
        (recycled,) = wait_until(lambda: actions(daemon, "child_recycled"), 60)
        assert recycled["memory_bytes"] >= recycled["limit_bytes"] == 100 * 1024 * 1024
        wait_until(lambda: sender.result(sender.send("bad.pid")) != leaking, 60)
        # Many tasks while children come and go: none is lost or failed.
        ids = sender.send_many("bad.leak", [[40]] * 12)
        results = sender.results(ids, 90)
        assert all(isinstance(result, int) for result in results)
        assert len(set(results)) > 1
    wait_until(lambda: len(daemon.records()) >= 14, 30)
    assert {record["task_outcome"] for record in daemon.records()} == {"SUCCESS"}
    assert daemon.stop() == 0


def test_a_worker_above_its_memory_is_replaced_rolling(redis_url: str, make_daemon: MakeDaemon) -> None:
    daemon = start(make_daemon, redis_url, redis_url, concurrency=1, limits={"worker_memory": "200MiB"})
    before = daemon.worker("all:0")["pid"]
    with Sender(daemon) as sender:
        grown = sender.send("bad.grow", str(daemon.folder), 220, 0.0, 4)
        assert sender.result(grown) == 220  # its worker drains, and lets it finish
        wait_until(lambda: daemon.worker("all:0")["pid"] not in (None, before), 60)
        (recycled,) = actions(daemon, "worker_recycled")
        assert recycled["memory_bytes"] >= recycled["limit_bytes"] == 200 * 1024 * 1024
    assert daemon.stop() == 0


def test_a_child_that_is_to_go_keeps_nobody_from_work(redis_url: str, make_daemon: MakeDaemon) -> None:
    daemon = start(make_daemon, redis_url, redis_url, limits={"memory_soft": "80MiB"})
    with Sender(daemon) as sender:
        hog = sender.send("bad.grow", str(daemon.folder), 100, 0.0, 8)
        (first,) = wait_until(lambda: actions(daemon, "child_recycled"), 60)
        # The other slot goes on while the first one finishes its task.
        assert first["victim"] not in sender.results(sender.send_many("bad.pid", [[]] * 20))
        assert daemon.records(hog) == []
        assert sender.result(hog) == 100
        wait_until(lambda: not Path(f"/proc/{first['victim']}/exe").exists(), 60)
        wait_until(lambda: len(daemon.worker("all:0")["children"]) == 2, 60)
    assert daemon.stop() == 0
