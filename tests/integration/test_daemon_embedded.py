"""`--embedded`: a private server, supervised; queued and running tasks survive kill -9 of anything."""

from __future__ import annotations

import os
import signal
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.crm import SOURCE, configuration
from tests.support.daemon import Daemon
from tests.support.guard import kill_folder
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]


@pytest.fixture
def daemon(make_daemon: MakeDaemon) -> Daemon:
    """An embedded daemon; the configured broker does not exist."""
    config = configuration("amqp://nobody@localhost:1//", "redis://localhost:1")
    made = make_daemon(config, embedded=True)
    made.module("crmtasks", SOURCE)
    return made


def marks(folder: Path) -> Counter[int]:
    return Counter(int(path.name.split(".")[0]) for path in folder.iterdir())


def helpers(daemon: Daemon) -> dict[str, dict[str, Any]]:
    status = daemon.status()
    assert status is not None
    return {helper["name"]: helper for helper in status["daemon"]["helpers"]}


def test_tasks_run_and_senders_find_the_server_by_themselves(daemon: Daemon) -> None:
    daemon.start()
    daemon.wait_running()
    with Sender(daemon) as sender:
        assert sender.results([sender.send("crm.add", n, n, qos="asap") for n in range(5)]) == [0, 2, 4, 6, 8]
    wait_until(lambda: len(daemon.records()) == 5)
    states = {name: helper["state"] for name, helper in helpers(daemon).items()}
    assert states == dict.fromkeys(("limetaskd:broker", "limetaskd:image", "limetaskd:agent"), "RUNNING")
    daemon.ctl("stop", "limetaskd:broker")
    daemon.ctl("start", "limetaskd:broker", timeout=60)
    daemon.wait_running()
    socket = daemon.state_dir / "embedded" / "valkey.sock"
    assert stat.S_IMODE(socket.parent.stat().st_mode) & 0o007 == 0
    assert daemon.stop() == 0
    assert daemon.processes() == []


def test_queued_and_running_tasks_survive_the_death_of_the_whole_tree(daemon: Daemon) -> None:
    daemon.start()
    daemon.wait_running()
    folder = daemon.folder / "marks"
    folder.mkdir()
    with Sender(daemon) as sender:
        sender.send_many("crm.mark", [[str(folder), n, 0.05] for n in range(60)], queue="q_background")
        wait_until(lambda: len(marks(folder)) >= 4, 60)
    kill_folder(str(daemon.folder))
    daemon.wait_exit()
    wait_until(lambda: not daemon.processes())
    daemon.start()
    wait_until(lambda: len(marks(folder)) == 60, 60, lambda: f"{60 - len(marks(folder))} tasks are missing")
    # Only what ran at that moment may have run twice: two slots and what they had reserved.
    assert sum(count - 1 for count in marks(folder).values()) <= 4
    assert daemon.stop() == 0


@pytest.mark.parametrize("victim", ["broker", "worker", "child", "agent", "daemon"])
def test_nothing_is_lost_when_one_process_is_killed(daemon: Daemon, victim: str) -> None:
    daemon.start()
    daemon.wait_running()
    folder = daemon.folder / "marks"
    folder.mkdir()
    worker = daemon.worker("background:0")
    pid = {
        "broker": helpers(daemon)["limetaskd:broker"]["pid"],
        "agent": helpers(daemon)["limetaskd:agent"]["pid"],
        "worker": worker["pid"],
        "child": worker["children"][0]["pid"],
        "daemon": daemon.pid,
    }[victim]
    with Sender(daemon) as sender:
        ids = sender.send_many("crm.mark", [[str(folder), n, 0.03] for n in range(40)], queue="q_background")
        wait_until(lambda: len(marks(folder)) >= 3, 60)
        os.kill(pid, signal.SIGKILL)
        if victim == "daemon":
            daemon.wait_exit()
            daemon.start()
        more = sender.send_many("crm.mark", [[str(folder), n, 0.0] for n in range(40, 50)], queue="q_background")
        wait_until(lambda: len(marks(folder)) == 50, 60, lambda: f"{50 - len(marks(folder))} tasks are missing")
        assert sorted(sender.results(ids + more)) == list(range(50))
    wait_until(lambda: daemon.wait_running() is not None)
    assert daemon.stop() == 0
    assert daemon.processes() == []


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_tasks_that_end_while_the_server_is_dead_ran_once_and_succeeded(make_daemon: MakeDaemon, pool: str) -> None:
    pools = {"all": {"pool": pool, "concurrency": 4}}
    config = configuration("redis://localhost:1", "redis://localhost:1", strategy="all-in-one", pools=pools)
    daemon = make_daemon(config, embedded=True)
    daemon.module("crmtasks", SOURCE)
    daemon.start()
    daemon.wait_running()
    folder = daemon.folder / "marks"
    folder.mkdir()
    with Sender(daemon) as sender:

        def run_20_over_a_kill(first: int) -> None:
            sender.send_many("crm.mark", [[str(folder), n, 0.03] for n in range(first, first + 20)])
            wait_until(lambda: len(marks(folder)) > first + 4, 60)
            os.kill(helpers(daemon)["limetaskd:broker"]["pid"], signal.SIGKILL)
            wait_until(lambda: len({record["task_id"] for record in daemon.records()}) == first + 20, 60)

        for first in (0, 20, 40):
            run_20_over_a_kill(first)
    assert daemon.stop() == 0
    assert set(marks(folder).values()) == {1}
    assert [record["task_outcome"] for record in daemon.records()] == ["SUCCESS"] * 60
