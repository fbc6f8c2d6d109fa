"""When a limit of time is exceeded, and when memory must be read exactly (pure: time and figures are parameters)."""

from __future__ import annotations

from dataclasses import dataclass

# From this share of a limit on a process counts as near it.
NEAR_SHARE = 0.8
# Copies of inherited pages do not show in the cheap figure: whoever could be above its limit is read exactly so often.
DRIFT_S = 10.0
# Near a hard limit and growing: this many times faster.
HURRY = 5
FASTEST_S = 0.05


def overtime_s(started: float, limit_s: float | None, grace_s: float, now: float) -> float | None:
    """By how much (s) a task is over its hard limit and the grace; None: it is not. Times: monotonic seconds."""
    if limit_s is None or not started:
        return None
    over = now - started - limit_s - grace_s
    return over if over > 0 else None


@dataclass(frozen=True)
class Weight:
    """One process. `cheap`: resident bytes without file pages, an upper bound of what is private.

    `exact`: private bytes (USS) when that was last read, with the cheap figure of that moment; None: never.
    """

    cheap: int
    exact: int | None = None
    cheap_then: int = 0
    read_at: float = 0.0  # monotonic s

    @property
    def estimate(self) -> int:
        """Private bytes now, as far as the cheap figure tells."""
        if self.exact is None:
            return self.cheap
        return max(0, min(self.cheap, self.exact + self.cheap - self.cheap_then))


def must_read(weight: Weight, limit: int | None, now: float) -> bool:
    """Whether the exact figure is needed to decide about `limit` (bytes)."""
    if limit is None or weight.cheap < limit * NEAR_SHARE:
        return False
    if weight.exact is None or now - weight.read_at >= DRIFT_S:
        return True
    return weight.estimate >= limit * NEAR_SHARE and weight.cheap != weight.cheap_then


def next_look_s(interval_s: float, hurry: bool) -> float:
    """Until the next cheap reading."""
    return max(FASTEST_S, interval_s / HURRY) if hurry else interval_s
