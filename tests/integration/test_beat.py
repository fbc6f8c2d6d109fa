"""The schedule process: planned headers, saved state, a broker that goes away."""

from __future__ import annotations

import json
import signal
from datetime import datetime
from typing import Any

from limetaskd.core.channel import Phase
from tests.support.brokers import Redis
from tests.support.channel import Bench, Process, drain_and_wait, settings_of, settled
from tests.support.jobs import Urls, urls  # noqa: F401
from tests.support.waiting import wait_until

SCHEDULED = '''
import json, os
from datetime import timedelta
from limetaskd.tasks.decorators import task
from limetaskd.tasks.schedule import CronTab, ScheduledTask


@task(bind=True, qos="asap")
def run(self, word):
    headers = self.request.headers or {}
    line = json.dumps({"word": word, "entry": headers.get("__schedule_entry"), "planned": headers.get("__planned_at")},
                      separators=(",", ":"))
    fd = os.open(os.environ["LT_OUT"], os.O_WRONLY | os.O_APPEND)
    os.write(fd, f"{line}\\n".encode())
    os.close(fd)


def register_scheduled_tasks():
    return [
        ScheduledTask("scheduled.run", timedelta(seconds=1), args=("often",), user_id="9", name="often"),
        ScheduledTask(run, CronTab(minute="0", hour="0", day_of_month="1"), args=("rarely",), name="rarely"),
    ]
'''


def _beat(bench: Bench, name: str = "b:beat") -> Process:
    bench.daemon.states.pop(name, None)
    return bench.start(bench.spec(name, kind="beat", board=None, state=str(bench.folder / "beat.json")))


def _runs(bench: Bench) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bench.lines()]


def test_runs_are_planned_sent_routed_and_remembered(urls: Urls) -> None:  # noqa: F811
    with Bench(settings_of(urls.broker, urls.backend), {"scheduled": SCHEDULED}) as bench:
        worker = bench.worker("w:0")
        beat = _beat(bench)
        bench.consuming("b:beat")
        settled(lambda: len(bench.lines()), 3)
        state = wait_until(lambda: bench.daemon.states["b:beat"] if bench.daemon.states["b:beat"].data else None)
        assert state.data["entries"] == 2
        assert drain_and_wait(beat, 30) == 0
        runs = _runs(bench)
        assert {(run["word"], run["entry"]) for run in runs} == {("often", "often")}
        planned = [datetime.fromisoformat(run["planned"]) for run in runs]
        assert all(run["planned"].endswith("Z") for run in runs)
        assert len(set(planned)) == len(planned)
        # Whole periods apart, however late each run was.
        assert all((moment - planned[0]).total_seconds() % 1 == 0 for moment in planned)
        wait_until(lambda: len(bench.records("w:0")) == len(runs))
        assert {(r["task_queue"], r["task_user_id"]) for r in bench.records("w:0")} == {("lime_task_queue_asap", "9")}
        # The next process goes on where this one stopped.
        saved = json.loads((bench.folder / "beat.json").read_text())
        assert datetime.fromisoformat(saved["entries"]["often"]["last_run"]) == max(planned)
        rarely = saved["entries"]["rarely"]["last_run"]
        again = _beat(bench)
        settled(lambda: len(bench.lines()), len(runs) + 1)
        assert drain_and_wait(again, 30) == 0
        assert json.loads((bench.folder / "beat.json").read_text())["entries"]["rarely"]["last_run"] == rarely
        moments = [run["planned"] for run in _runs(bench)]
        assert len(set(moments)) == len(moments)
        assert drain_and_wait(worker) == 0


def test_two_never_run_at_once_and_the_next_goes_on_where_the_first_stopped(redis_url: str) -> None:
    with Bench(settings_of(redis_url), {"scheduled": SCHEDULED}) as bench:
        worker = bench.worker("w:0")
        first = _beat(bench)
        bench.consuming("b:beat")
        settled(lambda: len(bench.lines()), 1)
        second, third = _beat(bench, "c:beat"), _beat(bench, "d:beat")
        for name in ("c:beat", "d:beat"):
            wait_until(lambda: (state := bench.daemon.states.get(name)) and state.reason)  # noqa: B023  called here
            assert bench.daemon.states[name].phase == Phase.STARTING
        settled(lambda: len(bench.lines()), 3)
        # One that never had its turn changes nothing.
        first.signal(signal.SIGSTOP)
        saved = (bench.folder / "beat.json").stat()
        assert drain_and_wait(third, 30) == 0
        assert (bench.folder / "beat.json").stat() == saved
        first.signal(signal.SIGCONT)
        assert drain_and_wait(first, 30) == 0
        bench.consuming("c:beat")
        settled(lambda: len(bench.lines()), 5)
        assert drain_and_wait(second, 30) == 0
        moments = [run["planned"] for run in _runs(bench)]
        assert len(set(moments)) == len(moments)
        assert drain_and_wait(worker) == 0


def test_state_that_cannot_be_read_is_set_aside(redis_url: str) -> None:
    with Bench(settings_of(redis_url), {"scheduled": SCHEDULED}) as bench:
        for text in ("{ truncated", '{"version": 99, "entries": {}}', '{"version": 1, "entries": {"often": 3}}'):
            (bench.folder / "beat.json").write_text(text)
            beat = _beat(bench)
            bench.consuming("b:beat")
            assert drain_and_wait(beat, 30) == 0
            assert (bench.folder / "beat.json.damaged").read_text() == text
            assert json.loads((bench.folder / "beat.json").read_text())["version"] == 1
            warning = [r for r in bench.records("b:beat", logger=None) if r.get("action") == "beat_state_unreadable"]
            assert warning
            assert warning[-1]["level"] == "WARNING"


def test_a_broker_that_is_away_delays_one_run_and_ends_nothing(own_redis: Redis) -> None:
    with Bench(settings_of(own_redis.url), {"scheduled": SCHEDULED}) as bench:
        beat = _beat(bench)
        bench.consuming("b:beat")
        length = "lime_task_queue_asap"
        wait_until(lambda: int(own_redis.command("LLEN", length)[1:]) >= 1)
        own_redis.kill()
        wait_until(lambda: bench.daemon.phase("b:beat") == Phase.CONNECTING, 60)
        assert bench.daemon.states["b:beat"].reason
        own_redis.start()
        before = int(own_redis.command("LLEN", length)[1:])
        bench.consuming("b:beat")
        wait_until(lambda: int(own_redis.command("LLEN", length)[1:]) > before)
        assert beat.popen.poll() is None
        assert drain_and_wait(beat, 30) == 0


def test_it_starts_and_stops_without_a_broker(own_redis: Redis) -> None:
    own_redis.stop()
    with Bench(settings_of(own_redis.url), {"scheduled": SCHEDULED}) as bench:
        beat = _beat(bench)
        wait_until(lambda: bench.daemon.phase("b:beat") == Phase.CONNECTING, 60)
        assert bench.daemon.ask("b:beat", "reopen").error is None
        assert bench.daemon.ask("b:beat", "dance").error is not None
        assert bench.daemon.ask("b:beat", "drain").error is None
        assert beat.wait(30) == 0


def test_a_schedule_that_cannot_be_used_is_said(redis_url: str) -> None:
    broken = "def register_scheduled_tasks():\n    raise KeyError('what')\n"
    with Bench(settings_of(redis_url), {"broken": broken}) as bench:
        assert _beat(bench).wait() == 78
        state = bench.daemon.states["b:beat"]
        assert state.phase == Phase.FAILED
        assert "module broken" in (state.reason or "")
