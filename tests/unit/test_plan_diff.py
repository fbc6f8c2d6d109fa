"""The difference of two plans: what is rolled, what running processes take over, what needs a restart."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from limetaskd.config.host import Host
from limetaskd.config.load import load_mapping
from limetaskd.plan.build import build
from limetaskd.plan.diff import IN_PLACE, ROLLED, Change, PlanDiff, diff
from limetaskd.plan.model import Plan
from limetaskd.plan.render import render_diff

HOST = Host(uid=1000, home="/home/crm", tmp="/tmp", cpus=4, run_user=None)
BASE = """
tasks:
  broker_connection_string: amqp://u:hunter2@h
  routing: {qos: {asap: q_asap, scheduled: q_scheduled}}
limetaskd:
  strategy: dedicated
  concurrency: 2
  pools:
    asap: {concurrency: 4, workers: 2}
    default: {pool: threads, concurrency: 4, workers: 2}
"""


def plan_of(text: str, **options: Any) -> Plan:
    return build(load_mapping(yaml.safe_load(text), {}), {}, host=HOST, **options)


def changed(old: str, new: str, text: str = BASE) -> PlanDiff:
    assert old in text
    return diff(plan_of(text), plan_of(text.replace(old, new)))


def test_nothing() -> None:
    difference = diff(plan_of(BASE), plan_of(BASE))
    assert difference == PlanDiff()
    assert difference.empty
    assert render_diff(difference) == "nothing changes\n"


@pytest.mark.parametrize(
    ("pool", "old", "new", "how"),
    [
        ("asap", "asap: {concurrency: 4,", "asap: {concurrency: 6,", IN_PLACE),
        ("asap", "asap: {", "asap: {limits: {time_grace: 9}, ", IN_PLACE),
        ("asap", "asap: {", "asap: {shutdown_timeout: 9, ", IN_PLACE),
        ("asap", "workers: 2}\n    default", "workers: 3}\n    default", IN_PLACE),
        ("asap", "asap: {", "asap: {autoscale: {min: 2, max: 9}, ", IN_PLACE),
        ("asap", "asap: {", "asap: {prefetch: 9, ", ROLLED),
        ("asap", "asap: {", "asap: {env: {A: b}, ", ROLLED),
        ("asap", "asap: {", "asap: {nice: 3, ", ROLLED),
        ("asap", "asap: {", "asap: {time_limit: 9, ", ROLLED),
        ("asap", "asap: {", "asap: {pool: threads, ", ROLLED),
        ("default", "threads, concurrency: 4", "threads, concurrency: 6", ROLLED),
        # The threads of each worker that stays are as they were.
        ("default", "threads, concurrency: 4, workers: 2", "threads, concurrency: 6, workers: 3", IN_PLACE),
    ],
)
def test_how_a_pool_changes(pool: str, old: str, new: str, how: str) -> None:
    difference = changed(old, new)
    assert [(change.name, change.how) for change in difference.pools_changed] == [(pool, how)]
    assert (difference.rolled, difference.in_place) == (((pool,), ()) if how == ROLLED else ((), (pool,)))
    assert not difference.settings
    assert not difference.restart
    assert f"~ pool {pool}: {'in place' if how == IN_PLACE else 'new processes'}" in render_diff(difference)


def test_a_category_with_a_new_queue() -> None:
    difference = changed("scheduled: q_scheduled}", "scheduled: q_scheduled, email: q_email}")
    assert difference == PlanDiff(
        pools_added=("email",), queues_added=("q_email",), routing=(Change("qos.email", None, "q_email"),)
    )
    assert render_diff(difference) == "+ pool email\n+ queue q_email\n~ routing qos.email: null -> q_email\n"


def test_the_scheduled_category_goes() -> None:
    difference = changed(", scheduled: q_scheduled}", "}")
    assert difference.pools_removed == ("scheduled",)
    assert difference.queues_removed == ("q_scheduled",)
    assert difference.beat == ("scheduled", "default")
    assert difference.pools_changed == ()
    assert "~ schedule: owner scheduled -> default\n" in render_diff(difference)


def test_a_pool_that_gets_another_queue_begins_in_place() -> None:
    difference = changed("asap: {concurrency: 4,", "asap: {queues: [q_asap, q_scheduled], concurrency: 4,")
    (change,) = difference.pools_changed
    assert (change.name, change.how) == ("asap", IN_PLACE)
    assert change.changes == (Change("queues", ["q_asap"], ["q_asap", "q_scheduled"]),)
    assert difference.pools_removed == ("scheduled",)
    assert difference.beat == ("scheduled", "asap")


def test_a_new_default_queue_is_routing() -> None:
    difference = changed("tasks:", "tasks:\n  task_queue_name: q_new")
    assert difference.routing == (Change("default", "lime_default_task_queue", "q_new"),)
    assert (difference.queues_added, difference.queues_removed) == (("q_new",), ("lime_default_task_queue",))
    assert (difference.rolled, difference.in_place) == ((), ("default",))


def test_a_queue_that_is_bound_anew_rolls_its_pool() -> None:
    difference = changed("tasks:", "tasks:\n  task_routing_key_name: k_new")
    assert [change.key for change in difference.queues_changed] == ["lime_default_task_queue"]
    assert difference.rolled == ("default",)
    assert difference.schedule_changed


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("limetaskd:", "limetaskd:\n  imports: [crm.tasks]", "imports"),
        ("limetaskd:", "limetaskd:\n  celery: {broker_heartbeat: 5}", "celery"),
        ("limetaskd:", "limetaskd:\n  python: /opt/crm/bin/python", "python"),
        ("tasks:", "tasks:\n  timezone: Europe/Stockholm", "timezone"),
        ("hunter2@h", "hunter2@h2", "broker_url"),
    ],
)
def test_settings_roll_every_pool(old: str, new: str, key: str) -> None:
    difference = changed(old, new)
    assert [change.key for change in difference.settings] == [key]
    assert difference.rolled == ("default", "asap", "scheduled")
    assert difference.schedule_changed


def test_a_general_time_limit_is_a_change_of_the_pools() -> None:
    difference = changed("tasks:", "tasks:\n  task_time_limit: 5m")
    assert not difference.settings
    assert difference.rolled == ("default", "asap", "scheduled")
    assert "    time_limit_s: null -> 5m\n" in render_diff(difference)


@pytest.mark.parametrize(
    ("new", "key"),
    [
        ("runtime_dir: /r", "runtime_dir"),
        ("state_dir: /s", "state_dir"),
        ("user: crm", "user"),
        ("supervisor_socket: true", "supervisor_socket"),
        ("control: {mode: '0600'}", "control"),
    ],
)
def test_what_needs_a_restart_of_the_daemon(new: str, key: str) -> None:
    difference = changed("limetaskd:", f"limetaskd:\n  {new}")
    assert key in [change.key for change in difference.restart]
    assert not difference.pools_changed
    assert "takes effect when limetaskd is restarted" in render_diff(difference)


def test_embedded_needs_a_restart_too() -> None:
    difference = diff(plan_of(BASE), plan_of(BASE, embedded=True))
    assert [change.key for change in difference.restart] == ["embedded"]


def test_the_log_level_restarts_nothing() -> None:
    difference = changed("limetaskd:", "limetaskd:\n  logging: {level: DEBUG}")
    assert [change.key for change in difference.daemon] == ["logging"]
    assert (difference.settings, difference.pools_changed, difference.schedule_changed) == ((), (), False)


def test_what_the_daemon_takes_over_by_itself() -> None:
    difference = changed("limetaskd:", "limetaskd:\n  restart: {max: 5m}\n  logging: {keep: 9}")
    assert [change.key for change in difference.daemon] == ["logging", "restart"]
    assert not difference.pools_changed


def test_no_secret_is_in_a_difference() -> None:
    old = plan_of(BASE)
    text = BASE.replace("hunter2", "hunter3").replace("asap: {", "asap: {env: {TOKEN: hunter4}, ", 1)
    text = text.replace("limetaskd:", "limetaskd:\n  celery: {redis_password: hunter5}")
    text = text.replace("qos: {env", "qos: {")
    difference = diff(old, plan_of(text))
    shown = json.dumps(difference.as_document()) + render_diff(difference)
    assert "hunter" not in shown
    assert "broker_url: amqp://u:***@h -> amqp://u:***@h (its secret part differs)" in shown
    assert "TOKEN changed" in shown


NAMES = st.sampled_from(["q1", "q2", "q3"])
DOCUMENTS = st.fixed_dictionaries(
    {
        "tasks": st.fixed_dictionaries(
            {
                "routing": st.fixed_dictionaries(
                    {"qos": st.dictionaries(st.sampled_from(["a", "b", "scheduled"]), NAMES)}
                )
            }
        ),
        "limetaskd": st.fixed_dictionaries(
            {"strategy": st.sampled_from(["all-in-one", "dedicated"]), "concurrency": st.integers(1, 3)}
        ),
    }
)


@given(DOCUMENTS, DOCUMENTS)
def test_a_difference_leads_from_one_plan_to_the_other(one: dict[str, Any], two: dict[str, Any]) -> None:
    old, new = (build(load_mapping(document, {}), {}, host=HOST) for document in (one, two))
    difference = diff(old, new)
    pools = {pool.name for pool in old.pools} - set(difference.pools_removed) | set(difference.pools_added)
    assert pools == {pool.name for pool in new.pools}
    queues = {queue.name for queue in old.settings.queues} - set(difference.queues_removed) | set(
        difference.queues_added
    )
    assert queues == {queue.name for queue in new.settings.queues}
    unchanged = {pool.name for pool in new.pools} - set(difference.pools_added) - set(difference.rolled)
    assert all(old.pool(name) == new.pool(name) for name in unchanged - set(difference.in_place))
    assert difference.empty == (old == new or render_diff(difference) == "nothing changes\n")
    json.dumps(difference.as_document())


def test_automatic_slots_are_shared_anew() -> None:
    difference = changed(
        "scheduled: q_scheduled}",
        "scheduled: q_scheduled, email: q_email}",
        BASE.replace("concurrency: 2\n", "concurrency: auto\n"),
    )
    assert [(change.name, change.how, change.changes) for change in difference.pools_changed] == [
        ("scheduled", IN_PLACE, (Change("concurrency", 4, 2),))
    ]
