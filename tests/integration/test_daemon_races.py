"""Operators, signals and deaths at the same moment: nothing is lost, doubled, left behind or stuck."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
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
    made = make_daemon(config)
    made.module("crmtasks", SOURCE)
    made.start()
    made.wait_running()
    return made


class Busy:
    """A task that runs in `queue` until the gate opens."""

    def __init__(self, daemon: Daemon, sender: Sender, queue: str) -> None:
        self.gate = daemon.folder / f"gate-{queue}"
        started = daemon.folder / f"started-{queue}"
        self.task_id = sender.send("crm.wait_for", str(self.gate), str(started), queue=queue)
        wait_until(started.exists)


def beats(daemon: Daemon) -> list[int]:
    return [process.pid for process in daemon.named("default:beat")]


def gone(pid: int) -> bool:
    """Dead, if perhaps not yet collected: whose daemon died, belongs to the machine's init."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_pool_that_comes_back_while_its_old_worker_drains_is_one_pool(
    daemon: Daemon, config: dict[str, Any]
) -> None:
    with Sender(daemon) as sender:
        busy = Busy(daemon, sender, "q_background")
        old = daemon.worker("background:0")["pid"]
        without = copy.deepcopy(config)
        del without["tasks"]["routing"]["qos"]["background"]
        daemon.configure(without)
        daemon.ctl("reload")
        daemon.configure(config)
        daemon.ctl("reload")
        worker = daemon.worker("background:0")
        assert worker["ready"] is True
        assert worker["pid"] != old
        assert worker["draining"] == [old]
        busy.gate.touch()
        assert isinstance(sender.result(busy.task_id), int)
        wait_until(lambda: daemon.worker("background:0")["draining"] == [])
        assert daemon.worker("background:0")["pid"] == worker["pid"]
    assert daemon.stop() == 0
    assert daemon.processes() == []


def test_restart_and_start_during_a_stop_are_refused_and_leave_nothing(daemon: Daemon) -> None:
    with Sender(daemon) as sender:
        busy = Busy(daemon, sender, "lime_default_task_queue")
        stopping = threading.Thread(target=daemon.run_ctl, args=("stop", "default"))
        stopping.start()
        wait_until(lambda: daemon.worker("default:0")["state"] == "STOPPING")
        refused = daemon.run_ctl("restart", "default:0")
        assert refused.returncode == 1
        assert "is being stopped" in refused.stderr
        busy.gate.touch()
        stopping.join(60)
        assert daemon.worker("default:0")["state"] == "STOPPED"
        busy = Busy(daemon, sender, "q_background")
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: (daemon.status() or {"daemon": {"state": ""}})["daemon"]["state"] == "stopping")
        refused = daemon.run_ctl("start", "default")
        assert refused.returncode == 1
        assert "limetaskd is stopping" in refused.stderr
        busy.gate.touch()
    assert daemon.wait_exit() == 0
    assert daemon.processes() == []


def test_a_reload_with_a_wrong_broker_is_undone_and_blocks_nobody_for_long(
    daemon: Daemon, config: dict[str, Any]
) -> None:
    wrong = copy.deepcopy(config)
    wrong["tasks"]["broker_connection_string"] = "amqp://guest:guest@127.0.0.1:1//"
    daemon.configure(wrong)
    done = daemon.run_ctl("reload")
    assert done.returncode == 1
    assert "undone" in done.stderr
    daemon.configure(config)
    daemon.ctl("reload")
    with Sender(daemon) as sender:
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 3


def test_an_image_that_does_not_answer_never_makes_two_of_one_name(daemon: Daemon) -> None:
    status = daemon.status()
    assert status is not None
    image = next(h["pid"] for h in status["daemon"]["helpers"] if h["name"] == "limetaskd:image")
    os.kill(image, signal.SIGSTOP)
    victim = daemon.worker("asap:0")["pid"]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: daemon.worker("asap:0")["ready"] and daemon.worker("asap:0")["pid"] != victim, 60)
    assert not Path(f"/proc/{image}").exists()
    mains = [process for process in daemon.named("asap:0") if process.ppid() == daemon.pid]
    assert [process.pid for process in mains] == [daemon.worker("asap:0")["pid"]]
    assert daemon.stop() == 0
    assert daemon.processes() == []


