"""When a process that died is started again (pure: the caller passes the time and the randomness).

deaths in `period_s`    decision
1                       at once
2, 3, 4, ...            after initial, 2 * initial, 4 * initial, ... at most max, each less up to a fifth (jitter)
more than `intensity`   FATAL: a single try every `FATAL_RETRY_S`
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FATAL_RETRY_S = 300.0
# Many workers that die together must not come back together; a delay never grows by it, so that `max` holds.
JITTER_SHARE = 0.2
_MOST_DOUBLINGS = 60


@dataclass(frozen=True)
class Decision:
    """Start again after `delay_s` seconds. `fatal`: the process counts as FATAL until a try succeeds.

    `deaths` is how many deaths in the period led to this.
    """

    delay_s: float
    fatal: bool
    deaths: int


@dataclass(frozen=True)
class RestartPolicy:
    """`initial_s`, `max_s`, `period_s` in seconds; `intensity`: this many deaths in a period are endured."""

    initial_s: float = 1.0
    max_s: float = 60.0
    intensity: int = 5
    period_s: float = 60.0

    def recent(self, deaths: Iterable[float], now: float) -> tuple[float, ...]:
        """The deaths that still count at `now`: what a caller needs to remember."""
        return tuple(death for death in deaths if now - self.period_s < death <= now)

    def decide(self, deaths: Iterable[float], now: float, jitter: float, *, trial: bool = False) -> Decision:
        """What follows a death.

        `deaths`: monotonic seconds of this process's deaths, the one to decide about included; `now`: monotonic
        seconds; `jitter`: random in [0, 1). `trial`: what died had been tried out of FATAL and never was at work, so
        it is FATAL again, whatever the count.
        """
        count = max(1, len(self.recent(deaths, now)))
        if trial or count > self.intensity:
            return Decision(FATAL_RETRY_S, True, count)
        if count == 1:
            return Decision(0.0, False, count)
        delay = min(self.max_s, self.initial_s * 2.0 ** min(count - 2, _MOST_DOUBLINGS))
        return Decision(delay * (1 - JITTER_SHARE * jitter), False, count)
