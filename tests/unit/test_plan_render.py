"""What `--check` prints: everything that matters, nothing secret."""

from __future__ import annotations

import json

import yaml

from limetaskd.config.host import Host
from limetaskd.config.load import load_mapping
from limetaskd.plan.build import build
from limetaskd.plan.model import Plan
from limetaskd.plan.render import as_document, render, table
from limetaskd.plan.secrets import masked

HOST = Host(uid=0, home="/root", tmp="/tmp", cpus=4, run_user=None)
TEXT = """
tasks:
  broker_connection_string: amqp://crm:hunter2@rabbit/prod
  backend_connection_string: redis://:hunter2@redis/0
  task_time_limit: 10m
  routing:
    qos: {asap: q_asap, email: q_asap, scheduled: q_scheduled}
    tasks: {my.special.task: q_special}
limetaskd:
  strategy: dedicated
  pools:
    asap: {concurrency: 5, workers: 2, limits: {memory_soft: 300MiB}, env: {TOKEN: hunter2}}
  celery: {redis_password: hunter2, broker_use_ssl: {keyfile: /k, password: hunter2}, sentinels: ['redis://:hunter2@s']}
"""


def plan() -> Plan:
    loaded = load_mapping(yaml.safe_load(TEXT), {})
    return build(loaded, {"LIME_TASK_QUEUE_PREFIX": "prod"}, host=HOST)


def test_text() -> None:
    text = render(plan())
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for expected in (
        "broker amqp://crm:***@rabbit/prod",
        "result backend redis://:***@redis/0",
        "schedule owned by the pool scheduled",
        "interpreter that of the daemon",
        "runtime_dir /run/limetaskd",
        "lime_default_task_queue (default) prod_lime_default_task_queue classic - - default",
        "q_asap prod_q_asap classic asap, email - asap",
        "q_special prod_q_special classic - 1 q_special",
        "asap prefork 2: 3 + 2 - / 10m soft 300MiB - q_asap",
        "scheduled prefork 1 x 1 - / 10m - owner q_scheduled",
    ):
        assert expected in lines, expected
    assert any(line.startswith("warning: ") and "runs as root" in line for line in lines)


def test_document() -> None:
    document = json.loads(json.dumps(as_document(plan())))
    pools = {pool["name"]: pool for pool in document["pools"]}
    assert list(pools) == ["default", "asap", "scheduled", "q_special"]
    assert pools["asap"]["slots"] == [3, 2]
    assert pools["asap"]["actual_queues"] == ["prod_q_asap"]
    assert pools["asap"]["env"] == ["TOKEN"]
    assert pools["scheduled"]["beat"]
    assert document["beat_pool"] == "scheduled"
    assert document["control"] == {"endpoint": "ipc:///run/limetaskd/control.sock", "mode": "0660", "group": None}
    assert {queue["name"]: queue["pools"] for queue in document["queues"]}["q_asap"] == ["asap"]
    assert len(document["warnings"]) == 1


def test_no_secret_is_shown() -> None:
    for text in (render(plan()), json.dumps(as_document(plan())), repr(plan().settings)):
        assert "hunter2" not in text
    assert as_document(plan())["settings"]["celery"]["broker_use_ssl"] == {"keyfile": "/k", "password": "***"}


def test_masked() -> None:
    assert masked({"a": ["x://u:p@h", {"token": 5, "n": 1, "secret": None}]}) == {
        "a": ["x://u:***@h", {"token": "***", "n": 1, "secret": None}]
    }


def test_tables_are_never_cut() -> None:
    assert table(("A", "B"), [("x" * 300, "y"), ("z", "")]) == f"{'A':300}  B\n{'x' * 300}  y\nz"
