"""When a limit of time is exceeded, and when memory must be read exactly."""

from __future__ import annotations

from limetaskd.policy.limits import DRIFT_S, Weight, must_read, next_look_s, overtime_s

MIB = 1024 * 1024


def test_time_is_over_after_limit_and_grace() -> None:
    assert overtime_s(100.0, 10.0, 5.0, 115.0) is None
    assert overtime_s(100.0, 10.0, 5.0, 116.0) == 1.0
    assert overtime_s(100.0, None, 5.0, 1e9) is None
    assert overtime_s(0.0, 10.0, 5.0, 1e9) is None  # it did not say when it began


def test_far_from_the_limit_nothing_is_read_exactly() -> None:
    assert not must_read(Weight(10 * MIB), 100 * MIB, 0.0)
    assert not must_read(Weight(10 * MIB), None, 0.0)
    assert must_read(Weight(81 * MIB), 100 * MIB, 0.0)


def test_inherited_pages_are_read_exactly_now_and_then_only() -> None:
    """200 MiB inherited, 5 of its own: far from a limit of 100 MiB, however near it looks."""
    inherited = Weight(205 * MIB, 5 * MIB, 205 * MIB, read_at=0.0)
    assert inherited.estimate == 5 * MIB
    assert not must_read(inherited, 100 * MIB, DRIFT_S / 2)
    assert must_read(inherited, 100 * MIB, DRIFT_S)
    grown = Weight(290 * MIB, 5 * MIB, 205 * MIB, read_at=0.0)
    assert grown.estimate == 90 * MIB
    assert must_read(grown, 100 * MIB, 1.0)


def test_a_figure_that_has_not_changed_is_not_read_again() -> None:
    assert not must_read(Weight(95 * MIB, 95 * MIB, 95 * MIB, read_at=0.0), 100 * MIB, 1.0)


def test_near_a_limit_the_looks_are_closer() -> None:
    assert next_look_s(1.0, hurry=False) == 1.0
    assert next_look_s(1.0, hurry=True) == 0.2
    assert next_look_s(0.1, hurry=True) == 0.05
