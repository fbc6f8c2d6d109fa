"""What operators scaled, against what the file says."""

from __future__ import annotations

import dataclasses

import pytest

from limetaskd.core.settings import Routing, Settings
from limetaskd.daemon.pools import Scales
from limetaskd.errors import CommandError
from limetaskd.plan.model import ControlPlan, Plan, PoolPlan

POOL = PoolPlan("asap", ("q",), concurrency=4, workers=2)


def plan(*pools: PoolPlan) -> Plan:
    settings = Settings("app", "amqp://", None, "", "", "ex", [], Routing("q"))
    return Plan(settings, "dedicated", pools, None, None, "/run/x", "/var/x", ControlPlan("ipc:///run/x/c"))


def test_slots_and_workers_are_set_and_undone() -> None:
    scales = Scales()
    scales.set(POOL, 9, workers=False, persist=False)
    scales.set(POOL, 3, workers=True, persist=False)
    scaled = scales.apply(POOL)
    assert (scaled.concurrency, scaled.workers) == (9, 3)
    assert [scaled.slots(index) for index in range(3)] == [3, 3, 3]
    scales.set(POOL, None, workers=False, persist=False)
    assert scales.apply(POOL) == POOL


def test_every_worker_keeps_a_slot() -> None:
    scales = Scales()
    with pytest.raises(CommandError, match="each needs at least one slot"):
        scales.set(POOL, 1, workers=False, persist=False)
    with pytest.raises(CommandError, match="at least 1"):
        scales.set(POOL, 0, workers=True, persist=False)
    scales.set(POOL, 8, workers=True, persist=False)
    assert scales.apply(POOL).concurrency == 8


def test_a_reload_keeps_what_the_file_did_not_change() -> None:
    scales = Scales()
    scales.set(POOL, 9, workers=False, persist=False)
    scales.after_reload(plan(POOL), plan(dataclasses.replace(POOL, nice=5)))
    assert scales.apply(POOL).concurrency == 9
    scales.after_reload(plan(POOL), plan(dataclasses.replace(POOL, concurrency=6)))
    assert scales.apply(dataclasses.replace(POOL, concurrency=6)).concurrency == 6
    scales.after_reload(plan(POOL), plan())
    assert scales.by_pool == {}


def test_only_what_is_to_persist_is_saved() -> None:
    scales = Scales()
    other = dataclasses.replace(POOL, name="other")
    scales.set(POOL, 9, workers=False, persist=True)
    scales.set(other, 9, workers=False, persist=False)
    again = Scales.from_json(scales.to_json())
    assert again.apply(POOL).concurrency == 9
    assert again.apply(other).concurrency == 4


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 99, "pools": {}}', '{"version": 1}', '{"version": 1, "pools": 3}']
)
def test_a_damaged_file_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        Scales.from_json(text)


def test_a_share_of_the_cpus_that_changes_with_other_pools_undoes_no_scale() -> None:
    shared = dataclasses.replace(POOL, shared=True)
    scales = Scales()
    scales.set(shared, 9, workers=False, persist=False)
    scales.after_reload(plan(shared), plan(dataclasses.replace(shared, concurrency=2)))
    assert scales.apply(POOL).concurrency == 9
    scales.after_reload(plan(shared), plan(dataclasses.replace(shared, concurrency=2, shared=False)))
    assert scales.apply(POOL).concurrency == 4
