"""The main process's view of one task: what ends it from outside gets its execution record here.

A mixin over Celery's Request (or the one that a task brings). A task that goes back to the broker has not ended:
no record, but a `task_redelivered` event.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from concurrent.futures import Future, wait
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery import states
from celery.concurrency.prefork import TaskPool as Prefork
from celery.exceptions import Reject, Terminated, TimeLimitExceeded, WorkerLostError
from celery.worker import state as worker_state
from celery.worker.request import logger as celery_logger
from kombu.utils.imports import symbol_by_name

from limetaskd.core.board import (
    BY_DAEMON,
    BY_DAEMON_DONE,
    BY_WORKER,
    BY_WORKER_DONE,
    TIME_LIMIT,
    WORKER_LOST,
    Sentence,
    Slot,
)
from limetaskd.worker import logs
from limetaskd.worker.endings import Endings
from limetaskd.worker.once import NotBegunError
from limetaskd.worker.records import FAILURE, SUCCESS, Recorder
from limetaskd.worker.runtime import Runtime, one_line

if TYPE_CHECKING:
    from limetaskd.worker.keeping import KeptRequest

logger = logging.getLogger(__name__)

_DEATH_S = 2.0
_CONNECTED_S = 0.5  # how often a thread that waits for the event loop looks whether there is still a connection


def _unwrapped(exc_info: Any) -> BaseException:
    error = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error  # type: ignore[no-any-return]


def _kill_and_wait(pid: int) -> str | None:
    """SIGKILL a pool child and wait until it is dead: what its slot says is final then.

    How it had died by itself, unnoticed so far; None: it lived.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        dead = os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if dead is not None:
            kind = "exitcode" if dead.si_code == os.CLD_EXITED else "signal"
            return f"Worker exited prematurely: {kind} {dead.si_status}."
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        deadline = time.monotonic() + _DEATH_S
        while time.monotonic() < deadline:
            # WNOWAIT: billiard reaps it.
            if os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return None
            time.sleep(0.002)
    except (ProcessLookupError, ChildProcessError):
        return None
    finally:
        os.close(descriptor)
    return None


def _lost_info(text: str) -> ExceptionInfo:
    try:
        raise WorkerLostError(text)
    except WorkerLostError:
        return ExceptionInfo()


