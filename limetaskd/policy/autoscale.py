"""How many slots a pool should have (pure: the caller measures, and passes the time).

Two needs, and the larger one counts:

    to keep up         arrivals per second * seconds a task takes / UTILISATION
    to catch up        messages that wait * seconds a task takes / target latency

The first is Little's law; the second makes the wait of the message that arrives now the target latency. Up at once, at
most to twice the slots (or FIRST_STEP more) in one step. Down only to what was needed at most during the last HOLD_S,
and slowly: load that comes in waves (sawtooth) then finds its slots still there.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

UTILISATION = 0.85
HOLD_S = 30.0
FIRST_STEP = 4
# The average of rates and durations forgets with this time constant.
MEMORY_S = 20.0
# Host: above this share of CPU more slots help nobody; this share of memory is left alone.
BUSY_CPU = 0.9
RESERVED_MEMORY = 0.1
UNKNOWN_SLOT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Bounds:
    """What the operator set: slots, and seconds that a message should wait at most."""

    minimum: int
    maximum: int
    target_latency_s: float


@dataclass(frozen=True)
class Sample:
    """One measurement. `at`: monotonic seconds. Figures that are not known are None.

    `depth`: messages that wait. `oldest_wait_s`: the wait of the one at the head. `running`: busy slots, `running_s`
    their ages summed up. `completed` and `busy_s` count up: tasks that ended, and the seconds that they took.
    """

    at: float
    slots: int
    depth: int | None
    running: int
    running_s: float
    completed: int
    busy_s: float
    oldest_wait_s: float | None = None


@dataclass(frozen=True)
class Decision:
    """`slots` is what the pool should have now; `reason` in words for `limetaskctl why`."""

    at: float
    before: int
    slots: int
    reason: str
    service_s: float | None
    arrivals_per_s: float | None
    needed: int | None


@dataclass(frozen=True)
class Host:
    """What is left on the host. `cpu`: share in use, 0 to 1. Memory in bytes; `slot_bytes`: of one slot, measured."""

    cpu: float
    memory_available: int
    memory_total: int
    slot_bytes: int | None = None

    def room(self) -> tuple[int, str]:
        """How many slots more this host carries, and what limits it."""
        if self.cpu >= BUSY_CPU:
            return 0, f"the CPUs of this host are {self.cpu:.0%} busy"
        free = self.memory_available - RESERVED_MEMORY * self.memory_total
        room = max(0, int(free // (self.slot_bytes or UNKNOWN_SLOT_BYTES)))
        return room, f"the memory of this host carries {room} slots more"


class Autoscaler:
    """Remembers the last samples of one pool."""

    def __init__(self) -> None:
        self._last: Sample | None = None
        self._service_s: float | None = None
        self._arrivals: float | None = None
        self._needs: deque[tuple[float, int]] = deque()

    def decide(self, sample: Sample, bounds: Bounds, host: Host) -> Decision:
        """What follows from one more sample; a pool outside its bounds is brought back at once."""
        self._measure(sample)
        inside = min(max(sample.slots, bounds.minimum), bounds.maximum)
        if inside != sample.slots:
            return self._decision(sample, inside, f"between {bounds.minimum} and {bounds.maximum}", None)
        if sample.depth is None:
            return self._decision(sample, sample.slots, "the depth of its queues is not known", None)
        needed, why = self._needed(sample, bounds)
        self._needs.append((sample.at, needed))
        while self._needs[0][0] < sample.at - HOLD_S:
            self._needs.popleft()
        wanted = min(max(needed, bounds.minimum), bounds.maximum)
        if wanted > sample.slots:
            return self._up(sample, wanted, needed, why, host)
        return self._down(sample, bounds, needed, why)

    def _measure(self, sample: Sample) -> None:
        last, self._last = self._last, sample
        if last is None or sample.at <= last.at:
            return
        passed = sample.at - last.at
        weight = 1 - math.exp(-passed / MEMORY_S)
        ended, busy_s = sample.completed - last.completed, sample.busy_s - last.busy_s
        if ended < 0 or busy_s < 0:  # a process was replaced: its counters begin anew
            return
        if ended:
            self._service_s = _average(self._service_s, busy_s / ended, weight)
        if sample.running and (self._service_s is None or sample.running_s / sample.running > self._service_s):
            # Nothing ends, but what runs is older than that already: a queue of slow tasks.
            self._service_s = sample.running_s / sample.running
        if sample.depth is not None and last.depth is not None:
            came = max(0, ended + sample.depth - last.depth + sample.running - last.running)
            self._arrivals = _average(self._arrivals, came / passed, weight)

    def _needed(self, sample: Sample, bounds: Bounds) -> tuple[int, str]:
        depth = sample.depth or 0
        service_s = self._service_s
        if service_s is None:
            if depth and sample.running >= sample.slots:
                return sample.slots * 2, f"{depth} messages wait, every slot is busy, and nothing has ended yet"
            return sample.slots, "nothing has run yet"
        keep_up = math.ceil((self._arrivals or 0.0) * service_s / UTILISATION - 1e-9)
        catch_up = math.ceil(depth * service_s / bounds.target_latency_s)
        late = sample.oldest_wait_s is not None and sample.oldest_wait_s > bounds.target_latency_s and depth > 0
        if late and max(keep_up, catch_up) <= sample.slots and sample.running >= sample.slots:
            assert sample.oldest_wait_s is not None
            return sample.slots + 1, f"a message has waited {sample.oldest_wait_s:.1f} s"
        if catch_up > keep_up:
            return catch_up, f"{depth} messages wait, a task takes {service_s:.3g} s"
        return keep_up, f"{self._arrivals or 0.0:.3g} tasks a second come, a task takes {service_s:.3g} s"

    def _up(self, sample: Sample, wanted: int, needed: int, why: str, host: Host) -> Decision:
        room, limit = host.room()
        step = min(wanted, max(sample.slots * 2, sample.slots + FIRST_STEP))
        slots = min(step, sample.slots + room)
        reason = f"{why}: {needed} slots are needed"
        if slots < step:
            reason += f", but {limit}"
        return self._decision(sample, slots, reason, needed)

    def _down(self, sample: Sample, bounds: Bounds, needed: int, why: str) -> Decision:
        held_for = sample.at - self._needs[0][0]
        most = max(need for _, need in self._needs)
        # A window that is not full yet proves nothing.
        if most >= sample.slots or held_for < HOLD_S * 0.9:
            return self._decision(sample, sample.slots, why, needed)
        slots = max(bounds.minimum, most, sample.slots // 2)
        if slots == sample.slots:
            return self._decision(sample, sample.slots, why, needed)
        return self._decision(sample, slots, f"{why}: at most {most} slots were needed for {HOLD_S:.0f} s", needed)

    def _decision(self, sample: Sample, slots: int, reason: str, needed: int | None) -> Decision:
        return Decision(sample.at, sample.slots, slots, reason, self._service_s, self._arrivals, needed)


def _average(old: float | None, new: float, weight: float) -> float:
    return new if old is None else old + weight * (new - old)
