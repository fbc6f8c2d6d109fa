"""Execution records: exactly one when a task ends for good, and the marks on the scoreboard around it.

What ends in a slot by itself is recorded there, right after its result was stored and before its message is
acknowledged. What is ended from outside (a limit, a death, an operator) is recorded by the worker's main process, see
request.py; the scoreboard tells it whether the slot had already written its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import Any

from celery import states
from celery.exceptions import Ignore, Reject

from limetaskd.core.board import SlotWriter
from limetaskd.core.settings import Settings
from limetaskd.tasks.message import ROUTED_QUEUE_HEADER, SENT_AT_HEADER, USER_HEADER
from limetaskd.worker.logs import EXECUTION_LOGGER
from limetaskd.worker.once import Permits
from limetaskd.worker.scoreboard import Scoreboard

logger = logging.getLogger(EXECUTION_LOGGER)

SUCCESS = "SUCCESS"
FAILURE = "FAILURE"
# What Task.replace raises: the task goes on under the same id, elsewhere.
_REPLACED = "Replaced by new task"


def latency_ms(headers: Mapping[str, Any], started: float) -> float | None:
    """From the later of sending and ETA of this try to `started` (unix seconds); None when the sender did not say."""
    moments = []
    sent_at = headers.get(SENT_AT_HEADER)
    if isinstance(sent_at, int | float) and not isinstance(sent_at, bool):
        moments.append(float(sent_at))
    eta = headers.get("eta")
    if isinstance(eta, str):
        try:
            moments.append(datetime.fromisoformat(eta).timestamp())
        except ValueError:
            eta = None  # Celery has refused or ignored it already
    return max(0.0, round((started - max(moments)) * 1000, 3)) if moments else None


class Recorder:
    """Writes the records of one worker."""

    def __init__(self, settings: Settings) -> None:
        self.application = settings.application
        self._by_key = {(queue.exchange, queue.routing_key): queue.actual for queue in settings.queues}
        self._names = {queue.actual for queue in settings.queues}

    def queue_of(self, headers: Mapping[str, Any]) -> str | None:
        """Actual name of the queue that a message was consumed from, by its delivery; None when it does not say."""
        delivery = headers.get("delivery_info") or {}
        exchange, key = delivery.get("exchange"), delivery.get("routing_key")
        queue = self._by_key.get((str(exchange), str(key)))
        if queue is not None:
            return queue
        if key in self._names and not exchange:
            return str(key)
        routed = headers.get(ROUTED_QUEUE_HEADER)
        if isinstance(routed, str):
            return routed
        return str(key) if key else None

    def write(
        self,
        task_id: str,
        name: str,
        headers: Mapping[str, Any],
        outcome: str | None,
        *,
        started: float | None,
        duration_ms: float | None,
        reason: str | None = None,
    ) -> None:
        """`outcome` None: this try is over, the task is not. `started`: unix seconds; None: it never started."""
        user = headers.get(USER_HEADER)
        fields: dict[str, Any] = {
            "task_id": task_id,
            "task_name": name,
            "task_queue": self.queue_of(headers),
            "task_user_id": None if user is None else str(user),
            "task_latency_ms": None if started is None else latency_ms(headers, started),
            "task_duration_ms": None if duration_ms is None else round(duration_ms, 3),
        }
        if outcome is not None:
            fields["task_outcome"] = outcome
        fields["application"] = self.application
        if reason is not None:
            fields["task_failure_reason"] = reason
        words = {SUCCESS: "succeeded", FAILURE: "failed", None: "will be tried again"}[outcome]
        level = logging.WARNING if outcome == FAILURE else logging.INFO
        logger.log(level, "task %s[%s] %s", name, task_id, words, extra=fields)


def outcome_of(info: Any) -> tuple[str | None, str | None]:
    """What Celery's tracer says of one try -> (outcome, reason). `info` None: it returned a value."""
    if info is None:
        return SUCCESS, None
    if info.state == states.RETRY:
        return None, None
    if info.state == states.IGNORED:
        # The task says that there is nothing to store; when it was replaced, its successor has the record.
        return (None, None) if str(info.retval) == _REPLACED else (SUCCESS, None)
    if info.state == states.REJECTED:
        return (None, None) if info.retval.requeue else (FAILURE, "rejected")
    return FAILURE, None


