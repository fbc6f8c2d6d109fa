"""The main process's view of one task: what ends it from outside gets its execution record here.

A mixin over Celery's Request (or the one that a task brings). A task that goes back to the broker has not ended:
no record, but a `task_redelivered` event.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import Reject, Terminated, TimeLimitExceeded, WorkerLostError
from celery.worker import state as worker_state
from kombu.utils.imports import symbol_by_name

from limetaskd.worker import logs
from limetaskd.worker.records import FAILURE, SUCCESS, Recorder
from limetaskd.worker.runtime import Runtime

_DEATH_S = 2.0


def _unwrapped(exc_info: Any) -> BaseException:
    error = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error  # type: ignore[no-any-return]


def _kill_and_wait(pid: int) -> None:
    """SIGKILL a pool child and wait until it is dead: what its slot says is final then."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        deadline = time.monotonic() + _DEATH_S
        while time.monotonic() < deadline:
            # WNOWAIT: billiard reaps it.
            if os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
            time.sleep(0.002)
    except (ProcessLookupError, ChildProcessError):
        return
    finally:
        os.close(descriptor)


class RequestMixin:
    """`runtime` and `recorder` are set by `install`."""

    runtime: Runtime
    recorder: Recorder
    _recorded = False
    _redelivered = False
    _stored: Any = False

    def record(self: Any, outcome: str | None, reason: str | None = None) -> None:
        """Write the record of this request, once."""
        if self._recorded:
            return
        self._recorded = True
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

    def reject(self: Any, requeue: bool = False) -> None:
        if requeue and not self.acknowledged:
            self._redelivered = True
            self.runtime.event("task_redelivered", task_id=self.id, task_name=self.task.name)
        super().reject(requeue=requeue)  # type: ignore[misc]

    def _ended(self: Any) -> bool:
        """Whether the slot, which is dead now, had ended and recorded this task."""
        return self.runtime.board.ended(self.worker_pid, self.id) or logs.was_recorded(self.id)

    def _settle_ended(self: Any) -> None:
        """Its slot stored the result and recorded the end; only its word to us was lost."""
        self._recorded = True
        worker_state.task_ready(self, successful=True)
        self.acknowledge()

    def on_timeout(self: Any, soft: bool, timeout: float) -> None:
        if soft or not self._recorded:
            super().on_timeout(soft, timeout)  # type: ignore[misc]
        if not soft and not self._redelivered:
            self.record(FAILURE, "time_limit")

    def on_failure(self: Any, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        error = _unwrapped(exc_info)
        if return_ok or isinstance(error, Reject | Terminated):
            # It ended in its slot, which has recorded it, or it was revoked, see _announce_revoked.
            super().on_failure(exc_info, send_failed_event, return_ok)  # type: ignore[misc]
            return
        if isinstance(error, TimeLimitExceeded):
            # Dead first: what its slot says is final then. on_timeout comes next and does the rest; Celery would
            # store the failure, and call the errbacks, in both.
            _kill_and_wait(self.worker_pid)
            if self._ended():
                self._settle_ended()
            return
        if self._ended():
            self._settle_ended()
            return
        super().on_failure(exc_info, send_failed_event, return_ok)  # type: ignore[misc]
        if self._redelivered or self._already_cancelled or self._already_revoked:
            return
        if self._stored:
            self.record(SUCCESS)
        else:
            lost = isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt)
            self.record(FAILURE, "worker_lost" if lost else None)

    def _success_was_stored(self: Any) -> Any:
        # Twice: what the child sent right before its death may be served after our first question.
        stored = super()._success_was_stored  # type: ignore[misc]
        self._stored = stored() or stored()
        return self._stored

    def _retry_worker_lost(self: Any, exc: Any, exc_info: Any) -> bool:
        done = bool(super()._retry_worker_lost(exc, exc_info))  # type: ignore[misc]
        if done:
            self.record(None)
        return done

    def _announce_revoked(self: Any, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Revoked, expired, or terminated by an operator: all come through here."""
        ended = self.runtime.board.ended(self.worker_pid, self.id)
        super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]
        if not ended:
            self.record(FAILURE, "operator" if terminated else "expired" if expired else "revoked")


def install(app: Any, runtime: Runtime, recorder: Recorder) -> None:
    """Give every task of `app` a Request that records."""
    made: dict[Any, type] = {}
    for task in app.tasks.values():
        base = symbol_by_name(task.Request)
        if issubclass(base, RequestMixin):
            continue
        if base not in made:
            made[base] = type("Request", (RequestMixin, base), {"runtime": runtime, "recorder": recorder})
        task.Request = made[base]
