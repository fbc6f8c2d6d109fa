"""Workers that hang are found, dumped, killed and replaced; those that only look so are left alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.limits import SOURCE, configuration, noted
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]
POOLS = {
    "frozen": "prefork", "blocked": "prefork", "busy": "prefork", "gil": "threads", "alone": "solo", "deaf": "prefork",
}  # fmt: skip


def workers(daemon: Daemon) -> dict[str, dict[str, Any]]:
    status = daemon.status()
    assert status is not None
    return {worker["name"]: worker for pool in status["pools"] for worker in pool["workers"]}


@pytest.mark.timeout(240)
def test_what_hangs_is_replaced_and_what_works_is_not(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    pools = {name: {"pool": kind, "concurrency": 1, "queues": [f"q_{name}"]} for name, kind in POOLS.items()}
    config = configuration(amqp_url, redis_url, strategy="dedicated", pools=pools)
    config["tasks"]["routing"]["qos"] = {name: f"q_{name}" for name in POOLS}
    daemon = make_daemon(config)
    daemon.module("badtasks", SOURCE)
    daemon.start()
    daemon.wait_running()
    before = workers(daemon)
    folder = str(daemon.folder)
    with Sender(daemon) as sender:
        seconds = {"frozen": 42, "busy": 60, "alone": 60}
        sleeping = [sender.send("bad.sleep", folder, long, qos=name) for name, long in seconds.items()]
        waiting = sender.send("bad.pid", qos="busy")  # behind a busy child: no sign of deafness
        held = sender.send("bad.gil", folder, 55, qos="gil")
        noted(daemon, "sleep", 3)
        noted(daemon, "gil")
        os.kill(before["frozen:0"]["pid"], signal.SIGSTOP)
        blocked = sender.send("bad.block", qos="blocked")
        assert sender.result(sender.send("bad.deafen", qos="deaf")) is None
        unheard = sender.send_many("bad.pid", [[]] * 5, qos="deaf")
        for name in ("frozen:0", "blocked:0", "deaf:0"):
            wait_until(lambda name=name: workers(daemon)[name]["pid"] not in (None, before[name]["pid"]), 120)  # type: ignore[misc]
        assert sender.result(blocked, 60) is None
        assert all(isinstance(pid, int) for pid in sender.results(unheard))
        assert sender.results([*sleeping, held], 150) == ["slept", "slept", "slept", "held"]
        assert isinstance(sender.result(waiting), int)
        noted(daemon, "sleep", 4)  # the one of the frozen worker ran again
        (frozen,) = daemon.ctl("show", "frozen:0")["processes"][0]["post_mortems"]
        assert frozen["kind"] == "hung"
        assert "stopped" in frozen["reason"]
        assert frozen["tasks"][0]["id"] == sleeping[0]
        assert "in sleep" in frozen["stacks"]  # of its pool child
        (deaf,) = daemon.ctl("show", "deaf:0")["processes"][0]["post_mortems"]
        assert deaf["kind"] == "hung"
        assert "deaf" in deaf["reason"]
        (hung,) = daemon.ctl("show", "blocked:0")["processes"][0]["post_mortems"]
        assert "event loop" in hung["reason"]
        assert "in on_received" in hung["stacks"]
    after = workers(daemon)
    assert {name for name in after if after[name]["restarts"]} == {"frozen:0", "blocked:0", "deaf:0"}
    assert daemon.stop() == 0
