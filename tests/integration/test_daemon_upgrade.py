"""An upgrade in place: the installed code is rehearsed, the daemon becomes it, workers and tasks run on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.crm import SOURCE, configuration
from tests.support.daemon import ROOT, Daemon
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]


@pytest.fixture
def daemon(amqp_url: str, redis_url: str, make_daemon: MakeDaemon) -> Daemon:
    """A daemon that runs from a copy of the code, which the test may replace: its own installation."""
    made = make_daemon(configuration(amqp_url, redis_url))
    made.module("crmtasks", SOURCE)
    shutil.copytree(ROOT / "limetaskd", made.folder / "code" / "limetaskd")
    made.environment["PYTHONPATH"] = os.pathsep.join([str(made.folder / "code"), made.environment["PYTHONPATH"]])
    made.start()
    made.wait_running()
    return made


def install(daemon: Daemon, version: str) -> None:
    """Replace the daemon's code by another version."""
    path = daemon.folder / "code" / "limetaskd" / "version.py"
    path.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', path.read_text()))


def test_an_upgrade_keeps_pid_workers_and_running_tasks(daemon: Daemon) -> None:
    pids = {name: daemon.worker(name)["pid"] for name in ("default:0", "asap:0", "background:0")}
    gate, started = daemon.folder / "gate", daemon.folder / "started"
    with Sender(daemon) as sender:
        running = sender.send("crm.wait_for", str(gate), str(started))
        wait_until(started.exists)
        install(daemon, "9.9.1")
        upgraded = daemon.ctl("upgrade")
        assert upgraded["version"] == "9.9.1"
        assert upgraded["pid"] == daemon.pid
        assert {name: daemon.worker(name)["pid"] for name in pids} == pids
        assert daemon.worker("default:0")["active"] == 1
        gate.touch()
        assert isinstance(sender.result(running), int)
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 3
        wait_until(lambda: len(daemon.records(running)) == 1)

        # By signal, and rolling the workers.
        install(daemon, "9.9.2")
        daemon.signal(signal.SIGUSR2)
        wait_until(lambda: (daemon.status() or {"daemon": {"version": ""}})["daemon"]["version"] == "9.9.2", 60)
        wait_until(lambda: daemon.status() and daemon.worker("asap:0")["ready"], 60)
        assert daemon.worker("asap:0")["pid"] == pids["asap:0"]
        install(daemon, "9.9.3")
        daemon.ctl("upgrade", "--roll")
        assert not set(pids.values()) & {daemon.worker(name)["pid"] for name in pids}
        # Children kept over exec are still ours: their deaths are noticed, with how they died.
        os.kill(daemon.worker("asap:0")["pid"], signal.SIGKILL)
        wait_until(lambda: daemon.worker("asap:0")["restarts"] == 1 and daemon.worker("asap:0")["ready"], 60)
        assert sender.result(sender.send("crm.add", 3, 4, qos="asap")) == 7
    assert daemon.stop() == 0
    assert daemon.processes() == []


def test_a_detached_daemon_upgrades_in_place_too(amqp_url: str, redis_url: str, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(configuration(amqp_url, redis_url), arguments=["--daemon"])
    daemon.module("crmtasks", SOURCE)
    shutil.copytree(ROOT / "limetaskd", daemon.folder / "code" / "limetaskd")
    daemon.environment["PYTHONPATH"] = os.pathsep.join(
        [str(daemon.folder / "code"), daemon.environment["PYTHONPATH"]]
    )
    daemon.start()
    assert daemon.wait_exit(30) == 0
    wait_until(lambda: daemon.run_ctl("status").returncode == 0, 60)

    def status() -> dict[str, Any]:
        return dict(json.loads(daemon.run_ctl("status", "--json").stdout))

    wait_until(lambda: all(w["ready"] for pool in status()["pools"] for w in pool["workers"]), 60)
    before = status()
    install(daemon, "9.9.9")
    assert daemon.ctl("upgrade")["version"] == "9.9.9"
    after = status()
    assert after["daemon"]["pid"] == before["daemon"]["pid"] == int((daemon.runtime_dir / "limetaskd.pid").read_text())
    assert [w["pid"] for p in after["pools"] for w in p["workers"]] == [
        w["pid"] for p in before["pools"] for w in p["workers"]
    ]
    assert daemon.run_ctl("shutdown").returncode == 0
    wait_until(lambda: not daemon.processes())


def test_many_upgrade_signals_and_draining_tasks_do_no_harm(daemon: Daemon) -> None:
    gate, started = daemon.folder / "gate", daemon.folder / "started"
    with Sender(daemon) as sender:
        running = sender.send("crm.wait_for", str(gate), str(started))
        wait_until(started.exists)
        daemon.ctl("restart", "default")  # the old worker drains now
        for number in (signal.SIGUSR2, signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            daemon.signal(number)
        wait_until(lambda: [r for r in daemon.logs() if r.get("action") == "starts"][1:])
        wait_until(lambda: (daemon.status() or {"daemon": {"state": ""}})["daemon"]["state"] == "running", 60)
        assert daemon.alive
        gate.touch()
        assert isinstance(sender.result(running), int)
        assert len(wait_until(lambda: daemon.records(running))) == 1
    wait_until(lambda: daemon.worker("default:0")["draining"] == [], 60)
    assert daemon.stop() == 0
    assert daemon.processes() == []


def test_a_version_that_fails_its_rehearsal_leaves_the_old_one_in_charge(daemon: Daemon) -> None:
    pid = daemon.worker("asap:0")["pid"]
    code = daemon.folder / "code" / "limetaskd" / "plan" / "build.py"
    good = code.read_text()
    code.write_text("raise ImportError('a file of the new version is missing')\n")
    done = daemon.run_ctl("upgrade")
    assert done.returncode == 1
    assert "a file of the new version is missing" in done.stderr
    code.write_text(good)
    daemon.configure("limetaskd: {strategy: sometimes}\n")
    done = daemon.run_ctl("upgrade")
    assert done.returncode == 1
    assert "limetaskd.strategy" in done.stderr
    assert daemon.worker("asap:0")["pid"] == pid
    assert daemon.stop() == 0
