"""`limefu tasks routes`: the configured routing, as a table and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

LIMEFU = str(Path(sys.executable).with_name("limefu"))
MODULE = '''
from limetaskd.tasks.decorators import task
@task(qos="asap", name="crm.rename")
def rename(): ...
@task(name="crm.plain")
def plain(): ...
@task(qos="unknown", name="crm.odd")
def odd(): ...
@task(qos="asap", name="my.special.task")
def special(): ...
'''
CONFIG = '''
tasks:
  broker_connection_string: amqp://nobody:secret@127.0.0.1:1//
  routing:
    qos: {asap: q_asap, background: q_background}
    tasks: {my.special.task: q_special}
limetaskd:
  imports: [crm]
'''


def _run(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "crm.py").write_text(MODULE)
    (folder / "c.yaml").write_text(CONFIG)
    return subprocess.run(
        [LIMEFU, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "LIMETASK_CONFIG": "c.yaml", **env},
    )  # fmt: skip


def test_json(tmp_path: Path) -> None:
    done = _run(tmp_path, "tasks", "routes", "--json", LIME_TASK_QUEUE_PREFIX="prod", LIME_TASK_QUEUE_SUFFIX="eu")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["default"]["actual"] == "prod_lime_default_task_queue_eu"
    assert document["qos"] == [
        {"category": "asap", "queue": "q_asap", "actual": "prod_q_asap_eu"},
        {"category": "background", "queue": "q_background", "actual": "prod_q_background_eu"},
    ]
    assert document["tasks"] == [{"task": "my.special.task", "queue": "q_special", "actual": "prod_q_special_eu"}]
    assert [(r["task"], r["type"], r["queue"], r["qos"]) for r in document["registered"]] == [
        ("crm.odd", "default_queue", "lime_default_task_queue", "unknown"),
        ("crm.plain", "default_queue", "lime_default_task_queue", None),
        ("crm.rename", "task_qos", "q_asap", "asap"),
        ("my.special.task", "task_route", "q_special", "asap"),
    ]
    assert "secret" not in done.stdout + done.stderr


def test_table(tmp_path: Path) -> None:
    done = _run(tmp_path, "tasks", "routes")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["asap", "q_asap", "q_asap"] in rows
    assert ["my.special.task", "q_special", "q_special"] in rows
    assert ["crm.rename", "task_qos", "q_asap", "q_asap", "asap"] in rows


def test_bad_usage(tmp_path: Path) -> None:
    assert _run(tmp_path, "tasks", "dance").returncode == 2
    assert _run(tmp_path).returncode == 2
    assert _run(tmp_path, "--help").returncode == 0
    assert _run(tmp_path, "tasks", "routes", "--config", "nowhere.yaml").returncode == 2


def test_a_module_that_fails(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(CONFIG.replace("[crm]", "[nowhere]"))
    done = _run(tmp_path, "tasks", "routes", "--config", "bad.yaml")
    assert done.returncode == 1
    assert "limefu: cannot import nowhere" in done.stderr