def test_a_process_whose_record_was_damaged_is_found_by_its_reports(daemon: Daemon) -> None:
    assert len(beats(daemon)) == 1
    old = beats(daemon)[0]
    worker = daemon.worker("asap:0")["pid"]
    with Sender(daemon) as sender:  # it is still at work when there is another one of its name
        sender.send("crm.wait_for", str(daemon.folder / "gate"), str(daemon.folder / "started"), qos="asap")
    wait_until((daemon.folder / "started").exists)
    daemon.kill()
    for record in (daemon.runtime_dir / "processes").glob("*.json"):
        if record.name.startswith("default:beat"):
            record.write_text("{")
        elif record.name.startswith("asap:0"):
            record.write_text(json.dumps(json.loads(record.read_text()) | {"shutdown_timeout_s": None}))
    daemon.start()
    wait_until(lambda: daemon.status() and daemon.worker("asap:0")["ready"], 60)
    new = daemon.worker("asap:0")["pid"]
    assert new != worker
    wait_until(lambda: sum(record.get("action") == "stranger" for record in daemon.logs()) == 2, 60)
    assert not gone(worker)
    (daemon.folder / "gate").touch()
    wait_until(lambda: gone(old) and gone(worker), 60)
    wait_until(lambda: len(beats(daemon)) == 1, 60)
    # The end of the one that nobody knew has taken nothing from the other one.
    daemon.kill()
    daemon.start()
    wait_until(lambda: daemon.status() and daemon.worker("asap:0")["ready"], 60)
    assert daemon.worker("asap:0")["pid"] == new
    assert daemon.stop() == 0
    assert daemon.processes() == []


def test_a_process_that_comes_to_life_after_its_daemon_died_takes_nothing_from_the_living(
    config: dict[str, Any], make_daemon: MakeDaemon
) -> None:
    config["limetaskd"]["preload"] = False
    daemon = make_daemon(config)
    slow, held = daemon.folder / "slow", daemon.folder / "held"
    daemon.module("crmtasks", SOURCE)
    daemon.module("sitecustomize", f"""
        import json, os, pathlib, time

        slow, held = pathlib.Path({str(slow)!r}), pathlib.Path({str(held)!r})
        if slow.exists() and json.loads(os.environ.get("LIMETASKD_SPEC", "{{}}")).get("name") == "asap:0":
            slow.write_text(str(os.getpid()))
            slow.rename(held)
            while held.exists():
                time.sleep(0.02)
    """)
    slow.touch()
    daemon.start()
    wait_until(held.exists)  # the daemon knows it, and it has left no word of itself
    late = int(held.read_text())
    daemon.kill()
    daemon.start()
    daemon.wait_running()
    new = daemon.worker("asap:0")["pid"]
    assert new != late
    held.unlink()
    wait_until(lambda: gone(late), 60)
    daemon.kill()
    daemon.start()
    daemon.wait_running()
    assert daemon.worker("asap:0")["pid"] == new
    assert daemon.stop() == 0
    assert daemon.processes() == []


def test_what_a_dead_process_has_left_is_not_taken_for_that_of_its_replacement(daemon: Daemon) -> None:
    """The older process of a name lives, the newer one died with a task while no daemon ran."""
    with Sender(daemon) as sender:
        sent = []
        for number in range(2):
            started = daemon.folder / f"started{number}"
            sent.append(sender.send("crm.wait_for", str(daemon.folder / "gate"), str(started)))
            wait_until(started.exists)
            if number == 0:
                daemon.ctl("restart", "default")
        new = daemon.worker("default:0")["pid"]
        daemon.kill()
        os.kill(new, signal.SIGKILL)
        daemon.start()
        wait_until(lambda: daemon.status() and daemon.worker("default:0")["ready"], 60)
        # What it has left is dealt with, and gone.
        wait_until(lambda: not (daemon.runtime_dir / "processes" / "default:0.2.json").exists(), 60)
        pid = daemon.worker("default:0")["pid"]
        recorded = [json.loads(path.read_text()) for path in (daemon.runtime_dir / "processes").glob("default:0.*")]
        assert pid in {record["pid"] for record in recorded}
        assert all(Path(record["board"]).exists() for record in recorded)
        (daemon.folder / "gate").touch()
        assert all(isinstance(result, int) for result in sender.results(sent))
    assert daemon.stop() == 0


def test_what_an_operator_stopped_stays_stopped_over_reload_and_upgrade(
    daemon: Daemon, config: dict[str, Any]
) -> None:
    daemon.ctl("stop", "background")
    new = copy.deepcopy(config)
    new["limetaskd"]["imports"] = ["crmtasks", "json"]
    daemon.configure(new)
    daemon.ctl("reload")
    assert daemon.worker("asap:0")["ready"] is True
    assert daemon.worker("background:0")["state"] == "STOPPED"
    daemon.ctl("upgrade")
    assert daemon.worker("background:0")["state"] == "STOPPED"
    daemon.ctl("start", "background")
    assert daemon.worker("background:0")["ready"] is True


