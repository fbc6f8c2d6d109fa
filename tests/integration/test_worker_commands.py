"""The daemon's commands: grow, shrink, consume, cancel, reopen; and the channel itself."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from limetaskd.core.board import Board
from limetaskd.core.channel import Phase
from tests.support.brokers import Redis
from tests.support.channel import Bench, Process, drain_and_wait, settings_of, settled
from tests.support.jobs import JOBS, Urls, urls  # noqa: F401
from tests.support.waiting import wait_until


def test_grow_and_shrink_under_load_kill_nothing(urls: Urls) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker, urls.backend), {"jobs": JOBS}) as bench:
        total = 500
        process = bench.worker(concurrency=1)
        for n in range(total):
            bench.app.send_task("jobs.number", (n, 0.01))
        settled(lambda: len(bench.lines()), 10)
        steps = (("grow", 3, 4), ("shrink", 2, 2), ("grow", 1, 3), ("shrink", 2, 1), ("grow", 1, 2))
        for command, slots, expected in steps:
            reply = bench.daemon.ask("w:0", command, slots=slots)
            assert (reply.error, reply.result) == (None, {"slots": expected})
            wait_until(lambda expected=expected: bench.daemon.states["w:0"].concurrency == expected)
            wait_until(lambda expected=expected: len(process.children()) == expected)
        settled(lambda: len(bench.lines()), total, timeout=90)
        assert drain_and_wait(process) == 0
        assert Counter(bench.lines()) == Counter(str(n) for n in range(total))


def test_shrink_waits_for_running_tasks_and_grow_uses_every_slot(urls: Urls) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker, urls.backend), {"jobs": JOBS}) as bench:
        gates = [bench.folder / f"gate{n}" for n in range(4)]
        process = bench.worker(concurrency=2)
        for n, gate in enumerate(gates):
            bench.app.send_task("jobs.until", (str(gate), n))
        settled(lambda: len(bench.lines()), 2)
        assert bench.daemon.ask("w:0", "grow", slots=2).result == {"slots": 4}
        settled(lambda: len(bench.lines()), 4)  # the prefetch has followed
        waiting = bench.daemon.send("w:0", "shrink", slots=3)
        gates[0].touch()
        settled(lambda: len(bench.lines()), 5)
        assert waiting not in bench.daemon.replies
        gates[1].touch()
        gates[2].touch()
        reply = wait_until(lambda: bench.daemon.replies.get(waiting))
        assert reply.result == {"slots": 1}
        gates[3].touch()
        settled(lambda: len(bench.lines()), 8)
        assert bench.app.send_task("jobs.number", (9,)).get(timeout=60) == 9
        assert drain_and_wait(process) == 0
        assert Counter(bench.lines()) == Counter([f"{word}{n}" for n in range(4) for word in ("begin", "end")] + ["9"])


@pytest.mark.parametrize("pool_kind", ["threads", "solo"])
def test_what_cannot_be_resized_says_so(redis_url: str, pool_kind: str) -> None:
    with Bench(settings_of(redis_url), {"jobs": JOBS}) as bench:
        bench.worker(pool_kind=pool_kind)
        for command in ("grow", "shrink"):
            assert "restart" in (bench.daemon.ask("w:0", command, slots=1).error or "")


def test_bad_commands_get_an_error_and_disturb_nothing(redis_url: str) -> None:
    with Bench(settings_of(redis_url), {"jobs": JOBS}) as bench:
        bench.worker()
        assert "unknown" in (bench.daemon.ask("w:0", "dance").error or "")
        assert "number" in (bench.daemon.ask("w:0", "grow", slots="many").error or "")
        assert "at least one" in (bench.daemon.ask("w:0", "shrink", slots=2).error or "")
        assert "no queue" in (bench.daemon.ask("w:0", "consume", queue="nowhere").error or "")
        assert bench.daemon.phase("w:0") == Phase.CONSUMING


def test_queues_are_consumed_and_cancelled_in_place(urls: Urls) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker, urls.backend, prefix="prod"), {"jobs": JOBS}) as bench:
        process = bench.worker(queues=("lime_default_task_queue",))
        assert bench.daemon.states["w:0"].queues == ["prod_lime_default_task_queue"]
        waiting = bench.app.send_task("jobs.number", (1,), headers={"__qos_category": "asap"})
        both = ["prod_lime_default_task_queue", "prod_lime_task_queue_asap"]
        assert bench.daemon.ask("w:0", "consume", queue="lime_task_queue_asap").result == {"queues": both}
        assert waiting.get(timeout=60) == 1
        assert bench.daemon.ask("w:0", "consume", queue="lime_task_queue_asap").result == {"queues": both}
        assert bench.daemon.ask("w:0", "cancel", queue="lime_default_task_queue").result["queues"] == both[1:]
        wait_until(lambda: bench.daemon.states["w:0"].queues == both[1:])
        held = bench.app.send_task("jobs.number", (2,))
        assert bench.app.send_task("jobs.number", (3,), headers={"__qos_category": "asap"}).get(timeout=60) == 3
        assert not held.ready()
        assert bench.daemon.ask("w:0", "consume", queue="lime_default_task_queue").error is None
        assert held.get(timeout=60) == 2
        wait_until(lambda: len(bench.records()) == 3)
        assert [record["task_queue"] for record in bench.records()] == [both[1], both[1], both[0]]
        assert drain_and_wait(process) == 0


def test_the_log_follows_a_rename_in_every_process(redis_url: str) -> None:
    with Bench(settings_of(redis_url, redis_url), {"jobs": JOBS}) as bench:
        process = bench.worker(concurrency=1)
        log, old = bench.folder / "w:0.log", bench.folder / "w:0.log.1"
        bench.app.send_task("jobs.say", ("before",)).get(timeout=60)
        wait_until(bench.records)
        log.rename(old)
        assert bench.daemon.ask("w:0", "reopen").error is None
        assert log.exists()
        # The child's own descriptors follow at its next record.
        bench.app.send_task("jobs.say", ("between",)).get(timeout=60)
        bench.app.send_task("jobs.say", ("after",)).get(timeout=60)
        wait_until(lambda: len(bench.records()) == 2)
        assert "before\n" in old.read_text()
        assert "after\n" in log.read_text()
        assert drain_and_wait(process) == 0
        assert "draining" in log.read_text()


def test_hangup_restarts_nothing(redis_url: str) -> None:
    with Bench(settings_of(redis_url, redis_url), {"jobs": JOBS}) as bench:
        process = bench.worker()
        pid = bench.daemon.states["w:0"].pid
        process.signal(signal.SIGHUP)
        assert bench.app.send_task("jobs.number", (1,)).get(timeout=60) == 1
        assert bench.daemon.ask("w:0", "reopen").error is None
        assert bench.daemon.states["w:0"].pid == pid
        assert bench.daemon.phases.count(("w:0", Phase.STARTING)) == 1


def test_the_link_comes_back_after_the_daemon_and_no_child_holds_it(redis_url: str) -> None:
    with Bench(settings_of(redis_url, redis_url), {"jobs": JOBS}) as bench:
        process = bench.worker()
        _kill_one(process)  # its successor is forked while the link lives
        bench.daemon.hang_up()
        assert bench.app.send_task("jobs.number", (1,)).get(timeout=60) == 1
        bench.daemon.listen()
        state = bench.consuming()
        assert state.queues == ["lime_default_task_queue", "lime_task_queue_asap"]
        _kill_one(process)
        links = Counter(
            name for name in bench.app.send_task("jobs.descriptors").get(timeout=60) if "socket:" in name
        )
        parent = {os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")}  # noqa: PTH115, PTH208
        shared = parent & set(links)
        # What remains shared is the broker's connection and the event loop's own pair, never the channel.
        channel = _channel_inode(bench.daemon.path, process.pid)
        assert channel is not None
        assert f"socket:[{channel}]" not in shared


def _kill_one(process: Process) -> None:
    victim = process.children()[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in process.children() and len(process.children()) == 2)


def _channel_inode(path: str, pid: int) -> str | None:
    """The inode of the process's end of the channel: the peer of what the listener accepted."""
    mine = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}  # noqa: PTH115, PTH208
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        # Type 5 is SOCK_SEQPACKET; a connecting socket has no path of its own.
        if fields[4] == "0005" and len(fields) == 7 and f"socket:[{fields[6]}]" in mine:
            return fields[6]
    return None


