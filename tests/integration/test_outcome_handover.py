"""The end of a task over deaths, upgrades and stops of daemons: the next one says what is still to be said, once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import pytest

from limetaskd.core.board import BY_DAEMON, BY_DAEMON_DONE, MEMORY_LIMIT, Board, Slot
from tests.support.daemon import Daemon
from tests.support.limits import agent_pid, events, failed_once, noted, notes, start
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]


@pytest.mark.parametrize("delivery", ["at-most-once", "at-least-once"])
def test_what_dies_while_no_daemon_runs_is_dealt_with_by_the_next(
    redis_url: str, make_daemon: MakeDaemon, delivery: str
) -> None:
    daemon = start(make_daemon, redis_url, redis_url, delivery=delivery, max_deliveries=1)
    with Sender(daemon) as sender:
        task = sender.send("bad.until", str(daemon.folder))
    noted(daemon, "until")
    daemon.kill()
    for process in daemon.processes():
        process.kill()
    daemon.start()
    if delivery == "at-least-once":
        # Nobody knows who killed it, so nobody is to blame: one death would be too many here.
        noted(daemon, "until", 2)
        (daemon.folder / "go").touch()
    with Sender(daemon) as sender:
        if delivery == "at-most-once":
            assert failed_once(daemon, sender, task, "worker_lost").startswith("WorkerLostError")
        else:
            assert sender.result(task) == "until"
            assert [record["task_outcome"] for record in daemon.records(task)] == ["SUCCESS"]


def test_a_sentence_that_a_dead_daemon_left_is_carried_out_by_the_next(
    redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = start(make_daemon, redis_url, redis_url, concurrency=1)
    with Sender(daemon) as sender:
        task = sender.send("bad.until", str(daemon.folder))
        noted(daemon, "until")
        daemon.kill()
        board, slot = running_slot(daemon)
        assert board.condemn(slot, MEMORY_LIMIT)
        daemon.start()
        failed_once(daemon, sender, task, "memory_limit")
        assert isinstance(sender.result(sender.send("bad.pid")), int)
    assert len(notes(daemon, "until")) == 1


def test_a_worker_whose_task_was_told_to_have_ended_is_killed_by_the_next_daemon(
    redis_url: str, make_daemon: MakeDaemon
) -> None:
    """The one before had stopped it, and died before the kill."""
    pools = {"all": {"pool": "threads", "concurrency": 1}}
    daemon = start(make_daemon, redis_url, redis_url, delivery="at-most-once", pools=pools)
    worker = daemon.worker("all:0")["pid"]
    with Sender(daemon) as sender:
        task = sender.send("bad.until", str(daemon.folder))
        noted(daemon, "until")
        daemon.kill()
        os.kill(worker, signal.SIGSTOP)
        board, slot = running_slot(daemon)
        assert board.condemn(slot, MEMORY_LIMIT)
        assert board.settle(slot, BY_DAEMON)
        assert board.settle(slot, BY_DAEMON_DONE)
        daemon.start()
        assert sender.result(sender.send("bad.pid")) != worker
    assert any(record.get("action") == "replaced" for record in daemon.logs())
    assert not events(daemon, "hung")
    assert daemon.stop() == 0
    assert daemon.records(task) == []  # by the one before


def running_slot(daemon: Daemon) -> tuple[Board, Slot]:
    (path,) = daemon.folder.rglob("boards/all:0.*")
    board = Board.open(str(path))
    (slot,) = [slot for slot in board.read() if slot.running is not None]
    return board, slot


def recorded(daemon: Daemon) -> set[int]:
    return {json.loads(path.read_text())["pid"] for path in daemon.folder.rglob("processes/*.json")}


def wait_settled(board: Board, slot: Slot, how: int = BY_DAEMON) -> None:
    def settled() -> bool:
        sentence = board.sentence(slot)
        return sentence is not None and sentence.settled == how

    wait_until(settled)


def upgrade(daemon: Daemon) -> None:
    """For the first time, without a client that waits until all is up."""
    daemon.signal(signal.SIGUSR2)
    wait_until(lambda: len(events(daemon, "starts")) == 2, 60)


def ended_without_agent(daemon: Daemon, sender: Sender, agent: int) -> str:
    """A task over its limit, whose end the daemon has begun to tell and cannot, since the agent stands still."""
    os.kill(agent, signal.SIGSTOP)
    task = sender.send("bad.gil", str(daemon.folder))
    noted(daemon, "gil")
    wait_settled(*running_slot(daemon))
    return task


@pytest.mark.parametrize("delivery", ["at-most-once", "at-least-once"])
def test_a_death_that_daemons_die_over_is_dealt_with_once(
    redis_url: str, make_daemon: MakeDaemon, delivery: str
) -> None:
    daemon = start(make_daemon, redis_url, redis_url, delivery=delivery, concurrency=1)
    agent = agent_pid(daemon)
    with Sender(daemon) as sender:
        task = sender.send("bad.until", str(daemon.folder))
        noted(daemon, "until")
        board, slot = running_slot(daemon)
        # The daemon begins with it, and cannot go on while the agent stands still.
        os.kill(agent, signal.SIGSTOP)
        os.kill(daemon.worker("all:0")["pid"], signal.SIGKILL)
        wait_settled(board, slot)
        daemon.kill()
        # Nor can the next one, which dies over it as well.
        daemon.start()
        wait_until(lambda: daemon.status() and daemon.worker("all:0")["ready"])
        daemon.kill()
        os.kill(agent, signal.SIGCONT)
        daemon.start()
        if delivery == "at-most-once":
            assert failed_once(daemon, sender, task, "worker_lost").startswith("WorkerLostError")
        else:
            noted(daemon, "until", 2)
            (daemon.folder / "go").touch()
            assert sender.result(task) == "until"
            wait_until(lambda: daemon.records(task))
        # What the dead have left is gone, what the living need is there.
        wait_until(lambda: recorded(daemon) <= {process.pid for process in daemon.processes()})
        assert isinstance(sender.result(sender.send("bad.pid")), int)
    assert daemon.stop() == 0
    assert len(daemon.records(task)) == 1
    assert list(daemon.folder.rglob("processes/*")) == list(daemon.folder.rglob("boards/*")) == []


def test_a_task_that_a_daemon_was_ending_when_it_died_fails_once(redis_url: str, make_daemon: MakeDaemon) -> None:
    pools = {"all": {"time_limit": "1s", "pool": "threads"}}
    daemon = start(make_daemon, redis_url, redis_url, pools=pools)
    agent = agent_pid(daemon)
    before = daemon.worker("all:0")["pid"]
    with Sender(daemon) as sender:
        task = ended_without_agent(daemon, sender, agent)
        daemon.kill()
        os.kill(agent, signal.SIGCONT)
        daemon.start()
        failed_once(daemon, sender, task, "time_limit")
        assert isinstance(sender.result(sender.send("bad.pid")), int)
        assert daemon.worker("all:0")["pid"] != before
    assert daemon.stop() == 0
    assert len(notes(daemon, "gil")) == 1
    assert len(daemon.records(task)) == 1


@pytest.mark.parametrize("how", ["upgrade", "kill"])
def test_a_task_whose_end_cannot_be_told_yet_does_not_run_again(
    redis_url: str, make_daemon: MakeDaemon, how: str
) -> None:
    """The newer daemon has an agent that is not up yet."""
    pools = {"all": {"time_limit": "1s", "pool": "threads"}}
    daemon = start(make_daemon, redis_url, redis_url, pools=pools, concurrency=1)
    agent = agent_pid(daemon)
    with Sender(daemon) as sender:
        task = ended_without_agent(daemon, sender, agent)
        if how == "upgrade":
            upgrade(daemon)
        else:
            daemon.kill()
            os.kill(agent, signal.SIGKILL)
            daemon.start()
        failed_once(daemon, sender, task, "time_limit")
        assert isinstance(sender.result(sender.send("bad.pid")), int)
    assert daemon.stop() == 0
    assert len(notes(daemon, "gil")) == 1
    assert len(daemon.records(task)) == 1


@pytest.mark.parametrize("how", ["upgrade", "stop"])
def test_an_end_that_cannot_be_stored_is_stored_by_the_next_daemon(
    redis_url: str, make_daemon: MakeDaemon, how: str
) -> None:
    daemon = start(make_daemon, redis_url, redis_url, delivery="at-most-once", concurrency=1)
    agent = agent_pid(daemon)
    with Sender(daemon) as sender:
        task = sender.send("bad.until", str(daemon.folder))
        noted(daemon, "until")
        os.kill(agent, signal.SIGSTOP)
        os.kill(daemon.worker("all:0")["pid"], signal.SIGKILL)
        wait_until(lambda: any("is not stored yet" in record["message"] for record in daemon.logs()), 60)
        if how == "upgrade":
            upgrade(daemon)
        else:
            assert daemon.stop(60) == 0
            daemon.start()
        failed_once(daemon, sender, task, "worker_lost")
    assert daemon.stop() == 0
    assert len(daemon.records(task)) == 1


def test_what_a_daemon_has_ended_is_no_matter_for_the_next_one(redis_url: str, make_daemon: MakeDaemon) -> None:
    """The slot of a child that is dead goes on naming its task, for longer than logs are kept."""
    daemon = start(make_daemon, redis_url, redis_url, pools={"all": {"time_limit": "1s"}}, concurrency=2)
    main = daemon.worker("all:0")["pid"]
    with Sender(daemon) as sender:
        task = sender.send("bad.sleep", str(daemon.folder))
        noted(daemon, "sleep")
        board, slot = running_slot(daemon)
        os.kill(main, signal.SIGSTOP)  # so that the daemon does it all
        failed_once(daemon, sender, task, "time_limit")
        wait_settled(board, slot, BY_DAEMON_DONE)
        os.kill(main, signal.SIGCONT)
        daemon.kill()
        for log in daemon.folder.rglob("log/*.log"):
            log.write_text("")
        daemon.start()
        wait_until(lambda: daemon.status() and daemon.worker("all:0")["ready"])
        assert daemon.worker("all:0")["pid"] == main
        assert isinstance(sender.result(sender.send("bad.pid")), int)
    assert daemon.stop() == 0
    assert len(daemon.records(task)) == 1
