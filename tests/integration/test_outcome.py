"""What becomes of tasks that do not end by themselves: one record, one result, an answer. Quarantine, kill, revoke."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.daemon import Daemon
from tests.support.jobs import Urls, urls  # noqa: F401
from tests.support.limits import failed_once, noted, notes, start
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_poison_task_goes_to_quarantine_and_the_others_go_on(
    urls: Urls, make_daemon: MakeDaemon, pool: str  # noqa: F811
) -> None:
    queue_type = "quorum" if urls.kind == "amqp" and pool == "prefork" else "classic"
    # Threads share their process: whoever runs beside the poison dies with it, and counts.
    pools = {"all": {"pool": pool, "concurrency": 2 if pool == "prefork" else 1}}
    daemon = start(
        make_daemon, urls.broker, urls.backend, pools=pools, queue_type=queue_type, max_deliveries=2
    )
    folder = str(daemon.folder)
    with Sender(daemon) as sender:
        word = "segv" if pool == "prefork" else "exit"
        poison = sender.send(f"bad.{word}", folder)
        good = sender.send_many("bad.pid", [[]] * 10)
        assert failed_once(daemon, sender, poison, "worker_lost").startswith("WorkerLostError")
        assert all(isinstance(result, int) for result in sender.results(good))
        assert len(notes(daemon, word)) == 2
        (listed,) = daemon.ctl("quarantine", "list")["tasks"]
        assert (listed["id"], listed["name"], listed["deaths"]) == (poison, f"bad.{word}", 2)
        (shown,) = daemon.ctl("quarantine", "show", poison)["tasks"]
        assert folder in shown["body"]
        assert [death["worker"] for death in shown["history"]] == ["all:0", "all:0"]
        (process,) = daemon.ctl("show", "all:0")["processes"]
        found = process["post_mortems"]
        assert [item["kind"] for item in found] == ["child_crash" if pool == "prefork" else "crash"] * 2
        assert all(item["tasks"][0]["id"] == poison for item in found)
        if pool == "prefork":
            assert any("Segmentation fault" in line for line in found[0]["last_lines"])
            assert "SIGSEGV" in found[0]["exit"]
        assert f"bad.{word} {poison}" in daemon.run_ctl("show", "all").stdout
        # Looking does not use it up, and it keeps its arguments when it is sent again.
        assert daemon.run_ctl("quarantine", "list").stdout.count(poison) == 1
        assert daemon.run_ctl("quarantine", "show", "nobody").returncode == 1
        daemon.ctl("quarantine", "replay", poison)
        noted(daemon, word, 4)
        (again,) = wait_until(lambda: daemon.ctl("quarantine", "list")["tasks"], 60)
        assert (again["id"], again["deaths"]) == (poison, 2)
        assert daemon.ctl("quarantine", "drop", "--all", "--yes")["count"] == 1
        assert daemon.ctl("quarantine", "list")["tasks"] == []
    assert daemon.stop() == 0
    assert len(daemon.records(poison)) == 2  # one for each time that it was given up
    assert len(daemon.records()) == 12


def test_kill_ends_one_task_for_good(urls: Urls, make_daemon: MakeDaemon) -> None:  # noqa: F811
    daemon = start(make_daemon, urls.broker, urls.backend)
    with Sender(daemon) as sender:
        killed, other = sender.send_many("bad.sleep", [[str(daemon.folder), 120], [str(daemon.folder), 3]])
        noted(daemon, "sleep", 2)
        assert daemon.run_ctl("revoke", killed).returncode == 1  # it runs
        answer = daemon.ctl("kill", killed)
        assert answer["task"]["name"] == "bad.sleep"
        assert "operator" in failed_once(daemon, sender, killed, "operator")
        assert sender.result(other) == "slept"
        done = daemon.run_ctl("kill", killed)
        assert done.returncode == 1
        assert "runs on this host" in done.stderr
    assert daemon.worker("all:0")["restarts"] == 0
    assert daemon.stop() == 0
    assert len(notes(daemon, "sleep")) == 2


def test_a_revoked_task_does_not_run_also_after_a_restart_of_its_worker(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = start(make_daemon, amqp_url, redis_url)
    with Sender(daemon) as sender:
        soon = sender.send("bad.sleep", str(daemon.folder), 0, countdown=3)
        waiting = sender.send("bad.sleep", str(daemon.folder), 0, countdown=9)
        assert daemon.ctl("revoke", soon)["everywhere"] is True
        daemon.ctl("revoke", waiting)
        assert sender.result(soon).startswith("TaskRevokedError")
        daemon.ctl("restart", "all")
        assert sender.result(waiting).startswith("TaskRevokedError")
    records = wait_until(lambda: len(found := daemon.records()) == 2 and found)
    assert {record["task_failure_reason"] for record in records} == {"revoked"}
    assert daemon.stop() == 0
    assert notes(daemon, "sleep") == []


def test_sent_is_recorded_is_stored(amqp_url: str, redis_url: str, make_daemon: MakeDaemon) -> None:
    """Everything at once: each task has one record and one result."""
    daemon = start(
        make_daemon, amqp_url, redis_url, max_deliveries=1, pools={"all": {"time_limit": "2s"}},
        limits={"memory_hard": "150MiB"},
    )  # fmt: skip
    folder = str(daemon.folder)
    with Sender(daemon) as sender:
        bad = [
            sender.send(name, *arguments)
            for name, *arguments in (
                ("bad.sleep", folder), ("bad.grow", folder, 300), ("bad.exit", folder), ("bad.segv", folder),
                ("bad.once", folder), ("bad.fork", folder), ("bad.gil", folder),
            )
        ]  # fmt: skip
        good = sender.send_many("bad.pid", [[]] * 20)
        results = sender.results(bad + good, 100)
    kinds = [str(result).partition(":")[0] for result in results[: len(bad)]]
    assert kinds == [
        "TimeLimitExceeded", "TaskKilledError", "WorkerLostError", "WorkerLostError", "WorkerLostError",
        "TimeLimitExceeded", "TimeLimitExceeded",
    ]  # fmt: skip
    assert all(isinstance(result, int) for result in results[len(bad) :])
    wait_until(lambda: len(daemon.records()) >= len(bad + good), 30)
    assert daemon.stop() == 0
    assert sorted(record["task_id"] for record in daemon.records()) == sorted(bad + good)