def test_the_scoreboard_shows_what_runs_and_outlives_the_child(urls: Urls) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker, urls.backend), {"jobs": JOBS}) as bench:
        spec = bench.spec(concurrency=1, time_limit_s=600.0, soft_time_limit_s=500.0)
        process = bench.start(spec)
        bench.consuming()
        assert spec.board is not None
        board = Board.open(spec.board)
        gate = bench.folder / "gate"
        sent = bench.app.send_task("jobs.until", (str(gate),), headers={"__user_id": "42"})
        running = wait_until(lambda: next((slot.running for slot in board.read() if slot.running), None))
        assert (running.id, running.name, running.queue) == (sent.id, "jobs.until", "lime_default_task_queue")
        assert (running.user, running.soft_limit_s, running.time_limit_s) == ("42", 500.0, 600.0)
        child = next(slot.pid for slot in board.read() if slot.running)
        assert process.children() == [child]
        os.kill(child, signal.SIGKILL)
        successor = wait_until(lambda: [pid for pid in process.children() if pid != child])
        dead = next(slot for slot in board.read() if slot.pid == child)
        assert dead.running is not None
        assert dead.running.id == sent.id
        gate.touch()
        sent.get(timeout=60)
        wait_until(lambda: sum(slot.processed for slot in board.read()) == 1)
        assert [slot.pid for slot in board.read() if slot.ended_id == sent.id] == successor
        assert [event.event for event in bench.daemon.events] == ["child_died", "task_redelivered"]
        assert {event.fields["task_id"] for event in bench.daemon.events} == {sent.id}


