"""The restart policy over all histories."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limetaskd.policy.restart import FATAL_RETRY_S, JITTER_SHARE, Decision, RestartPolicy

POLICIES = st.builds(
    RestartPolicy,
    initial_s=st.floats(0.01, 10),
    max_s=st.floats(10, 1000),
    intensity=st.integers(0, 200),
    period_s=st.floats(1, 1000),
)
JITTER = st.floats(0, 1, exclude_max=True)


def test_the_first_death_is_replaced_at_once_the_next_ones_later_and_later() -> None:
    policy = RestartPolicy(initial_s=1, max_s=6, intensity=5, period_s=60)
    deaths: list[float] = []
    delays = []
    for now in range(100, 106):
        deaths.append(now)
        decision = policy.decide(deaths, now, 0.0)
        delays.append((decision.delay_s, decision.fatal))
    assert delays == [(0, False), (1, False), (2, False), (4, False), (6, False), (FATAL_RETRY_S, True)]


def test_deaths_before_the_period_are_forgiven() -> None:
    policy = RestartPolicy(initial_s=1, max_s=60, intensity=5, period_s=60)
    assert policy.decide([0, 1, 2, 3, 4, 64.5], 64.5, 0.5) == Decision(0.0, False, 1)
    assert policy.recent([0, 4.5, 5, 64.5], 64.5) == (5, 64.5)


def test_intensity_0_endures_nothing() -> None:
    assert RestartPolicy(intensity=0).decide([5], 5, 0.0).fatal


def test_a_try_out_of_fatal_that_dies_is_fatal_again() -> None:
    assert RestartPolicy().decide([500], 500, 0.0, trial=True) == Decision(FATAL_RETRY_S, True, 1)


@given(POLICIES, st.lists(st.floats(0, 2000), max_size=250), JITTER, st.booleans())
def test_promises(policy: RestartPolicy, deaths: list[float], jitter: float, trial: bool) -> None:
    now = max(deaths, default=0.0)
    decision = policy.decide(deaths, now, jitter, trial=trial)
    count = max(1, sum(now - policy.period_s < death <= now for death in deaths))
    assert decision.deaths == count
    assert decision.fatal == (trial or count > policy.intensity)
    if decision.fatal:
        assert decision.delay_s == FATAL_RETRY_S
    elif count == 1:
        assert decision.delay_s == 0
    else:
        base = min(policy.max_s, policy.initial_s * 2 ** (count - 2))
        assert base * (1 - JITTER_SHARE) <= decision.delay_s <= base
        # What is forgotten does not change the decision.
        assert policy.decide(policy.recent(deaths, now), now, jitter) == decision


@given(POLICIES, st.integers(2, 100), JITTER, JITTER)
def test_the_delay_never_shrinks_while_deaths_go_on(policy: RestartPolicy, count: int, one: float, two: float) -> None:
    """Below `max`, doubling outweighs the jitter."""
    now = 0.5
    first = policy.decide([now] * count, now, one)
    second = policy.decide([now] * (count + 1), now, two)
    if not first.fatal and not second.fatal and policy.initial_s * 2 ** (count - 1) <= policy.max_s:
        assert second.delay_s > first.delay_s


@pytest.mark.parametrize("count", [2, 10, 1000, 100_000])
def test_many_deaths_do_not_overflow(count: int) -> None:
    assert RestartPolicy(intensity=10**6).decide([1.0] * count, 1.0, 0.0).delay_s <= 60
