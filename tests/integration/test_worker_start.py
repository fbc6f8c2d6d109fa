"""How workers fail to start: one line of reason on the channel, the traceback in the log, exit code 78."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import kombu
import pytest

from limetaskd.core.channel import Phase
from limetaskd.core.record import ProcessRecord
from limetaskd.core.spec import SPEC_VARIABLE
from tests.support.channel import BOOT, Bench, drain_and_wait, settings_of
from tests.support.jobs import JOBS
from tests.support.waiting import wait_until


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ValueError('broken on purpose')", "cannot import broken: ValueError: broken on purpose"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("import sys\nsys.exit(4)", "SystemExit: 4"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_module_that_fails(redis_url: str, source: str, reason: str) -> None:
    with Bench(settings_of(redis_url), {"broken": source}) as bench:
        process = bench.start(bench.spec())
        assert process.wait() == 78
        state = wait_until(lambda: bench.daemon.states.get("w:0"))
        assert state.phase == Phase.FAILED
        assert state.reason is not None
        assert reason in state.reason
        assert "\n" not in state.reason
        failed = next(r for r in bench.records(logger=None) if "exception" in r)
        assert "Traceback" in failed["exception"]


def test_a_queue_that_exists_with_other_arguments(amqp_url: str) -> None:
    with kombu.Connection(amqp_url) as connection:
        kombu.Queue(
            "lime_task_queue_asap", durable=True, queue_arguments={"x-max-length": 5}, channel=connection
        ).declare()
    with Bench(settings_of(amqp_url), {"jobs": JOBS}) as bench:
        process = bench.start(bench.spec())
        assert process.wait() == 78
        state = bench.daemon.states["w:0"]
        assert state.phase == Phase.FAILED
        assert "lime_task_queue_asap" in (state.reason or "")
        # A worker that consumes already refuses the queue and goes on.
        process = bench.worker("w:1", queues=("lime_default_task_queue",))
        reply = bench.daemon.ask("w:1", "consume", queue="lime_task_queue_asap")
        assert "lime_task_queue_asap" in (reply.error or "")
        bench.consuming("w:1")
        assert drain_and_wait(process) == 0


def test_a_broker_that_refuses_the_login_is_waited_for(amqp_url: str) -> None:
    with Bench(settings_of(amqp_url.replace("guest:guest", "guest:wrong")), {"jobs": JOBS}) as bench:
        process = bench.start(bench.spec())
        wait_until(lambda: "ACCESS_REFUSED" in (getattr(bench.daemon.states.get("w:0"), "reason", None) or ""))
        state = bench.daemon.states["w:0"]
        assert state.phase == Phase.CONNECTING
        assert "wrong" not in (state.reason or "")
        assert drain_and_wait(process, 30) == 0
        assert "wrong" not in (bench.folder / "w:0.log").read_text()


def test_the_application_brings_its_own_app(redis_url: str) -> None:
    source = (
        "from celery import Celery\n"
        "app = Celery('theirs')\n"
        "@app.task(name='theirs.double')\n"
        "def double(n):\n"
        "    return 2 * n\n"
    )
    settings = settings_of(redis_url, redis_url, app="theirs:app", imports=["theirs"])
    with Bench(settings, {"theirs": source}) as bench:
        process = bench.worker()
        assert bench.app.send_task("theirs.double", (4,)).get(timeout=60) == 8
        assert drain_and_wait(process) == 0


def test_its_first_act_is_its_record(redis_url: str) -> None:
    with Bench(settings_of(redis_url), {"jobs": JOBS}) as bench:
        spec = bench.spec(fingerprint="f")
        process = bench.start(spec)
        bench.consuming()
        assert spec.record is not None
        record = ProcessRecord.from_json(Path(spec.record).read_text())
        assert (record.pid, record.name, record.fingerprint) == (process.pid, "w:0", "f")


def _old_celery(folder: Path) -> None:
    (folder / "celery").mkdir()
    (folder / "celery" / "__init__.py").write_text("__version__ = '5.4.0'\n")


def test_an_old_celery_is_refused_in_one_line(tmp_path: Path) -> None:
    _old_celery(tmp_path)
    done = subprocess.run(
        [sys.executable, BOOT, "limefu", "--", "tasks", "routes"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        f"limetaskd needs celery >= 5.7 in this interpreter (found 5.4.0 at {tmp_path / 'celery'})\n"
    )


def test_boot_explains_bad_usage(tmp_path: Path) -> None:
    for argv, env, words in (
        ([], {}, "usage:"),
        (["dance"], {}, "usage:"),
        (["worker", "w:0"], {}, SPEC_VARIABLE),
        (["worker", "w:0"], {SPEC_VARIABLE: "{}"}, SPEC_VARIABLE),
        (["worker", "w:0"], {SPEC_VARIABLE: json.dumps({"version": 99})}, SPEC_VARIABLE),
    ):
        done = subprocess.run(
            [sys.executable, BOOT, *argv],
            env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_the_modules_of_limetaskd_do_not_hide_those_of_the_application(redis_url: str) -> None:
    source = JOBS + "\nimport tasks\nassert tasks.NAME\n"
    modules = {"tasks": "NAME = 'the application'\n", "core": "", "config": "", "jobs": source}
    with Bench(settings_of(redis_url, redis_url, imports=["jobs"]), modules) as bench:
        process = bench.worker()
        assert drain_and_wait(process) == 0


@pytest.mark.parametrize("kind", ["worker", "beat"])
def test_the_application_need_not_have_what_the_daemon_needs(redis_url: str, kind: str) -> None:
    block = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('pydantic', 'yaml', 'zmq', 'psutil', 'supervisor', 'daemon'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    with Bench(settings_of(redis_url, redis_url), {"jobs": JOBS}) as bench:
        (bench.folder / "block").mkdir()
        (bench.folder / "block" / "sitecustomize.py").write_text(block)
        process = bench.start(bench.spec(kind=kind), PYTHONPATH=str(bench.folder / "block"))
        bench.consuming()
        if kind == "worker":
            assert bench.app.send_task("jobs.number", (3,)).get(timeout=60) == 3
        assert drain_and_wait(process) == 0
