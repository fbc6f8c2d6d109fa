"""The plan: queues, pools by strategy, the owner of the schedule, slots, directories, the embedded server."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery import Celery
from celery.backends.redis import RedisBackend
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection

from limetaskd.config.dirs import embedded_url, runtime_candidates
from limetaskd.config.host import Host, cpu_quota, usable_cpus
from limetaskd.config.load import load_mapping
from limetaskd.config.settings import resolve
from limetaskd.errors import ConfigError
from limetaskd.plan.build import build
from limetaskd.plan.model import Plan, PoolPlan

USER = Host(uid=1000, home="/home/crm", tmp="/tmp", cpus=8, run_user=None)
ROOT = Host(uid=0, home="/root", tmp="/tmp", cpus=8, run_user=None)
SEED = """
tasks:
  routing:
    qos: {asap: q_asap, background: q_background, scheduled: q_scheduled}
    tasks: {my.special.task: q_special, my.fast.task: q_asap}
"""


def plan_of(text: str, environ: Mapping[str, str] | None = None, host: Host = USER, **options: Any) -> Plan:
    return build(load_mapping(yaml.safe_load(text), {}), environ or {}, host=host, **options)


def problems(text: str, environ: Mapping[str, str] | None = None, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan_of(text, environ, **options)
    return [line.removeprefix("the configuration mapping: ") for line in caught.value.problems]


def layout(plan: Plan) -> dict[str, tuple[str, ...]]:
    return {pool.name: pool.queues for pool in plan.pools}


# Queues


def test_each_queue_once_bound_by_a_key_of_its_own() -> None:
    plan = plan_of(SEED, {"LIME_TASK_QUEUE_PREFIX": "prod", "LIME_TASK_QUEUE_SUFFIX": "eu"})
    queues = plan.settings.queues
    assert [(queue.name, queue.actual, queue.routing_key) for queue in queues] == [
        ("lime_default_task_queue", "prod_lime_default_task_queue_eu", "prod_lime_default_routing_key_eu"),
        ("q_asap", "prod_q_asap_eu", "prod_q_asap_eu"),
        ("q_background", "prod_q_background_eu", "prod_q_background_eu"),
        ("q_scheduled", "prod_q_scheduled_eu", "prod_q_scheduled_eu"),
        ("q_special", "prod_q_special_eu", "prod_q_special_eu"),
    ]
    assert {(queue.exchange, queue.exchange_type, queue.queue_type) for queue in queues} == {
        ("lime_default_task_exchange", "direct", "classic")
    }


def test_quorum_queues_are_on_a_topic_exchange() -> None:
    plan = plan_of("limetaskd: {queue_type: quorum}")
    assert {(queue.exchange_type, queue.queue_type) for queue in plan.settings.queues} == {("topic", "quorum")}


@pytest.mark.parametrize("options", [{"embedded": True}, {}])
def test_quorum_queues_need_rabbitmq(options: dict[str, bool]) -> None:
    broker = "amqp://" if options else "redis://h"
    text = f"limetaskd: {{queue_type: quorum}}\ntasks: {{broker_connection_string: '{broker}'}}"
    assert problems(text, **options) == [
        'limetaskd.queue_type = "quorum": quorum queues need RabbitMQ as the broker (amqp://)'
    ]


def test_two_queues_with_one_routing_key() -> None:
    (line,) = problems("tasks: {task_routing_key_name: q, routing: {qos: {a: q}}}", {"LIME_TASK_QUEUE_PREFIX": "prod"})
    assert line.startswith("tasks.task_routing_key_name: the queues lime_default_task_queue and q would both get")


def test_names_that_rabbitmq_refuses() -> None:
    (line,) = problems("tasks: {task_queue_name: amq.q}")
    assert "begin with amq." in line
    (line,) = problems(f"tasks: {{task_queue_name: {'q' * 250}}}", {"LIME_TASK_QUEUE_PREFIX": "production"})
    assert "longer than 255 bytes" in line
    # Escaping makes a key longer than its name.
    (line,) = problems(f"tasks: {{routing: {{qos: {{a: {'a.' * 100}}}}}}}")
    assert "routing key" in line


@given(st.dictionaries(st.text("abc", min_size=1), st.sampled_from(["q1", "q2", "q3", "lime_default_task_queue"])),
       st.dictionaries(st.text("xyz", min_size=1), st.sampled_from(["q1", "q4"])),
       st.sampled_from(["all-in-one", "dedicated"]))  # fmt: skip
def test_every_queue_is_consumed_by_exactly_one_pool(qos: dict[str, str], tasks: dict[str, str], strategy: str) -> None:
    loaded = load_mapping({"tasks": {"routing": {"qos": qos, "tasks": tasks}}, "limetaskd": {"strategy": strategy}}, {})
    plan = build(loaded, {}, host=USER)
    consumed = [queue for pool in plan.pools for queue in pool.queues]
    assert sorted(consumed) == sorted(queue.name for queue in plan.settings.queues)
    assert set(consumed) == {"lime_default_task_queue", *qos.values(), *tasks.values()}
    assert plan.beat_pool in layout(plan)
    assert len({queue.routing_key for queue in plan.settings.queues}) == len(consumed)


# Pools


def test_all_in_one() -> None:
    plan = plan_of(SEED)
    assert layout(plan) == {
        "all": ("lime_default_task_queue", "q_asap", "q_background", "q_scheduled", "q_special"),
    }
    assert (plan.beat_pool, plan.pools[0].concurrency, plan.pools[0].workers) == ("all", 8, 1)


def test_dedicated_names() -> None:
    plan = plan_of(SEED + "limetaskd: {strategy: dedicated}")
    assert layout(plan) == {
        "default": ("lime_default_task_queue",),
        "asap": ("q_asap",),
        "background": ("q_background",),
        "scheduled": ("q_scheduled",),
        "q_special": ("q_special",),
    }
    assert plan.beat_pool == "scheduled"


def test_the_first_category_names_the_pool_also_of_the_default_queue() -> None:
    text = "tasks: {task_queue_name: q, routing: {qos: {b: q1, a: q1, low: q}}}\nlimetaskd: {strategy: dedicated}"
    assert layout(plan_of(text)) == {"low": ("q",), "b": ("q1",)}


def test_names_that_are_no_names_of_files() -> None:
    text = "tasks: {routing: {qos: {'a/b:c': q}, tasks: {x: '.q/é'}}}\nlimetaskd: {strategy: dedicated}"
    assert list(layout(plan_of(text))) == ["default", "a_b_c", "_q__"]


def test_pools_with_queues_take_them() -> None:
    text = SEED + """
