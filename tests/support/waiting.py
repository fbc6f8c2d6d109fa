"""Waiting for a condition: the only place in the tests that sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.2


def pause(seconds: float) -> None:
    """Let time pass where time itself is what is tested (that something does NOT happen)."""
    time.sleep(seconds)


def wait_until(
    condition: Callable[[], T],
    timeout: float = 30,
    message: str | Callable[[], str] = "",
    ignore: type[BaseException] | tuple[type[BaseException], ...] = (),
) -> T:
    """Call `condition` until what it returns is true, and return that.

    `timeout` in seconds. `message` (or what it returns at the end) says what was waited for. Exceptions of the kinds
    in `ignore` count as "not yet". Raises AssertionError at the deadline, with the last value or exception.
    """
    begin = time.monotonic()
    pause_s = _FIRST_PAUSE_S
    while True:
        error: BaseException | None = None
        value: object = None
        try:
            outcome = condition()
            if outcome:
                return outcome
            value = outcome
        except ignore as caught:
            error = caught
        waited = time.monotonic() - begin
        if waited >= timeout:
            what = message() if callable(message) else message
            last = f"raised {type(error).__name__}: {error}" if error else f"returned {value!r}"
            name = getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"waited {waited:.1f} s for {what or name}: the last try {last}")
        time.sleep(min(pause_s, max(0.0, timeout - waited)))
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
