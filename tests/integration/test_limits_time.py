"""The limit of time from outside: whatever the worker's main process does, and in pools that have no limits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.support.limits import SOURCE, configuration, failed_once, noted, notes
from tests.support.sender import Sender
from tests.support.waiting import pause, wait_until

MakeDaemon = Callable[..., Daemon]


def test_a_task_of_a_frozen_worker_is_ended_in_time_and_never_runs_again(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = make_daemon(configuration(amqp_url, redis_url, pools={"all": {"time_limit": "1s"}}))
    daemon.module("badtasks", SOURCE)
    daemon.start()
    main = daemon.wait_running()["pools"][0]["workers"][0]["pid"]
    with Sender(daemon) as sender:
        task_id = sender.send("bad.sleep", str(daemon.folder))
        (child,) = noted(daemon, "sleep")
        os.kill(main, signal.SIGSTOP)
        answer = failed_once(daemon, sender, task_id, "time_limit")
        assert answer.startswith("TimeLimitExceeded")
        assert not Path(f"/proc/{child}/exe").exists()
        # Its message is still with the frozen worker: it comes back, and is dropped.
        os.kill(main, signal.SIGKILL)
        wait_until(lambda: any(r.get("action") == "ended_before" for r in daemon.logs()), 60, "the message to go")
        assert isinstance(sender.result(sender.send("bad.pid")), int)
        wait_until(lambda: daemon.status()["queues"][0]["depth"] == 0)  # type: ignore[index]
    assert daemon.stop() == 0
    assert len(notes(daemon, "sleep")) == 1
    assert len(daemon.records(task_id)) == 1


@pytest.mark.parametrize("kind", ["threads", "solo"])
def test_pools_without_limits_have_ours(redis_url: str, make_daemon: MakeDaemon, kind: str) -> None:
    pools = {"all": {"time_limit": "1s", "pool": kind}}
    daemon = make_daemon(configuration(redis_url, redis_url, pools=pools))
    daemon.module("badtasks", SOURCE)
    daemon.start()
    before = daemon.wait_running()["pools"][0]["workers"][0]["pid"]
    with Sender(daemon) as sender:
        name = "bad.gil" if kind == "threads" else "bad.sleep"
        task_id = sender.send(name, str(daemon.folder))
        failed_once(daemon, sender, task_id, "time_limit")
        assert isinstance(sender.result(sender.send("bad.pid")), int)
        assert daemon.worker("all:0")["pid"] != before
    assert daemon.stop() == 0
    assert len(notes(daemon, name.removeprefix("bad."))) == 1
    assert len(daemon.records(task_id)) == 1


def test_celery_ends_it_first_when_it_can_and_short_tasks_are_left_alone(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    config = configuration(amqp_url, redis_url, pools={"all": {"time_limit": "1s"}}, limits={"time_grace": "30s"})
    daemon = make_daemon(config)
    daemon.module("badtasks", SOURCE)
    daemon.start()
    daemon.wait_running()
    with Sender(daemon) as sender:
        limited = sender.send("bad.sleep", str(daemon.folder))
        failed_once(daemon, sender, limited, "time_limit")
        assert sender.result(sender.send("bad.sleep", str(daemon.folder), 0.2)) == "slept"
    pause(1.0)
    assert not any(record.get("action") == "task_killed" for record in daemon.logs())
    assert daemon.worker("all:0")["restarts"] == 0
    assert daemon.stop() == 0
