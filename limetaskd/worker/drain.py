"""How a worker ends: gracefully (drain) or at once. The one answer to SIGTERM, SIGINT, SIGQUIT and `drain`.

Celery's own warm shutdown keeps what it has prefetched until the last running task ends, and loses or repeats some of
it. Here: cancel the consumers, give everything that has not started back to the broker, wait until nothing runs and
every acknowledgement is out, then let Celery end. Signal handlers only take notes and wake the event loop.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from celery.worker import state as worker_state

logger = logging.getLogger(__name__)

EXIT_AT_ONCE = 1
# From the decision to stop at once to the end of the process, whatever blocks it.
HARD_EXIT_S = 3.0


class Drain:
    """`timeout_s`: how long running tasks get. `on_change` is called (in signal handlers) when the end is asked for."""

    def __init__(self, timeout_s: float, on_change: Callable[[], None]) -> None:
        self.timeout_s = timeout_s
        self.on_change = on_change
        self.wake: int | None = None
        self._pid = os.getpid()
        self.requested = False
        self.begun = False
        self.at_once = False
        # Requests that arrived after the request to drain: never started.
        self.held: list[Any] = []

    def install_signals(self, *, reopen: Callable[[], None] | None = None) -> None:
        """`reopen`: what SIGHUP does; None: it drains (the terminal is gone). Main thread only."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGQUIT, self._on_end)
        signal.signal(signal.SIGALRM, self._on_end)
        if reopen is None:
            signal.signal(signal.SIGHUP, self._on_stop)
        else:
            signal.signal(signal.SIGHUP, lambda _signum, _frame: reopen())

    @staticmethod
    def forget_signals() -> None:
        """In a pool child: these handlers are the worker's. (Celery and billiard set the others.)"""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)

    def _inherited(self, signum: int) -> bool:
        """Whether this is a child that has not set its own handlers yet: the signal ends it."""
        if os.getpid() == self._pid:
            return False
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
        return True

    def request(self) -> None:
        """Drain. From any thread: the main thread takes it like a SIGTERM, which also interrupts what blocks it."""
        if not self.requested:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _on_stop(self, signum: int, _frame: FrameType | None) -> None:
        if self._inherited(signum):
            return
        if self.requested:
            self._stop_at_once()
            return
        self.requested = True
        signal.setitimer(signal.ITIMER_REAL, max(self.timeout_s, 0.001))
        self.on_change()
        self._wake()

    def _on_end(self, signum: int, _frame: FrameType | None) -> None:
        """SIGQUIT, or the end of the time for running tasks."""
        if not self._inherited(signum):
            self._stop_at_once()

    def _stop_at_once(self) -> None:
        if self.at_once:
            hard_exit()
        self.requested = self.at_once = True
        signal.setitimer(signal.ITIMER_REAL, HARD_EXIT_S)
        self.on_change()
        self._wake()

    def _wake(self) -> None:
        if self.wake is not None:
            os.eventfd_write(self.wake, 1)

    def between_tries(self) -> None:
        """While there is no broker: end as soon as that is asked for. Raises WorkerShutdown.

        What has been prefetched is the broker's again; what still runs ends in Celery's own stop, which waits for it.
        """
        if self.at_once:
            hard_exit()
        if self.requested:
            self._begin()
            worker_state.should_stop = os.EX_OK

    def _begin(self) -> None:
        if not self.begun:
            self.begun = True
            self.on_change()  # again: the handler may have been in the middle of another report
            logger.info(
                "draining: nothing new is taken, %d tasks still run", len(worker_state.active_requests),
                extra={"action": "drain", "timeout_s": self.timeout_s},
            )  # fmt: skip

    def step(self, consumer: Any) -> None:
        """One look, in the event loop, as often as it turns. Raises connection errors."""
        if self.at_once:
            stop_at_once(consumer, self.held)
        if not self.requested:
            return
        if not self.begun:
            self._begin()
            if consumer.task_consumer is not None:
                consumer.task_consumer.cancel()
        self.held.extend(take_back(consumer))
        held, self.held = self.held, []
        give_back(consumer, held)
        acknowledging = consumer.hub is not None and consumer.hub._ready
        if not worker_state.reserved_requests and not acknowledging and worker_state.should_stop is None:
            worker_state.should_stop = os.EX_OK
            self._wake()  # the loop is about to wait for the next event, for seconds


