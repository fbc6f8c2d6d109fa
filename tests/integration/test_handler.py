"""`lime-task-handler`, started by hand on real brokers, as its users do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from limetaskd.core.jsonlog import EXECUTION_FIELDS
from tests.support.channel import Process, drain_and_wait, records_of
from tests.support.guard import GUARD
from tests.support.jobs import JOBS, Urls, urls  # noqa: F401
from tests.support.waiting import wait_until

HANDLER = str(Path(sys.executable).with_name("lime-task-handler"))
SCHEDULE = '''
from datetime import timedelta
from limetaskd.tasks.schedule import ScheduledTask
def register_scheduled_tasks():
    return [ScheduledTask("jobs.number", timedelta(seconds=1), args=(99,))]
'''


class Site:
    """A folder with a configuration, a task module and handlers started in it."""

    def __init__(self, folder: Path, urls: Urls, *, schedule: bool = False, **tasks: Any) -> None:  # noqa: F811
        self.folder = folder
        self.urls = urls
        self.out = folder / "out"
        self.out.write_text("")
        (folder / "jobs.py").write_text(JOBS + (SCHEDULE if schedule else ""))
        config = {
            "tasks": {
                "broker_connection_string": urls.broker,
                "backend_connection_string": urls.backend,
                "routing": {"qos": {"asap": "q_asap", "background": "q_background"}},
                **tasks,
            },
            "limetaskd": {
                "imports": ["jobs"],
                "runtime_dir": str(folder / "run"),
                "state_dir": str(folder / "state"),
                "shutdown_timeout": 60,
            },
        }
        (folder / "limetaskd.json").write_text(json.dumps(config))
        self.env = {**os.environ, "LIMETASK_CONFIG": str(folder / "limetaskd.json"), "LT_OUT": str(self.out)}
        self.processes: list[Process] = []
        self._app: Any = None

    def close(self) -> None:
        for process in self.processes:
            process.end()
        if self._app is not None:
            self._app.close()
        for log in self.folder.glob("*.log"):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}")

    @property
    def app(self) -> Any:
        if self._app is None:
            from limetaskd.tasks.app import create_app

            self._app = create_app(str(self.folder / "limetaskd.json"))
        return self._app

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [HANDLER, *arguments], env={**self.env, **env}, cwd=self.folder,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def start(self, *arguments: str, ready: bool = True, **env: str) -> Process:
        """A handler that consumes; its stderr and stdout are its log."""
        log = self.folder / f"handler{len(self.processes)}.log"
        process = Process([HANDLER, *arguments], {**self.env, **env}, self.folder, log)
        self.processes.append(process)
        if ready:
            wait_until(lambda: self.consumed(log), 60, log.read_text)
        return process

    def consumed(self, log: Path) -> list[str]:
        """Names of queues that a handler says it consumes."""
        for record in records_of(log):
            if record.get("action") == "consuming":
                return str(record["message"]).removeprefix("consuming ").split(", ")
        return []

    def lines(self) -> list[str]:
        return self.out.read_text().split()


@pytest.fixture
def site(tmp_path: Path, urls: Urls) -> Iterator[Site]:  # noqa: F811
    made = Site(tmp_path, urls)
    yield made
    made.close()


@pytest.fixture
def amqp_site(tmp_path: Path, amqp_url: str, redis_url: str) -> Iterator[Site]:
    made = Site(tmp_path, Urls("amqp", amqp_url, redis_url))
    yield made
    made.close()


@pytest.fixture
def redis_site(tmp_path: Path, redis_url: str) -> Iterator[Site]:
    made = Site(tmp_path, Urls("redis", redis_url, redis_url), schedule=True)
    yield made
    made.close()


def test_without_queues_it_consumes_all_configured_ones(site: Site) -> None:
    process = site.start("--concurrency", "2")
    assert site.consumed(process.log) == ["lime_default_task_queue", "q_asap", "q_background"]
    sent = [
        site.app.send_task("jobs.number", (n,), headers={"__qos_category": qos} if qos else None)
        for n, qos in enumerate((None, "asap", "background"))
    ]
    assert [result.get(timeout=60) for result in sent] == [0, 1, 2]
    records = wait_until(
        lambda: len(found := [r for r in records_of(process.log) if "task_outcome" in r]) == 3 and found
    )
    assert isinstance(records, list)
    assert {r["task_queue"] for r in records} == {"lime_default_task_queue", "q_asap", "q_background"}
    assert all(set(EXECUTION_FIELDS) <= set(r) and r["application"] == "limetask" for r in records)
    assert drain_and_wait(process) == 0


def test_queues_are_configured_names_or_actual_ones_of_this_cluster(amqp_site: Site) -> None:
    site = amqp_site
    prefix = {"LIME_TASK_QUEUE_PREFIX": "prod"}
    first = site.start("-Q", "q_asap,prod_q_background", **prefix)
    assert site.consumed(first.log) == ["prod_q_asap", "prod_q_background"]
    second = site.start("-X", "q_asap", "-n", "other@%h", **prefix)
    assert site.consumed(second.log) == ["prod_lime_default_task_queue", "prod_q_background"]
    assert any("other@" in r["message"] for r in records_of(second.log))
    assert drain_and_wait(first) == 0
    assert drain_and_wait(second) == 0


def test_an_unknown_queue_is_refused_with_the_known_ones(redis_site: Site) -> None:
    for option in ("--queues", "--exclude-queues"):
        done = redis_site.run(option, "q_asap,nowhere")
        assert done.returncode == 2
        assert "'nowhere'" in done.stderr
        assert "lime_default_task_queue, q_asap, q_background" in done.stderr


def test_several_handlers_run_on_one_host(amqp_site: Site) -> None:
    processes = [amqp_site.start("-c", "1") for _ in range(2)]
    for process in processes:
        assert process.popen.poll() is None
        assert drain_and_wait(process) == 0


def test_control_c_drains_and_a_second_one_stops_at_once(amqp_site: Site) -> None:
    site = amqp_site
    process = site.start("-c", "1")
    gate = site.folder / "gate"
    site.app.send_task("jobs.until", (str(gate), 1))
    wait_until(lambda: site.lines() == ["begin1"])
    process.signal(signal.SIGINT)
    wait_until(lambda: any(r.get("action") == "drain" for r in records_of(process.log)))
    process.signal(signal.SIGINT)
    assert process.wait() == 1
    gate.touch()
    again = site.start("-c", "1")
    wait_until(lambda: site.lines() == ["begin1", "begin1", "end1"])
    assert drain_and_wait(again) == 0


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_pools_and_other_options_of_celery_are_passed_on(redis_site: Site, pool: str) -> None:
    process = redis_site.start(
        "--pool", pool, "-c", "2", "-E", "-O", "fair", "--prefetch-multiplier", "2", "--without-gossip",
        "--without-mingle", "--max-tasks-per-child", "50", "--time-limit", "300", "--soft-time-limit", "200",
        "--pidfile", "handler.pid",
    )  # fmt: skip
    assert (redis_site.folder / "handler.pid").read_text().strip() == str(process.pid)
    assert redis_site.app.send_task("jobs.number", (4,)).get(timeout=60) == 4
    stats = wait_until(lambda: redis_site.app.control.inspect(timeout=2).stats())
    assert isinstance(stats, dict)
    (stat,) = stats.values()
    assert stat["pool"]["max-concurrency"] == (1 if pool == "solo" else 2)
    assert drain_and_wait(process) == 0
    assert not (redis_site.folder / "handler.pid").exists()


def test_autoscale(redis_site: Site) -> None:
    process = redis_site.start("--autoscale", "4,1", "--without-mingle")
    # Celery begins with the lower bound; its scaling itself is Celery's, and known to be unreliable.
    assert len(psutil.Process(process.pid).children()) == 1
    assert redis_site.app.send_task("jobs.number", (4,)).get(timeout=60) == 4
    assert drain_and_wait(process) == 0


def test_loglevel_and_logfile(redis_site: Site) -> None:
    process = redis_site.start("-l", "ERROR", "--logfile", "%n.log", "-n", "named@%h", ready=False)
    log = redis_site.folder / "named.log"
    assert redis_site.app.send_task("jobs.number", (4,)).get(timeout=60) == 4
    # The promised record stands whatever the level; nothing else of INFO does.
    wait_until(lambda: records_of(log))
    assert {r["logger"] for r in records_of(log)} == {"limetaskd.execution"}
    assert drain_and_wait(process) == 0
    debug = redis_site.start("-l", "DEBUG")
    assert any(r["level"] == "DEBUG" for r in records_of(debug.log))
    assert drain_and_wait(debug) == 0


def test_detach(redis_site: Site) -> None:
    done = redis_site.run("-D", "--logfile", "d.log", "--pidfile", "d.pid", "-c", "1")
    assert (done.returncode, done.stdout) == (0, "")
    pidfile = redis_site.folder / "d.pid"
    pid = int(wait_until(lambda: pidfile.exists() and pidfile.read_text().strip(), 60) or 0)
    GUARD.add_session(os.getsid(pid))
    wait_until(lambda: redis_site.consumed(redis_site.folder / "d.log"), 60)
    assert redis_site.app.send_task("jobs.number", (4,)).get(timeout=60) == 4
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not pidfile.exists(), 60)


def test_beat_runs_the_schedule_and_dies_with_its_worker(redis_site: Site) -> None:
    process = redis_site.start("--beat", "-c", "1")
    wait_until(lambda: redis_site.lines().count("99") >= 2, 60)
    assert json.loads((redis_site.folder / "state" / "beat.json").read_text())["entries"]["jobs.number"]
    beside = redis_site.run("--beat", "-c", "1")
    assert beside.returncode == 2
    assert "another schedule" in beside.stderr
    assert "Traceback" not in beside.stderr
    children = process.children()
    process.signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in children))
    again = redis_site.start("-B", "-c", "1")
    assert drain_and_wait(again) == 0


def test_beat_without_scheduled_tasks_warns_and_runs_none(tmp_path: Path, redis_url: str) -> None:
    site = Site(tmp_path, Urls("redis", redis_url, redis_url), schedule=True, enable_scheduled_tasks=False)
    try:
        process = site.start("--beat", "-c", "1")
        assert any("enable_scheduled_tasks" in r["message"] for r in records_of(process.log))
        assert len(process.children()) == 1
        assert drain_and_wait(process) == 0
    finally:
        site.close()


def test_errors_are_clear_and_exit_with_2(redis_site: Site) -> None:
    missing = redis_site.run("--config", "nowhere.yaml")
    assert missing.returncode == 2
    assert "nowhere.yaml" in missing.stderr
    (redis_site.folder / "bad.json").write_text('{"tasks": {"timezone": "Nowhere/City", "colour": "red"}}')
    bad = redis_site.run("--config=bad.json")
    assert bad.returncode == 2
    assert "tasks.timezone" in bad.stderr
    assert "colour" in bad.stderr
    assert all(line.startswith("lime-task-handler: ") for line in bad.stderr.splitlines())
    assert redis_site.run("--config").returncode == 2
    usage = redis_site.run("--concurency", "2")
    assert usage.returncode == 2
    assert "--concurrency" in usage.stderr


def test_help_and_version_need_no_configuration(tmp_path: Path) -> None:
    for option, words in (("--help", ("--queues", "--autoscale", "--config", "--beat")), ("--version", ("lime-task",))):
        done = subprocess.run(
            [HANDLER, option], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
            env={key: value for key, value in os.environ.items() if key != "LIMETASK_CONFIG"},
        )  # fmt: skip
        assert done.returncode == 0
        assert all(word in done.stdout for word in words)


def test_a_task_module_that_fails_is_named(redis_site: Site) -> None:
    (redis_site.folder / "jobs.py").write_text("import nowhere_at_all\n")
    done = redis_site.run()
    assert done.returncode == 78
    assert "lime-task-handler: cannot import jobs: ModuleNotFoundError" in done.stderr
