"""Reload: what changed is applied, what is refused changes nothing, senders follow what was accepted."""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.crm import SOURCE, configuration
from tests.support.daemon import Daemon
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]


@pytest.fixture
def config(amqp_url: str, redis_url: str) -> dict[str, Any]:
    return configuration(amqp_url, redis_url)


@pytest.fixture
def daemon(config: dict[str, Any], make_daemon: MakeDaemon) -> Daemon:
    """A running daemon with dedicated pools."""
    made = make_daemon(config)
    made.module("crmtasks", SOURCE)
    made.start()
    made.wait_running()
    return made


def pids(daemon: Daemon) -> dict[str, int]:
    status = daemon.status()
    assert status is not None
    return {worker["name"]: worker["pid"] for pool in status["pools"] for worker in pool["workers"]}


def test_new_and_removed_queues_change_only_their_pools(daemon: Daemon, config: dict[str, Any]) -> None:
    before = pids(daemon)
    new = copy.deepcopy(config)
    new["tasks"]["routing"]["qos"] = {"asap": "q_asap", "email": "q_email"}
    daemon.configure(new)
    shown = daemon.ctl("reload", "--plan")
    assert shown["changed"] is True
    assert pids(daemon) == before
    reloaded = daemon.ctl("reload")
    assert (reloaded["changed"], reloaded["generation"]) == (True, 2)
    now = pids(daemon)
    assert set(now) == {"default:0", "asap:0", "email:0"}
    assert (now["default:0"], now["asap:0"]) == (before["default:0"], before["asap:0"])
    assert daemon.ctl("reload")["changed"] is False
    with Sender(daemon) as sender:
        assert sender.result(sender.send("crm.add", 1, 2, qos="email")) == 3
    wait_until(daemon.records)
    assert daemon.records()[0]["task_queue"] == "q_email"


def test_senders_and_workers_follow_reloaded_routing_without_a_restart(daemon: Daemon, config: dict[str, Any]) -> None:
    with Sender(daemon) as sender:
        assert sender.result(sender.send("crm.add", 1, 1)) == 2
        new = copy.deepcopy(config)
        new["tasks"]["routing"]["tasks"] = {"crm.add": "q_background"}
        daemon.configure(new)
        before = pids(daemon)
        daemon.ctl("reload")
        assert pids(daemon) == before
        task_id = sender.send("crm.add", 2, 2, qos="asap")
        assert sender.result(task_id) == 4
        wait_until(lambda: daemon.records(task_id))
        assert daemon.records(task_id)[0]["task_queue"] == "q_background"


def test_a_refused_file_changes_nothing_and_says_why(daemon: Daemon, config: dict[str, Any]) -> None:
    before = pids(daemon)
    with Sender(daemon) as sender:
        assert sender.result(sender.send("crm.add", 1, 1, qos="asap")) == 2
        daemon.configure("tasks: {task_queue_nmae: x}\nlimetaskd: {strategy: sometimes}\n")
        # A running sender follows what was accepted, not the broken file.
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 3
    done = daemon.run_ctl("reload")
    assert done.returncode == 1
    assert "task_queue_nmae" in done.stderr
    assert "limetaskd.strategy" in done.stderr
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: any("task_queue_nmae" in record["message"] for record in daemon.logs()))
    status = daemon.status()
    assert status is not None
    assert "task_queue_nmae" in status["daemon"]["last_reload_error"]
    assert pids(daemon) == before
    daemon.configure(config)
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: (daemon.status() or {"daemon": {}})["daemon"].get("last_reload_error") is None)


def test_slots_change_in_place_and_kinds_roll(daemon: Daemon, config: dict[str, Any]) -> None:
    before = pids(daemon)
    new = copy.deepcopy(config)
    new["limetaskd"]["pools"] = {"asap": {"concurrency": 4}, "background": {"pool": "threads"}}
    daemon.configure(new)
    daemon.ctl("reload")
    now = pids(daemon)
    assert now["asap:0"] == before["asap:0"]
    assert now["default:0"] == before["default:0"]
    assert now["background:0"] != before["background:0"]
    wait_until(lambda: daemon.worker("asap:0")["concurrency"] == 4)
    with Sender(daemon) as sender:
        assert sender.result(sender.send("crm.add", 1, 2, qos="background")) == 3


def test_a_reload_whose_new_processes_fail_is_undone(daemon: Daemon, config: dict[str, Any]) -> None:
    before = pids(daemon)
    new = copy.deepcopy(config)
    new["limetaskd"]["imports"] = ["crmtasks", "no_such_module"]
    daemon.configure(new)
    done = daemon.run_ctl("reload")
    assert done.returncode == 1
    assert "no_such_module" in done.stderr
    assert "undone" in done.stderr
    assert pids(daemon) == before
    with Sender(daemon) as sender:
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 3
    accepted = json.loads((daemon.runtime_dir / "accepted.json").read_text())
    assert accepted["generation"] == 3


def test_a_scale_is_kept_over_a_reload_unless_the_file_changes_that_value(
    daemon: Daemon, config: dict[str, Any]
) -> None:
    daemon.ctl("scale", "asap=3")
    new = copy.deepcopy(config)
    new["tasks"]["routing"]["qos"]["email"] = "q_email"
    daemon.configure(new)
    daemon.ctl("reload")
    assert daemon.worker("asap:0")["concurrency"] == 3
    new["limetaskd"]["pools"] = {"asap": {"concurrency": 5}}
    daemon.configure(new)
    daemon.ctl("reload")
    wait_until(lambda: daemon.worker("asap:0")["concurrency"] == 5)
    daemon.ctl("scale", "--persist", "asap=1")
    daemon.stop()
    daemon.start()
    daemon.wait_running()
    assert daemon.worker("asap:0")["concurrency"] == 1