@contextmanager
def waiting_for_store(backend: Any, slot: SlotWriter | None) -> Iterator[None]:
    """A task whose work is done waits for a result store that is away, instead of failing; its slot says so.

    Nothing else of the worker, and no sender, may wait that long.
    """
    if backend.thread_safe:  # it is everybody's
        yield
        return
    before = backend.always_retry
    backend.always_retry = True
    if slot is not None:
        also = backend.on_backend_retryable_error

        def say(error: Exception) -> None:
            slot.wait()
            also(error)

        backend.on_backend_retryable_error = say
    try:
        yield
    finally:
        backend.always_retry = before
        vars(backend).pop("on_backend_retryable_error", None)


class Tracer:
    """Wraps Celery's tracer of each task: scoreboard, record. Runs where the task runs."""

    def __init__(
        self,
        recorder: Recorder,
        board: Scoreboard,
        limits: tuple[float | None, float | None],
        permits: Permits,
        before: Callable[[], None] = lambda: None,
        *,
        patient: bool = False,
    ) -> None:
        """`limits`: soft and hard limit of the pool in seconds, for tasks that have none of their own.

        `before`: called before each task, where it runs. `patient`: tasks wait for a result store that is away.
        """
        self._patient = patient
        self._recorder = recorder
        self._before = before
        self._board = board
        self._limits = limits
        self._permits = permits

    def wrap_all(self, app: Any) -> None:
        """Celery rebuilds the tracers in each child, and at each connection."""
        for task in app.tasks.values():
            if not getattr(task.__trace__, "limetaskd", False):
                task.__trace__ = self.wrap(task, task.__trace__)

    def wrap(self, task: Any, trace: Callable[..., Any]) -> Callable[..., Any]:
        recorder, board, permits, before = self._recorder, self._board, self._permits, self._before
        patient = self._patient
        name = task.name
        soft_default = task.soft_time_limit or self._limits[0]
        hard_default = task.time_limit or self._limits[1]
        clock, now = time.monotonic, time.time
        early_ack = not task.acks_late

        def traced(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
            before()
            headers: Mapping[str, Any] = request or {}
            slot = board.writer()
            hard, soft = headers.get("timelimit") or (None, None)
            user = headers.get(USER_HEADER)
            started, begin = now(), clock()
            waited = latency_ms(headers, started)
            if slot is not None:
                slot.begin(
                    uuid,
                    name,
                    recorder.queue_of(headers) or "",
                    None if user is None else str(user),
                    soft or soft_default,
                    hard or hard_default,
                    early_ack=early_ack,
                    latency_ms=waited,
                )
            recorded = False
            failed = False
            try:
                if early_ack:
                    permits.ask(slot, headers)
                try:
                    with waiting_for_store(task.backend, slot) if patient else nullcontext():
                        result = trace(uuid, args, kwargs, request)
                except (Reject, Ignore) as error:
                    # Raised by a hook of the task after its end.
                    if isinstance(error, Reject) and not error.requeue:
                        recorder.write(
                            uuid, name, headers, FAILURE,
                            started=started, duration_ms=(clock() - begin) * 1000, reason="rejected",
                        )  # fmt: skip
                        recorded = failed = True
                    raise
                _, info, runtime, _ = result
                if info is None and runtime is None:
                    return result  # its result is stored already: it came a second time, and did not run
                outcome, reason = outcome_of(info)
                recorder.write(
                    uuid, name, headers, outcome,
                    started=started, duration_ms=(clock() - begin) * 1000, reason=reason,
                )  # fmt: skip
                recorded, failed = outcome is not None, outcome == FAILURE
                return result
            finally:
                # Without a record the main process finds the slot idle and the reason in the exception.
                if slot is not None:
                    if recorded:
                        duration = (clock() - begin) * 1000
                        slot.end(failed=failed, latency_ms=waited, duration_ms=duration)
                    else:
                        slot.abandon()

        traced.limetaskd = True  # type: ignore[attr-defined]
        return traced