class RequestMixin:
    """`runtime`, `recorder` and `endings` are set by `install`."""

    runtime: Runtime
    recorder: Recorder
    endings: Endings
    _recorded = False
    _redelivered = False
    _stored: Any = False
    _died_first = False
    _accepting = False
    _not_begun = False
    held = 0  # how often it has waited since another worker of this host runs its task
    kept: KeptRequest | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.received_at = time.monotonic()
        self.settling = threading.Lock()
        super().__init__(*args, **kwargs)

    def keep(self: Any, kept: KeptRequest) -> None:
        """Its message is acknowledged and in a file: what settles this request settles that."""
        self.kept = kept
        self._on_ack, self._on_reject = kept.settle, kept.reject

    def record(self: Any, outcome: str | None, reason: str | None = None) -> None:
        """Write the record of this request, once."""
        if self._recorded:
            return
        self._recorded = True
        if not self._settled_here():
            return
        now = time.time()
        self.recorder.write(
            self.id,
            self.task.name,
            self.request_dict,
            outcome,
            started=self.time_start,
            duration_ms=None if self.time_start is None else max(0.0, now - self.time_start) * 1000,
            reason=reason,
        )

    def _settled_here(self: Any) -> bool:
        """A dead child's slot goes on naming the task: the daemon must not deal with it once more.

        False: it has, because this took too long (a result store that is frozen), and its record is the one.
        """
        board = self.runtime.board
        slot = board.running(self.worker_pid, self.id)
        if slot is None or board.board.settle(slot, BY_WORKER_DONE):
            return True
        sentence = board.board.sentence(slot)
        return sentence is None or sentence.settled not in (BY_DAEMON, BY_DAEMON_DONE)

    def _sentence(self: Any) -> tuple[Slot | None, Sentence | None]:
        board = self.runtime.board
        slot = board.running(self.worker_pid, self.id)
        return slot, None if slot is None else board.board.sentence(slot)

    def _end_from_outside(self: Any, slot: Slot, reason: str) -> None:
        """The daemon, or an operator through it, has ended the task: FAILURE, unless the daemon has said so already."""
        worker_state.task_ready(self)
        if self.runtime.board.board.settle(slot, BY_WORKER):
            if self._stored_success():  # the kill came between its result and its record
                self.record(SUCCESS)
                self.acknowledge()
                return
            self.endings.fail(self, reason, ended_text(reason, self.task.name))
            self.record(FAILURE, reason)
        self._recorded = True
        self.acknowledge()

    def on_accepted(self: Any, pid: int, time_accepted: float) -> None:
        """Celery's; a task that is acknowledged early has not begun yet, see once.py."""
        if self.task.acks_late:
            super().on_accepted(pid, time_accepted)  # type: ignore[misc]
            return
        in_child, granted = isinstance(self.runtime.pool, Prefork), False
        try:
            self._accepting = True
            try:
                super().on_accepted(pid, time_accepted)  # type: ignore[misc]
            finally:
                self._accepting = False
            if in_child:
                with suppress(NotBegunError):
                    self.acknowledge_first()
                    granted = True
            else:
                self.runtime.permits.accepted(self)  # whoever runs it asks when its slot has begun
        finally:
            if in_child:
                self._not_begun = not granted
                self.runtime.permits.answer(pid, self, yes=granted)

    def acknowledge_first(self: Any) -> None:
        """Return when the message is acknowledged. Raises NotBegunError when it is, or goes, back in its queue."""
        sent: Future[None] = Future()
        sent.add_done_callback(self._note_acknowledged)
        if self._connected():
            self._on_ack(celery_logger, self._connection_errors, before_start=sent)
            while not wait([sent], _CONNECTED_S).done:
                if not self._connected() and sent.cancel():
                    break
        given_back = getattr(self.message, "given_back", False)  # on Redis, to somebody else: see redis_qos.py
        if self.acknowledged and not given_back:
            return
        logger.warning(
            "task %s[%s] is not begun: its message could not be acknowledged, and is in its queue again",
            self.task.name, self.id,
        )  # fmt: skip
        if self._connected() and not given_back:
            self.reject(requeue=True)
        self._forget()
        raise NotBegunError

    def _note_acknowledged(self: Any, _sent: Future[None]) -> None:
        """In the thread of the loop, which may give back whatever is not acknowledged."""
        self.acknowledged = self.message.acknowledged

    def _connected(self: Any) -> bool:
        """What came over a connection that is no more has gone back to its queue already."""
        connection, consumer = self.runtime.consumer.connection, self.runtime.consumer.task_consumer
        return connection is not None and consumer is not None and self.message.channel is consumer.channel

    def take_message_of(self: Any, later: Any) -> bool:
        """The message of this request went back with its connection, and has come again: settle that one at the end."""
        if not self.task.acks_late:
            if self.acknowledged:
                later.acknowledge()  # the first acknowledgement was lost on its way
            return bool(self.acknowledged)
        with self.settling:
            if self.acknowledged or self.kept is not None or self._connected():
                return False
            if self._already_cancelled or self._already_revoked:  # it settles nothing at its end
                return False
            self._message, self._on_ack, self._on_reject = later.message, later.on_ack, later.on_reject
            self.received_at = later.received_at
        return True

    def _forget(self: Any) -> None:
        """Celery forgets by the id, which the next delivery of the message has, too."""
        if worker_state.requests.get(self.id) is self:
            worker_state.task_ready(self)
        worker_state.active_requests.discard(self)
        worker_state.reserved_requests.discard(self)

    def acknowledge(self: Any) -> None:
        if self._accepting:
            return
        with self.settling:
            super().acknowledge()  # type: ignore[misc]

    def reject(self: Any, requeue: bool = False) -> None:
        if requeue and not self.acknowledged:
            self._redelivered = True
            self._settled_here()
            self.runtime.event("task_redelivered", task_id=self.id, task_name=self.task.name)
        with self.settling:
            super().reject(requeue=requeue)  # type: ignore[misc]

    def _ended(self: Any) -> bool:
        """Whether the slot, which is dead now, had ended and recorded this task."""
        return self.runtime.board.ended(self.worker_pid, self.id) or logs.was_recorded(self.id, self.worker_pid)

    def _settle_ended(self: Any) -> None:
        """Its slot stored the result and recorded the end; only its word to us was lost."""
        self._recorded = True
        worker_state.task_ready(self, successful=True)
        self.acknowledge()

    def on_timeout(self: Any, soft: bool, timeout: float) -> None:
        if self._died_first or self._not_begun:
            return
        if soft:
            super().on_timeout(soft, timeout)  # type: ignore[misc]
            return
        if not self._recorded:
            worker_state.task_ready(self)
            with self.endings.storing(self.id, TIME_LIMIT, ended_text(TIME_LIMIT, self.task.name)):
                # First of all: should its message come again before it is acknowledged, it must not run again.
                self.endings.mark(self.id, TIME_LIMIT)
                super().on_timeout(soft, timeout)  # type: ignore[misc]
        if not self._redelivered:
            self.acknowledge()
            self.record(FAILURE, TIME_LIMIT)

    def on_failure(self: Any, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        if self._not_begun:  # whatever became of the child that was told so
            self._forget()
            return
        with self.runtime.waiting_for("the result store"):
            self._on_failure(exc_info, send_failed_event, return_ok)

    def _on_failure(self: Any, exc_info: Any, send_failed_event: bool, return_ok: bool) -> None:
        error = _unwrapped(exc_info)
        if isinstance(error, Reject):
            with self.endings.storing(self.id, "rejected", one_line(error)):
                super().on_failure(exc_info, send_failed_event, return_ok)  # type: ignore[misc]
            self.reject(requeue=error.requeue)
            return
        if return_ok or isinstance(error, Terminated):
            # It ended in its slot, which has recorded it, or it was revoked, see _announce_revoked.
            super().on_failure(exc_info, send_failed_event, return_ok)  # type: ignore[misc]
            return
        if isinstance(error, TimeLimitExceeded):
            self._on_limit()
            return
        if self._ended():
            self._settle_ended()
            return
        slot, sentence = self._sentence()
        if slot is not None and sentence is not None and sentence.reason is not None:
            self._end_from_outside(slot, sentence.reason)
            return
        if isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt):
            self.runtime.event(
                "child_died", pid=self.worker_pid, exit=str(error) or type(error).__name__, task_id=self.id,
                task_name=self.task.name, task_queue=slot.running.queue if slot and slot.running else None,
            )  # fmt: skip
        if self._goes_to_quarantine(error):
            return
        reason = WORKER_LOST if isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt) else None
        with self.endings.storing(self.id, reason or "error", one_line(error)):
            if not self.task.acks_late:  # nothing but the store is left to tell
                worker_state.task_ready(self)
                self.endings.require_store()
            super().on_failure(exc_info, send_failed_event, return_ok)  # type: ignore[misc]
        if self._redelivered or self._already_cancelled or self._already_revoked:
            return
        self.acknowledge()
        if self._stored:
            self.record(SUCCESS)
        else:
            self.record(FAILURE, reason)

    def _on_limit(self: Any) -> None:
        """It has outlived its limit. `on_timeout` comes next and does the rest; Celery would do that in both."""
        # Dead first: what its slot says is final then.
        death = _kill_and_wait(self.worker_pid)
        slot, sentence = self._sentence()
        if self._ended():
            self._settle_ended()
        elif slot is not None and sentence is not None:
            self._end_from_outside(slot, sentence.reason or TIME_LIMIT)
        elif death is not None:
            # It had not outlived its limit but died, and nobody had noticed.
            self._died_first = True
            self.on_failure(_lost_info(death))

    def _goes_to_quarantine(self: Any, error: BaseException) -> bool:
        """Count the death of a child that died by itself; True when it was one too many."""
        died = isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt)
        task = self.task
        again = task.acks_late and task.reject_on_worker_lost and not task.retry_on_worker_lost
        if not died or not again or self._already_cancelled or self._already_revoked or self._stored_success():
            return False
        deaths = self.endings.died(self, str(error) or type(error).__name__)
        if not self.endings.hopeless(deaths) or not self.endings.quarantine(self, deaths):
            return False
        worker_state.task_ready(self)
        self.acknowledge()
        return True

    def _stored_success(self: Any) -> Any:
        marks = self.endings.marks
        if marks.hangs:
            return False
        asked = time.monotonic()
        stored = super()._success_was_stored()  # type: ignore[misc]  # False also when it cannot be told
        if not stored:
            marks.perhaps_unanswered(asked)
        return stored

    def _success_was_stored(self: Any) -> Any:
        # Twice: what the child sent right before its death may be served after our first question.
        self._stored = self._stored_success() or self._stored_success()
        return self._stored

    def _retry_worker_lost(self: Any, exc: Any, exc_info: Any) -> bool:
        try:
            done = bool(super()._retry_worker_lost(exc, exc_info))  # type: ignore[misc]
        except Exception:
            # What cannot be stored is RETRY; the retry itself has been sent.
            logger.exception("the retry of task %s could not be stored", self.id)
            self.acknowledge()
            done = True
        if done:
            self.record(None)
        return done

    def revoked(self: Any) -> bool:
        """Celery's: whether it may not run any more, and has been settled then.

        A copy that came again has no end of its own when that of the first one is to come, or has been.
        """
        if self.endings.is_here(self):
            return True
        expired = self.expires and datetime.now(self.expires.tzinfo) >= self.expires
        too_late = expired or self.id in worker_state.revoked
        return bool((too_late and self.endings.has_ended(self)) or super().revoked())  # type: ignore[misc]

    def _announce_revoked(self: Any, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Revoked, expired, or terminated by an operator: all come through here."""
        ended = self.runtime.board.ended(self.worker_pid, self.id)
        worker_state.task_ready(self)
        kind = "operator" if terminated else "expired" if expired else "revoked"
        with self.endings.storing(self.id, kind, reason, states.REVOKED):
            self.endings.require_store()
            super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]
        self.acknowledge()
        self._already_revoked = True
        if not ended:
            self.record(FAILURE, kind)


def ended_text(reason: str, name: str) -> str:
    """For the caller, in words."""
    return f"{name} was ended from outside ({reason})"


def install(app: Any, runtime: Runtime, recorder: Recorder, endings: Endings) -> None:
    """Give every task of `app` a Request that records."""
    made: dict[Any, type] = {}
    own = {"runtime": runtime, "recorder": recorder, "endings": endings}
    for task in app.tasks.values():
        base = symbol_by_name(task.Request)
        if issubclass(base, RequestMixin):
            continue
        if base not in made:
            made[base] = type("Request", (RequestMixin, base), dict(own))
        task.Request = made[base]
