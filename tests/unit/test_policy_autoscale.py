"""The autoscaler in simulated pools, over curves of load, compared with pools of a fixed size."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from limetaskd.policy.autoscale import HOLD_S, Autoscaler, Bounds, Host, Sample

INTERVAL_S = 2.0
ROOMY = Host(cpu=0.2, memory_available=8 << 30, memory_total=16 << 30)
Curve = Callable[[float], float]  # seconds -> tasks a second


@dataclass
class Outcome:
    waits: list[float] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)  # at each decision
    decisions: int = 0  # that changed something

    def late(self, percentile: float) -> float:
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percentile))]

    @property
    def share_late(self) -> float:
        return sum(wait > BOUNDS.target_latency_s for wait in self.waits) / len(self.waits)

    @property
    def mean_slots(self) -> float:
        return sum(self.slots) / len(self.slots)


def simulate(curve: Curve, service_s: float, until_s: float, bounds: Bounds | None, slots: int) -> Outcome:
    """A pool of `slots` (with `bounds`: autoscaled from there); every task takes `service_s`, the first come run first.

    Slots that go finish their task first. `oldest_wait_s` is not told, as on RabbitMQ.
    """
    outcome, scaler = Outcome(), Autoscaler()
    waiting: list[float] = []
    ends: list[tuple[float, float]] = []  # (end, begin) of what runs
    head = completed = 0
    owed, now, step = 0.0, 0.0, 0.05
    decide_at = 0.0
    while now < until_s:
        owed += curve(now) * step
        while owed >= 1:
            waiting.append(now)
            owed -= 1
        while ends and ends[0][0] <= now:
            heapq.heappop(ends)
            completed += 1
        while head < len(waiting) and len(ends) < slots:
            outcome.waits.append(now - waiting[head])
            heapq.heappush(ends, (now + service_s, now))
            head += 1
        if now >= decide_at:
            decide_at += INTERVAL_S
            outcome.slots.append(slots)
            if bounds is not None:
                sample = Sample(
                    at=now, slots=slots, depth=len(waiting) - head, running=len(ends),
                    running_s=sum(now - begin for _, begin in ends), completed=completed, busy_s=completed * service_s,
                )  # fmt: skip
                decision = scaler.decide(sample, bounds, ROOMY)
                outcome.decisions += decision.slots != slots
                assert bounds.minimum <= decision.slots <= bounds.maximum
                slots = decision.slots
        now += step
    outcome.waits += [until_s - sent for sent in waiting[head:]]
    return outcome


def burst(at: float) -> float:
    return 60.0 if 60 <= at < 90 else 1.0


def ramp(at: float) -> float:
    return 30.0 * min(1.0, at / 200)


def sawtooth(at: float) -> float:
    return 25.0 * (at % 20) / 20


def slow(at: float) -> float:
    return 0.5 if at < 150 else 0.02


CURVES = [
    pytest.param(burst, 0.5, id="burst"),
    pytest.param(ramp, 0.5, id="ramp"),
    pytest.param(sawtooth, 0.5, id="sawtooth"),
    pytest.param(slow, 20.0, id="slow-tasks"),
]
BOUNDS = Bounds(1, 40, 2.0)


@pytest.mark.parametrize(("curve", "service_s"), CURVES)
def test_better_than_a_fixed_pool_of_the_same_cost(curve: Curve, service_s: float) -> None:
    scaled = simulate(curve, service_s, 300, BOUNDS, 2)
    fixed = simulate(curve, service_s, 300, None, math.ceil(scaled.mean_slots))
    assert scaled.share_late <= fixed.share_late + 0.02, (scaled.share_late, fixed.share_late, scaled.mean_slots)
    assert scaled.mean_slots < BOUNDS.maximum * 0.75
    # No more changes than the curve has.
    assert scaled.decisions <= 30


@pytest.mark.parametrize(("curve", "service_s"), CURVES[1:3])
def test_nearly_all_wait_no_longer_than_the_target(curve: Curve, service_s: float) -> None:
    scaled = simulate(curve, service_s, 300, BOUNDS, 2)
    assert scaled.late(0.75) <= BOUNDS.target_latency_s


def test_a_burst_is_followed_up_at_once_and_down_after_a_while() -> None:
    scaled = simulate(burst, 0.5, 300, BOUNDS, 2)
    calm, during, after = scaled.slots[25], max(scaled.slots[30:50]), scaled.slots[-1]
    assert calm <= 2
    assert during >= 20
    assert after <= 2
    fell = next(index for index in range(46, len(scaled.slots)) if scaled.slots[index] < during)
    assert fell * INTERVAL_S >= 90 + HOLD_S * 0.5


def test_a_sawtooth_does_not_make_the_pool_flap() -> None:
    scaled = simulate(sawtooth, 0.5, 300, BOUNDS, 2)
    settled = scaled.slots[40:]
    assert max(settled) - min(settled) <= max(settled) // 2
    assert sum(one != two for one, two in itertools.pairwise(settled)) <= 12


def test_an_idle_pool_goes_to_its_minimum() -> None:
    assert simulate(lambda at: 10.0 if at < 30 else 0.0, 0.5, 300, Bounds(3, 20, 2.0), 5).slots[-1] == 3


def sample(at: float, **changes: object) -> Sample:
    base = {"slots": 4, "depth": 0, "running": 0, "running_s": 0.0, "completed": 0, "busy_s": 0.0}
    return Sample(at=at, **{**base, **changes})  # type: ignore[arg-type]


def needy(host: Host) -> tuple[int, str]:
    scaler = Autoscaler()
    scaler.decide(sample(0.0), BOUNDS, host)
    decision = scaler.decide(sample(2.0, depth=100, running=4, running_s=4.0, completed=10, busy_s=10.0), BOUNDS, host)
    return decision.slots, decision.reason


def test_the_host_sets_a_limit() -> None:
    slots, reason = needy(ROOMY)
    assert (slots, reason.endswith("slots are needed")) == (8, True)
    slots, reason = needy(Host(0.97, 8 << 30, 16 << 30))
    assert (slots, "CPUs" in reason) == (4, True)
    slots, reason = needy(Host(0.2, 2 << 30, 16 << 30, slot_bytes=200 << 20))
    assert (slots, "memory" in reason) == (6, True)
    assert needy(Host(0.2, 1 << 30, 16 << 30))[0] == 4


def test_what_is_not_known_changes_nothing() -> None:
    scaler = Autoscaler()
    assert scaler.decide(sample(0.0, depth=None), BOUNDS, ROOMY).slots == 4
    assert scaler.decide(sample(2.0), BOUNDS, ROOMY).slots == 4
    # Counters that begin anew (a worker was replaced) are no measurement.
    scaler.decide(sample(4.0, completed=50, busy_s=25.0), BOUNDS, ROOMY)
    assert scaler.decide(sample(6.0, completed=1, busy_s=0.5), BOUNDS, ROOMY).service_s == pytest.approx(0.5)


def test_outside_its_bounds_it_is_brought_back_at_once() -> None:
    assert Autoscaler().decide(sample(0.0, slots=50), BOUNDS, ROOMY).slots == 40
    assert Autoscaler().decide(sample(0.0, slots=1), Bounds(3, 9, 2.0), ROOMY).slots == 3


def test_a_message_that_waits_too_long_asks_for_one_more() -> None:
    scaler = Autoscaler()
    scaler.decide(sample(0.0, completed=10, busy_s=1.0), BOUNDS, ROOMY)
    late = sample(2.0, depth=1, running=4, running_s=0.1, completed=20, busy_s=2.0, oldest_wait_s=9.0)
    decision = scaler.decide(late, BOUNDS, ROOMY)
    assert (decision.slots, decision.reason) == (5, "a message has waited 9.0 s: 5 slots are needed")