def running_requests() -> tuple[Any, ...]:
    """Those that have begun and not ended."""
    while True:
        try:
            return tuple(worker_state.active_requests)
        except RuntimeError:
            continue  # a thread has begun or ended one meanwhile


def take_back(consumer: Any, of: Callable[[Any], bool] = lambda _request: True) -> list[Any]:
    """Every request (`of`: of these only) that no slot has started, taken out of wherever it waits."""
    requests: list[Any] = []
    semaphore = getattr(consumer.controller, "semaphore", None)
    if semaphore is not None:
        requests += _pick(semaphore._waiting, lambda entry: entry[1][0], of)
    pool = consumer.pool
    if hasattr(pool, "take_back"):  # threads, see pools.py
        requests += pool.take_back(of)
    outbound = getattr(getattr(pool, "_pool", None), "outbound_buffer", None)
    if outbound:  # prefork: not yet written to a child
        jobs = {id(job._callback.__self__): job for job in outbound}
        unwritten = _pick(outbound, lambda job: job._callback.__self__, of)
        requests += unwritten
        for request in unwritten:
            jobs[id(request)].discard()
            if semaphore is not None:
                semaphore.release()  # its place in the pool is free again
    for bucket in consumer.task_buckets.values():
        if bucket:
            requests += _pick(bucket.contents, lambda entry: entry[0], of)
    for request in tuple(worker_state.scheduled_requests):
        if of(request):
            if request._eta_timer_entry is not None:
                consumer.timer.cancel(request._eta_timer_entry)
                consumer.qos.decrement_eventually()  # it does not count beside the prefetched ones any more
            requests.append(request)
    return requests


def _pick(waiting: Any, request_of: Callable[[Any], Any], of: Callable[[Any], bool]) -> list[Any]:
    """Take out of a deque the entries of such requests; returns the requests, the order of the others stays."""
    entries = list(waiting)
    picked = [of(request_of(entry)) for entry in entries]
    waiting.clear()
    waiting.extend(entry for entry, out in zip(entries, picked, strict=True) if not out)
    return [request_of(entry) for entry, out in zip(entries, picked, strict=True) if out]


def give_back(consumer: Any, requests: list[Any]) -> None:
    """Return messages to the broker, the last first, so that they stand in their old order there."""
    for request in reversed(requests):
        worker_state.task_ready(request)
        if not request.acknowledged:
            request.acknowledged = True
            if request.kept is not None:
                request.kept.give_back()
            else:
                request.message.reject_log_error(logger, consumer.connection_errors, requeue=True)
    if requests:
        logger.info("%d tasks that had not started were given back to the broker", len(requests))


def stop_at_once(consumer: Any, held: list[Any]) -> None:
    """End now: what runs is killed and given back. Does not return.

    The alarm that was set with the request ends the process when a step here blocks.
    """
    running = running_requests()
    given_back = sum(1 for request in running if not request.acknowledged)
    logger.warning(
        "stopping at once: %d running tasks are given back to the broker, %d that may run at most once have failed",
        given_back, len(running) - given_back,
    )  # fmt: skip
    pool: Any = getattr(consumer.pool, "_pool", None)
    children = list(getattr(pool, "_pool", None) or [])
    for child in children:
        try:
            os.kill(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for child in children:  # what was ready is acknowledged, not run again
        pool.process_flush_queues(child)
    if consumer.hub is not None:
        for callback in consumer.hub._pop_ready():
            if callback and _is_settlement(callback):
                callback()
    if consumer.connection is not None:
        try:
            if consumer.task_consumer is not None:
                consumer.task_consumer.cancel()
            held += take_back(consumer)
            give_back(consumer, held + [r for r in worker_state.reserved_requests if not r.acknowledged])
            consumer.connection.close()
        except consumer.connection_errors as error:
            logger.warning("the broker takes back what is not acknowledged: %s", error)
    hard_exit()


def _is_settlement(callback: Any) -> bool:
    """Whether a callback of the event loop acknowledges or rejects a message."""
    return getattr(getattr(callback, "fun", None), "__name__", "") in ("ack_log_error", "reject_log_error")


def hard_exit() -> None:
    """End this process now. Its pool children die with it (PR_SET_PDEATHSIG), its messages are redelivered."""
    os._exit(EXIT_AT_ONCE)
