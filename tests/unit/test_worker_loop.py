"""What we change in Celery's event loop."""

from __future__ import annotations

from typing import Any

from celery.worker import loops

import limetaskd.worker.consumer


class Connection:
    def __init__(self) -> None:
        self.waited: list[float] = []

    def drain_events(self, timeout: float) -> None:
        self.waited.append(timeout)
        raise TimeoutError


def test_the_first_look_for_messages_does_not_wait() -> None:
    """It would keep a task that was read before from the pool for as long."""
    assert limetaskd.worker.consumer.loops is loops
    looks: Any = loops.asynloop.__code__.co_names
    assert "_quick_drain" in looks  # else Celery has changed: look there anew
    connection = Connection()
    loops._quick_drain(connection)
    assert connection.waited == [0]
