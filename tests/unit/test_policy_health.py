"""What is ill and, more important, what is not."""

from __future__ import annotations

import pytest

from limetaskd.policy.health import Signs, ailment


@pytest.mark.parametrize(
    ("signs", "word"),
    [
        (Signs(consumes=True, silent_s=31.0), "hangs"),
        (Signs(consumes=False, silent_s=31.0), "hangs"),
        (Signs(consumes=True, silent_s=31.0, stopped=True, excused=True), "stopped"),
        (Signs(consumes=True, silent_s=1.0, loop_age_s=46.0), "event loop"),
        (Signs(consumes=True, silent_s=1.0, loop_age_s=0.1, deaf_s=61.0), "deaf"),
    ],
)
def test_ill(signs: Signs, word: str) -> None:
    assert word in str(ailment(signs))


@pytest.mark.parametrize(
    "signs",
    [
        Signs(consumes=True, silent_s=6.0, loop_age_s=5.0),
        Signs(consumes=False, silent_s=1.0, loop_age_s=600.0),  # waits for its broker, or drains
        Signs(consumes=False, silent_s=1.0, deaf_s=600.0),
        Signs(consumes=True, silent_s=1.0, loop_age_s=600.0, runs_in_loop=True),  # solo
        Signs(consumes=True, silent_s=200.0, excused=True),  # a task in C code that holds the GIL
        Signs(consumes=True, silent_s=1.0, loop_age_s=600.0, waits=True),  # the result store is slow
    ],
)
def test_healthy(signs: Signs) -> None:
    assert ailment(signs) is None
