"""Pauses, queues that depart, and autoscaled pools beside operators' scales: the pure parts."""

from __future__ import annotations

import dataclasses
import json

import pytest

from limetaskd.core.settings import Queue, Routing, Settings
from limetaskd.daemon.audit import Operator
from limetaskd.daemon.departing import EMPTY_S, Departing, Emptiness, after_reload
from limetaskd.daemon.pauses import Pause, Pauses
from limetaskd.daemon.pools import Scales
from limetaskd.plan.model import AutoscalePlan, ControlPlan, Plan, PoolPlan


def queue(name: str) -> Queue:
    return Queue(name, f"prod_{name}", "ex", "direct", f"prod_{name}")


def plan(*pools: PoolPlan) -> Plan:
    names = [name for pool in pools for name in pool.queues]
    settings = Settings("app", "amqp://", None, "prod", "", "ex", [queue(name) for name in names], Routing(names[0]))
    return Plan(settings, "dedicated", pools, None, None, "/run/x", "/var/x", ControlPlan("ipc:///run/x/c"))


def test_pauses_are_saved_shown_and_end() -> None:
    pauses = Pauses()
    pauses.put(Pause("a", 100.0, 200.0, "why", {"uid": 7}))
    pauses.put(Pause("b", 100.0))
    again = Pauses.from_list(json.loads(json.dumps(pauses.as_list())))
    assert again.get("a") == pauses.get("a")
    assert ("b" in again, "c" in again) == (True, False)
    assert (again.expired(199.0), again.expired(200.0), again.next_end()) == ([], ["a"], 200.0)
    shown = again.get("a")
    assert shown is not None
    assert shown.as_document("prod_a") == {
        "queue": "prod_a", "since": "1970-01-01T00:01:40.000Z", "until": "1970-01-01T00:03:20.000Z",
        "reason": "why", "by": {"uid": 7},
    }  # fmt: skip
    assert (again.drop("a"), again.drop("a"), again.next_end()) == (True, False, None)
    again.keep({"a"})
    assert "b" not in again
    with pytest.raises(TypeError):
        Pauses.from_list([{"nonsense": 1}])


BOTH = plan(PoolPlan("default", ("d",)), PoolPlan("asap", ("a", "b")))


def test_a_removed_queue_stays_with_its_pool() -> None:
    new = plan(PoolPlan("default", ("d",)), PoolPlan("asap", ("a",)))
    assert after_reload({}, BOTH, new) == {"b": Departing(queue("b"), "asap")}


def test_the_queues_of_a_removed_pool_go_to_that_of_the_default_queue() -> None:
    new = plan(PoolPlan("default", ("d",)))
    found = after_reload({}, BOTH, new)
    assert {name: one.pool for name, one in found.items()} == {"a": "default", "b": "default"}
    # A second reload finds them departing still, and takes back what is configured again.
    assert set(after_reload(found, new, plan(PoolPlan("default", ("d",)), PoolPlan("asap", ("a",))))) == {"b"}
    moved = after_reload(found, new, plan(PoolPlan("all", ("d",))))
    assert {one.pool for one in moved.values()} == {"all"}


def test_departing_queues_survive_json() -> None:
    one = Departing(queue("b"), "asap")
    assert Departing.from_document(json.loads(json.dumps(one.as_document()))) == one


def test_empty_for_five_seconds_without_a_message_or_a_doubt() -> None:
    empty = Emptiness()
    assert not empty.seen("q", 0, 10.0)
    assert not empty.seen("q", 0, 10.0 + EMPTY_S - 0.1)
    assert empty.seen("q", 0, 10.0 + EMPTY_S)
    for disturbed in (1, None):
        assert not empty.seen("q", disturbed, 20.0)
        assert not empty.seen("q", 0, 21.0)
        assert not empty.seen("q", 0, 21.0 + EMPTY_S - 0.1)


def test_an_operator_counts_more_than_the_autoscaler_and_its_bounds() -> None:
    pool = PoolPlan("asap", ("a",), concurrency=2, autoscale=AutoscalePlan(3, 9, 2.0))
    scales = Scales()
    assert scales.apply(pool).concurrency == 3
    scales.automatic["asap"] = 8
    assert scales.apply(pool).concurrency == 8
    assert not scales.fixed("asap")
    scales.set(pool, 12, workers=False, persist=True)
    assert (scales.apply(pool).concurrency, scales.fixed("asap")) == (12, True)
    assert "automatic" not in scales.to_json()
    scales.set(pool, None, workers=False, persist=False)
    assert scales.apply(pool).concurrency == 8
    narrower = dataclasses.replace(pool, autoscale=AutoscalePlan(1, 4, 2.0))
    scales.after_reload(plan(pool), plan(narrower))
    assert scales.apply(narrower).concurrency == 4
    scales.after_reload(plan(narrower), plan(dataclasses.replace(pool, autoscale=None)))
    assert scales.automatic == {}


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ({"uid": 7, "user": "anna", "pid": 9}, Operator("control", 7, "anna", 9)),
        ({}, Operator("control")),
        ({"uid": "7", "user": ["x"], "pid": True}, Operator("control")),
        ({"user": "x" * 1000, "more": 1}, Operator("control", user="x" * 256)),
    ],
)
def test_what_a_client_says_of_itself(client: dict[str, object], expected: Operator) -> None:
    assert Operator.of_client(client) == expected