@pytest.mark.parametrize("pool_kind", ["prefork", "threads"])
def test_a_cancelled_queue_gets_back_what_had_not_begun(urls: Urls, pool_kind: str) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker, urls.backend), {"jobs": JOBS}) as bench:
        gate = bench.folder / "gate"
        first = bench.worker(concurrency=1, prefetch=4, pool_kind=pool_kind)  # room for all, in any order
        running = bench.app.send_task("jobs.until", (str(gate),))
        settled(lambda: len(bench.lines()), 1)
        prefetched = bench.app.send_task("jobs.number", (1,))
        delayed = bench.app.send_task("jobs.number", (2,), countdown=1)
        other = bench.app.send_task("jobs.number", (3,), headers={"__qos_category": "asap"})
        queue = "lime_default_task_queue"
        wait_until(lambda: bench.daemon.ask("w:0", "held", queue=queue).result == {"held": 3})
        wait_until(lambda: bench.daemon.ask("w:0", "held", queue="lime_task_queue_asap").result == {"held": 1})
        reply = bench.daemon.ask("w:0", "cancel", queue=queue)
        assert (reply.error, reply.result) == (None, {"queues": ["lime_task_queue_asap"], "given_back": 2})
        assert bench.daemon.ask("w:0", "held", queue=queue).result == {"held": 1}
        bench.worker("w:1", queues=(queue,), concurrency=1)
        assert [prefetched.get(timeout=60), delayed.get(timeout=60)] == [1, 2]  # by the other worker
        assert not other.ready()
        assert bench.daemon.ask("w:0", "consume", queue=queue).error is None
        gate.touch()
        assert (running.get(timeout=60), other.get(timeout=60)) == (None, 3)
        later = [bench.app.send_task("jobs.number", (n,)) for n in range(4, 12)]
        assert [result.get(timeout=60) for result in later] == list(range(4, 12))
        assert drain_and_wait(first) == 0
        assert Counter(bench.lines()) == Counter(["begin0", "end0", *map(str, range(1, 12))])


def test_a_worker_may_begin_with_no_queue_at_all(urls: Urls) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker, urls.backend), {"jobs": JOBS}) as bench:
        process = bench.worker(queues=())
        assert bench.daemon.states["w:0"].queues == []
        sent = bench.app.send_task("jobs.number", (1,))
        assert bench.daemon.ask("w:0", "consume", queue="lime_default_task_queue").error is None
        assert sent.get(timeout=60) == 1
        for command in ("cancel", "consume", "cancel", "consume"):
            bench.daemon.send("w:0", command, queue="lime_default_task_queue")
        assert bench.app.send_task("jobs.number", (2,)).get(timeout=60) == 2
        assert drain_and_wait(process) == 0


def test_a_queue_is_cancelled_while_the_broker_is_away(own_redis: Redis) -> None:
    with Bench(settings_of(own_redis.url, own_redis.url), {"jobs": JOBS}) as bench:
        bench.worker()
        own_redis.kill()
        wait_until(lambda: bench.daemon.phase("w:0") == Phase.CONNECTING, 60)
        reply = bench.daemon.ask("w:0", "cancel", queue="lime_default_task_queue")
        assert reply.result == {"queues": ["lime_task_queue_asap"], "given_back": 0}
        own_redis.start()
        wait_until(lambda: bench.daemon.phase("w:0") == Phase.CONSUMING, 60)
        assert bench.daemon.states["w:0"].queues == ["lime_task_queue_asap"]


def test_the_log_level_changes_in_the_worker_and_its_children(redis_url: str) -> None:
    source = JOBS + "\n\n@task\ndef whisper(text):\n    import logging\n    logging.getLogger('jobs').debug(text)\n"
    with Bench(settings_of(redis_url, redis_url), {"jobs": source}) as bench:
        bench.worker(concurrency=1)

        def whispered(text: str) -> bool:
            bench.app.send_task("jobs.whisper", (text,)).get(timeout=60)
            return any(record["message"] == text for record in bench.records(logger="jobs"))

        assert not whispered("one")
        assert bench.daemon.ask("w:0", "configure", log_level="DEBUG", shutdown_timeout_s=7.0).error is None
        wait_until(lambda: whispered("two"))
        assert bench.daemon.ask("w:0", "configure", log_level="INFO").error is None
        assert not whispered("three")
        assert "level" in (bench.daemon.ask("w:0", "configure", log_level="LOUD").error or "")
        assert "number" in (bench.daemon.ask("w:0", "configure", shutdown_timeout_s="long").error or "")