limetaskd:
  strategy: dedicated
  pools:
    fast: {queues: [q_special, q_asap], concurrency: 5, workers: 2}
    background: {workers: 3}
"""
    plan = plan_of(text)
    assert layout(plan) == {
        "default": ("lime_default_task_queue",),
        "fast": ("q_asap", "q_special"),
        "background": ("q_background",),
        "scheduled": ("q_scheduled",),
    }
    fast, background = plan.pool("fast"), plan.pool("background")
    assert fast is not None
    assert background is not None
    assert [fast.slots(0), fast.slots(1)] == [3, 2]
    assert (background.workers, background.concurrency) == (3, 3)


def test_a_name_that_is_taken() -> None:
    (line,) = problems(SEED + "limetaskd: {strategy: dedicated, pools: {asap: {queues: [q_special]}}}")
    assert line.startswith("limetaskd.pools.asap: this is also the name of the pool of the queue q_asap")
    (line,) = problems("tasks: {routing: {qos: {default: q}}}\nlimetaskd: {strategy: dedicated}")
    assert line.startswith("limetaskd.strategy: the queues lime_default_task_queue and q would both get a")


def test_an_override_of_a_pool_whose_queue_was_taken() -> None:
    (line,) = problems(SEED + "limetaskd: {strategy: dedicated, pools: {fast: {queues: [q_asap]}, asap: {workers: 2}}}")
    assert line.startswith("limetaskd.pools.asap: no such pool with the strategy dedicated. The pools are: default")


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        (SEED, "all"),
        (SEED + "limetaskd: {strategy: dedicated}", "scheduled"),
        ("tasks: {routing: {qos: {a: q}}}\nlimetaskd: {strategy: dedicated}", "default"),
        (SEED + "limetaskd: {strategy: dedicated, beat: {pool: asap}}", "asap"),
        (SEED + "limetaskd: {strategy: dedicated, pools: {mine: {queues: [q_scheduled, q_asap]}}}", "mine"),
        ("tasks: {enable_scheduled_tasks: false}\nlimetaskd: {beat: {pool: all}}", None),
        ("tasks: {enable_scheduled_tasks: false}", None),
    ],
)
def test_the_owner_of_the_schedule(text: str, owner: str | None) -> None:
    assert plan_of(text).beat_pool == owner


# Slots and limits


@pytest.mark.parametrize(
    ("text", "cpus", "expected"),
    [
        ("limetaskd: {strategy: dedicated}", 8, [2, 2, 2, 1, 1]),
        ("limetaskd: {strategy: dedicated}", 2, [1, 1, 1, 1, 1]),
        ("limetaskd: {strategy: dedicated, pools: {asap: {concurrency: 7}}}", 8, [2, 7, 2, 2, 2]),
        ("limetaskd: {strategy: dedicated, concurrency: 3, pools: {asap: {concurrency: auto}}}", 8, [3, 8, 3, 3, 3]),
        ("limetaskd: {strategy: dedicated, pools: {asap: {pool: solo, workers: 2}}}", 8, [2, 2, 2, 2, 2]),
        ("limetaskd: {pools: {all: {workers: 4}}}", 2, [4]),
    ],
)
def test_slots(text: str, cpus: int, expected: list[int]) -> None:
    plan = plan_of(SEED + text, cpu_count=cpus)
    assert [pool.concurrency for pool in plan.pools] == expected


@given(st.integers(1, 100), st.integers(1, 100))
def test_workers_share_all_slots(concurrency: int, workers: int) -> None:
    pool = PoolPlan("a", ("q",), concurrency=max(concurrency, workers), workers=workers)
    assert sum(pool.slots(index) for index in range(workers)) == pool.concurrency


def test_a_pool_inherits_what_it_does_not_say() -> None:
    text = """