def test_a_hung_worker_is_replaced_by_the_next_daemon_too(daemon: Daemon) -> None:
    frozen = daemon.worker("asap:0")["pid"]
    daemon.kill()
    os.kill(frozen, signal.SIGSTOP)
    daemon.start()
    wait_until(lambda: daemon.status() and daemon.worker("asap:0")["ready"], 90)
    assert daemon.worker("asap:0")["pid"] != frozen
    wait_until(lambda: gone(frozen))


def test_a_worker_that_is_told_to_stop_by_hand_is_replaced_while_it_drains(daemon: Daemon) -> None:
    with Sender(daemon) as sender:
        busy = Busy(daemon, sender, "q_asap")
        old = daemon.worker("asap:0")["pid"]
        os.kill(old, signal.SIGTERM)
        wait_until(lambda: daemon.worker("asap:0")["ready"] and daemon.worker("asap:0")["pid"] != old, 60)
        assert daemon.worker("asap:0")["draining"] == [old]
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 3
        busy.gate.touch()
        assert sender.result(busy.task_id) is not None
        wait_until(lambda: daemon.worker("asap:0")["draining"] == [])
        assert len(wait_until(lambda: daemon.records(busy.task_id))) == 1


def test_a_large_environment_starts_all_the_same(
    config: dict[str, Any], make_daemon: MakeDaemon
) -> None:
    daemon = make_daemon(config, env={f"SERVICE_{number}": "x" * 1000 for number in range(200)})
    daemon.module("crmtasks", SOURCE)
    daemon.start()
    daemon.wait_running()
    assert daemon.worker("asap:0")["origin"] == "fork"


def test_a_destination_that_cannot_be_opened_refuses_the_reload_and_keeps_the_logs(
    daemon: Daemon, config: dict[str, Any]
) -> None:
    new = copy.deepcopy(config)
    new["limetaskd"]["logging"] = {"destination": "/nonexistent/folder/all.log"}
    daemon.configure(new)
    refused = daemon.run_ctl("reload")
    assert refused.returncode == 1
    assert "limetaskd.logging.destination" in refused.stderr
    before = len(daemon.logs())
    daemon.ctl("restart", "asap")
    wait_until(lambda: len(daemon.logs()) > before)


def test_workers_whose_daemon_stays_away_finish_when_they_were_told_to(
    config: dict[str, Any], make_daemon: MakeDaemon
) -> None:
    config["limetaskd"]["orphan_timeout"] = "3s"
    daemon = make_daemon(config)
    daemon.module("crmtasks", SOURCE)
    daemon.start()
    daemon.wait_running()
    with Sender(daemon) as sender:
        busy = Busy(daemon, sender, "q_asap")
        worker = daemon.worker("asap:0")["pid"]
        other = daemon.worker("background:0")["pid"]
        daemon.kill()
        wait_until(lambda: gone(other), 60)
        assert not gone(worker)
        busy.gate.touch()
        assert isinstance(sender.result(busy.task_id), int)
    wait_until(lambda: all(gone(process.pid) for process in daemon.processes()), 60)


def test_deaths_in_every_order_under_load_lose_nothing(make_daemon: MakeDaemon) -> None:
    """kill -9 of daemon, image, worker and embedded broker: each pair in both orders, then all at once."""
    config = configuration("amqp://", "redis://", restart={"initial": "50ms", "max": "200ms", "intensity": 100})
    daemon = make_daemon(config, embedded=True)
    daemon.module("crmtasks", SOURCE)
    daemon.start()
    daemon.wait_running()
    marks = daemon.folder / "marks"
    marks.mkdir()

    def pid(victim: str) -> int | None:
        if victim == "daemon":
            return daemon.pid
        if victim == "worker":
            return daemon.main_pid("background:0")
        if victim == "image":
            return daemon.main_pid("limetaskd:image")
        for process in daemon.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # those killed before may go right now
                if "valkey-server" in process.name():
                    return process.pid
        return None

    def kill(victim: str) -> None:
        number = pid(victim)
        if number is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    victims = ("daemon", "image", "worker", "broker")
    sent = 0
    with Sender(daemon) as sender:
        for pair in [*itertools.permutations(victims, 2), victims]:
            batch = range(sent, sent + 8)
            sender.send_many("crm.mark", [[str(marks), n, 0.05] for n in batch], queue="q_background")
            sent = batch.stop
            for victim in pair:
                kill(victim)
            if "daemon" in pair:
                daemon.wait_exit()
                daemon.start()
            wait_until(lambda: daemon.status() and daemon.worker("background:0")["ready"], 60)
        wait_until(lambda: len({path.name.split(".")[0] for path in marks.iterdir()}) == sent, 90)
    # Only what a killed worker had may have run twice.
    runs = len(list(marks.iterdir()))
    assert sent <= runs <= sent + 4 * 13
    daemon.wait_running()
    assert daemon.stop() == 0
    assert daemon.processes() == []
