"""What we change in Celery's event loop."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

from celery.worker import loops

import limetaskd.worker.consumer
from limetaskd.worker.consumer import Consumer


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


def consumer(calls: list[Any]) -> Consumer:
    """One whose event loop is `calls`, which somebody else has to call."""
    made: Any = Consumer.__new__(Consumer)
    made.hub = SimpleNamespace(call_soon=calls.append)
    return cast(Consumer, made)


def test_a_thread_waits_until_the_loop_has_acknowledged_what_it_is_to_begin() -> None:
    calls: list[Any] = []
    sent: list[str] = []
    done: Future[None] = Future()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(consumer(calls).call_soon_ack, sent.append, "ack", before_start=done).result(10)
    assert (sent, done.done()) == ([], False)
    calls[0]()
    assert (sent, done.done()) == (["ack"], True)


def test_an_acknowledgement_that_nobody_waits_for_any_more_is_not_sent() -> None:
    """The task does not begin, and its message is in its queue again."""
    calls: list[Any] = []
    sent: list[str] = []
    done: Future[None] = Future()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(consumer(calls).call_soon_ack, sent.append, "ack", before_start=done).result(10)
    assert done.cancel()
    calls[0]()
    assert sent == []


def test_the_thread_of_the_loop_acknowledges_at_once() -> None:
    calls: list[Any] = []
    sent: list[str] = []
    done: Future[None] = Future()
    consumer(calls).call_soon_ack(sent.append, "ack", before_start=done)
    assert (sent, calls, done.done()) == (["ack"], [], True)


def test_a_broken_pipe_is_the_answer_that_nothing_was_acknowledged() -> None:
    def ack() -> None:
        raise BrokenPipeError

    done: Future[None] = Future()
    consumer([]).call_soon_ack(ack, before_start=done)
    assert done.done()