tasks: {task_time_limit: 10m, task_soft_time_limit: 5m}
limetaskd:
  shutdown_timeout: 1m
  limits: {memory_soft: 1GiB, memory_hard: 2GiB, time_grace: 7s}
  strategy: dedicated
  pools:
    default: {time_limit: 20m, limits: {memory_soft: 500MiB, memory_hard: null}, env: {A: b}, nice: 5, prefetch: 2}
"""
    (pool,) = plan_of(text).pools
    assert (pool.time_limit_s, pool.soft_time_limit_s, pool.shutdown_timeout_s) == (1200, 300, 60)
    limits = pool.limits
    assert (limits.memory_soft_bytes, limits.memory_hard_bytes, limits.time_grace_s) == (500 * 1024**2, None, 7)
    assert (pool.env, pool.nice, pool.prefetch) == ({"A": "b"}, 5, 2)
    (unlimited,) = plan_of("tasks: {task_time_limit: 10m}\nlimetaskd: {pools: {all: {time_limit: null}}}").pools
    assert unlimited.time_limit_s is None


def test_settings() -> None:
    text = """
tasks: {result_expires: 0, timezone: Europe/Stockholm, log_message_max_size: 100, task_time_limit: 5m}
limetaskd:
  application: crm
  imports: [crm.tasks]
  delivery: at-most-once
  publish: {confirm: false, timeout: 5s}
  celery: {broker_heartbeat: 10}
