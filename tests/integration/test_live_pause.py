"""Pause and resume of queues, drain of a pool, and the audit log, through the real limetaskctl on both brokers."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.crm import SOURCE, configuration
from tests.support.daemon import Daemon, parse_lines
from tests.support.jobs import Urls, urls  # noqa: F401
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]


@pytest.fixture
def daemon(urls: Urls, make_daemon: MakeDaemon) -> Daemon:  # noqa: F811
    """A running daemon with dedicated pools; the first slots of `asap` are two."""
    made = make_daemon(configuration(urls.broker, urls.backend, pools={"asap": {"prefetch": 4}}))
    made.module("crmtasks", SOURCE)
    made.start()
    made.wait_running()
    return made


def audit(daemon: Daemon, action: str) -> list[dict[str, Any]]:
    path = daemon.state_dir / "log" / "audit.log"
    return [r for r in parse_lines(path.read_text() if path.exists() else "") if r["action"] == action]


def test_a_paused_queue_rests_until_it_is_resumed_whatever_restarts(daemon: Daemon) -> None:
    folder = daemon.folder / "marks"
    folder.mkdir()
    gate, started = daemon.folder / "gate", daemon.folder / "started"
    with Sender(daemon) as sender:
        running = sender.send("crm.wait_for", str(gate), str(started), qos="asap")
        other = sender.send("crm.wait_for", str(gate), qos="asap")
        wait_until(lambda: started.exists() and daemon.worker("asap:0")["active"] == 2)
        waiting = [sender.send("crm.mark", str(folder), n, qos="asap") for n in range(6)]
        wait_until(lambda: daemon.worker("asap:0")["active"] == 2)
        done = daemon.ctl("pause", "q_asap", "--reason", "the mail server is down", "--until", "2h")
        (queue,) = done["queues"]
        assert (queue["queue"], queue["action"], queue["reason"]) == ("q_asap", "paused", "the mail server is down")
        # All that had not begun is back: the broker counts it as waiting.
        wait_until(lambda: any(q["name"] == "q_asap" and q["depth"] == 6 for q in daemon.ctl("queues")["queues"]))
        pool = daemon.pool("asap")
        assert (pool["state"], pool["paused"]) == ("RUNNING", ["q_asap"])
        (pause,) = pool["pauses"]
        assert pause["until"] > pause["since"]
        assert pause["by"]["uid"] is not None
        assert "the mail server is down" in daemon.run_ctl("status").stdout
        gate.touch()
        assert all(isinstance(value, int) for value in sender.results([running, other]))  # what ran finished
        # Other queues go on; a new process of the pool, and a new daemon, begin paused.
        assert sender.result(sender.send("crm.add", 1, 2, qos="background")) == 3
        daemon.ctl("restart", "asap")
        assert daemon.worker("asap:0")["ready"] is True
        daemon.kill()
        daemon.start()
        daemon.wait_running()
        assert daemon.pool("asap")["pauses"] == [pause]
        assert list(folder.iterdir()) == []
        assert daemon.ctl("resume", "q_asap")["queues"][0]["action"] == "resumed"
        assert daemon.ctl("resume", "q_asap")["queues"][0]["action"] == "was not paused"
        assert sorted(sender.results(waiting)) == list(range(6))
    assert sorted(path.name for path in folder.iterdir()) == [f"{n}.run-1" for n in range(6)]
    assert [r["outcome"] for r in wait_until(lambda: audit(daemon, "pause"))] == ["done"]
    record = audit(daemon, "pause")[0]
    assert record["params"]["queues"] == ["q_asap"]
    assert record["by"]["via"] == "control"
    assert record["by"]["uid"] is not None
    # At the destination too, once, like every record.
    wait_until(lambda: len([r for r in daemon.logs() if r.get("logger") == "limetaskd.audit"]) >= 3)
    assert len([r for r in daemon.logs() if r.get("action") == "pause" and r["logger"] == "limetaskd.audit"]) == 1


def test_a_pause_ends_by_itself(daemon: Daemon) -> None:
    with Sender(daemon) as sender:
        until = datetime.fromisoformat(daemon.ctl("pause", "q_asap", "--until", "2500ms")["queues"][0]["until"])
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 3
        assert datetime.now(UTC) >= until
        assert daemon.pool("asap")["paused"] == []
    record = wait_until(lambda: audit(daemon, "resume"))[0]
    assert record["by"]["via"] == "limetaskd"
    assert daemon.run_ctl("pause", "q_asap", "--until", "2020-01-01T00:00").returncode == 1
    assert daemon.run_ctl("pause", "q_asap", "--until", "soon").returncode == 2
    refused = daemon.run_ctl("pause", "q_nope", "q_asap")
    assert refused.returncode == 1
    assert "q_background" in refused.stderr
    assert daemon.pool("asap")["paused"] == []


def test_a_drained_pool_finishes_and_stays_stopped(daemon: Daemon) -> None:
    gate, started = daemon.folder / "gate", daemon.folder / "started"
    with Sender(daemon) as sender:
        running = sender.send("crm.wait_for", str(gate), str(started), qos="asap")
        wait_until(started.exists)
        gate.touch()
        assert daemon.ctl("drain", "asap")["changed"] == [{"name": "asap:0", "action": "drained", "state": "STOPPED"}]
        assert isinstance(sender.result(running), int)
        waits = sender.send("crm.add", 1, 2, qos="asap")
        assert daemon.ctl("drain", "asap")["changed"][0]["action"] == "already stopped"
        assert daemon.run_ctl("drain", "asap:0").returncode == 1
        daemon.ctl("start", "asap")
        assert sender.result(waits) == 3
    daemon.signal(signal.SIGHUP)
    record = wait_until(lambda: audit(daemon, "reload"))[0]
    assert (record["by"]["via"], record["outcome"]) == ("signal", "done")
    failed = [r for r in audit(daemon, "drain") if r["outcome"] == "failed"]
    assert "asap:0" in json.dumps(failed[0])


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 99}', '{"version": 1, "paused": [{"x": 1}], "departing": []}']
)
def test_saved_state_that_cannot_be_read_is_set_aside(redis_url: str, make_daemon: MakeDaemon, text: str) -> None:
    daemon = make_daemon(configuration(redis_url, redis_url))
    daemon.module("crmtasks", SOURCE)
    daemon.state_dir.mkdir()
    (daemon.state_dir / "queues.json").write_text(text)
    daemon.start()
    daemon.wait_running()
    assert (daemon.state_dir / "queues.json.damaged").read_text() == text
    assert any("queues.json" in record["message"] and record["level"] == "ERROR" for record in daemon.logs())
    assert daemon.pool("asap")["paused"] == []