"""
    settings = plan_of(text).settings
    assert settings.result_expires_s is None
    assert (settings.application, settings.imports, settings.delivery) == ("crm", ["crm.tasks"], "at-most-once")
    assert (settings.publish_confirm, settings.publish_timeout_s) == (False, 5)
    assert (settings.time_limit_s, settings.log_message_max_bytes, settings.timezone) == (300, 100, "Europe/Stockholm")
    assert settings.celery == {"broker_heartbeat": 10}
    loaded = load_mapping(yaml.safe_load(text), {})
    assert resolve(loaded, {}, host=USER) == settings


def test_a_plan_is_pure() -> None:
    loaded = load_mapping(yaml.safe_load(SEED), {})
    assert build(loaded, {}, host=USER) == build(loaded, {}, host=USER)


# The host


@pytest.mark.parametrize(
    ("environ", "host", "runtime", "state"),
    [
        ({}, ROOT, "/run/limetaskd", "/var/lib/limetaskd"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, ROOT, "/run/limetaskd", "/var/lib/limetaskd"),
        ({"RUNTIME_DIRECTORY": "/run/a:/run/b", "STATE_DIRECTORY": "/var/a:/var/b"}, ROOT, "/run/a", "/var/a"),
        ({"RUNTIME_DIRECTORY": "", "STATE_DIRECTORY": ""}, USER, "/tmp/limetaskd-1000",
         "/home/crm/.local/state/limetaskd"),
        ({"XDG_RUNTIME_DIR": "/x/", "XDG_STATE_HOME": "/s/"}, USER, "/x/limetaskd", "/s/limetaskd"),
        ({"XDG_RUNTIME_DIR": "x", "XDG_STATE_HOME": "s"}, USER, "/tmp/limetaskd-1000",
         "/home/crm/.local/state/limetaskd"),
        ({}, dataclasses.replace(USER, run_user="/run/user/1000"), "/run/user/1000/limetaskd",
         "/home/crm/.local/state/limetaskd"),
    ],
)  # fmt: skip
def test_directories(environ: dict[str, str], host: Host, runtime: str, state: str) -> None:
    plan = plan_of("{}", environ, host)
    assert (plan.runtime_dir, plan.state_dir) == (runtime, state)
    assert (plan.settings.runtime_dir, plan.settings.state_dir) == (runtime, state)
    assert plan.control.endpoint == f"ipc://{runtime}/control.sock"
    assert runtime_candidates(environ, host)[0] == runtime
    assert "/run/limetaskd" in runtime_candidates(environ, host)
    configured = plan_of("limetaskd: {runtime_dir: /a, state_dir: /b, control: {endpoint: 'ipc:///c'}}", environ, host)
    assert (configured.runtime_dir, configured.state_dir, configured.control.endpoint) == ("/a", "/b", "ipc:///c")


def test_root_is_warned() -> None:
    assert any("runs as root" in line for line in plan_of("{}", host=ROOT).warnings)
    for text, host in (("{}", USER), ("limetaskd: {user: crm}", ROOT)):
        assert plan_of(text, host=host).warnings == ()


def test_a_control_socket_for_everybody_is_warned() -> None:
    plan = plan_of("limetaskd: {control: {mode: '666', group: ops}}")
    assert (plan.control.mode, plan.control.group) == (0o666, "ops")
    assert any('limetaskd.control.mode = "0666": every user' in line for line in plan.warnings)


def test_socket_paths_have_a_limit() -> None:
    room = 107 - len("/control.sock") - 1
    assert plan_of(f"limetaskd: {{runtime_dir: /{'r' * room}}}")
    (line,) = problems(f"limetaskd: {{runtime_dir: /{'r' * (room + 1)}}}")
    assert line.startswith("limetaskd.runtime_dir: the socket /rrr")
    assert "has a path of 108 bytes, and Linux takes 107" in line
    (line,) = problems(f"limetaskd: {{runtime_dir: /{'r' * room}, supervisor_socket: true}}")
    assert "supervisor.sock" in line
    (line,) = problems(f"limetaskd: {{control: {{endpoint: 'ipc:///{'e' * 107}'}}}}")
    assert line.startswith("limetaskd.control.endpoint")
    (line,) = problems(f"limetaskd: {{state_dir: /{'s' * 100}}}", embedded=True)
    assert "valkey.sock" in line
    # Bytes count, not characters.
    assert problems(f"limetaskd: {{runtime_dir: /{'ü' * 60}}}")


def test_quotas_of_cgroups(tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    inner = tmp_path / "fs" / "system.slice" / "x.service"
    inner.mkdir(parents=True)
    cgroup.write_text("12:cpu:/old\n0::/system.slice/x.service\n")
    root = str(tmp_path / "fs")
    assert cpu_quota(str(cgroup), root) is None
    (inner / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(str(cgroup), root) is None
    (inner / "cpu.max").write_text("250000 100000\n")
    assert cpu_quota(str(cgroup), root) == 2.5
    (inner.parent / "cpu.max").write_text("50000 100000\n")
    assert cpu_quota(str(cgroup), root) == 0.5
    assert usable_cpus(str(cgroup), root) == 1
    assert cpu_quota(str(tmp_path / "none"), root) is None
    assert usable_cpus() >= 1
    assert Host.read().cpus == usable_cpus()


# Embedded


@pytest.mark.parametrize(
    "state", ["/var/lib/limetaskd", "/a b/c+d", "/x;y/%41", "/q?r#s/@:&=", "/ü/[1]", "/trailing/"]
)
def test_the_embedded_server_is_found_by_kombu_and_celery(state: str) -> None:
    """As they read the URL, whatever the path holds."""
    settings = plan_of(f"limetaskd: {{state_dir: '{state}'}}", embedded=True).settings
    socket = f"{state.rstrip('/')}/embedded/valkey.sock"
    assert settings.embedded
    assert settings.broker_url == embedded_url(state, 0)
    with Connection(settings.broker_url) as connection:
        assert len(connection.alt) <= 1
        broker = _broker_parameters(connection)
    assert (broker["path"], broker["db"]) == (socket, 0)
    with Celery("x", broker=settings.broker_url, backend=settings.backend_url) as app:
        assert isinstance(app.backend, RedisBackend)
        assert (app.backend.connparams["path"], app.backend.connparams["db"]) == (socket, 1)
        assert "host" not in app.backend.connparams


def _broker_parameters(connection: Connection) -> dict[str, Any]:
    """What kombu would connect with; its channel connects when it is made, so it is asked without one."""
    channel = object.__new__(connection.transport.Channel)
    channel.connection = connection.transport
    parameters: dict[str, Any] = channel._connparams()
    return parameters
