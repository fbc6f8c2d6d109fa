"""What the worker's main process does with a task that will not run again: result, tombstone, quarantine, answer.

`Endings` also looks at each message that the broker delivers again, before it is run: a task that has ended for good is
acknowledged, one under which too many workers died goes to quarantine, whatever host saw that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import signals, states
from celery.utils.nodenames import gethostname
from celery.worker import state as worker_state

from limetaskd.core.board import WORKER_LOST, Board
from limetaskd.core.jsonlog import timestamp
from limetaskd.core.process import process_may_live
from limetaskd.errors import LimetaskError
from limetaskd.tasks.errors import killed_error
from limetaskd.tasks.marks import Marks
from limetaskd.tasks.message import RESENT_HEADER, header_of
from limetaskd.worker.drain import running_requests
from limetaskd.worker.keeping import Keeper, try_of
from limetaskd.worker.quarantine import send_to_quarantine
from limetaskd.worker.records import FAILURE, Recorder
from limetaskd.worker.runtime import Runtime, one_line

logger = logging.getLogger(__name__)

# What cannot run yet is looked at again after this time.
_BESIDE_FIRST_S, _BESIDE_S = 0.01, 1.0
_STORE_AWAY_S = 2.0


class StoreAwayError(LimetaskError):
    """The result store cannot be used now."""


class Endings:
    """Of one worker. Made when its app is known."""

    def __init__(self, app: Any, runtime: Runtime, recorder: Recorder, keeper: Keeper) -> None:
        self._app = app
        self._runtime = runtime
        self._recorder = recorder
        self._keeper = keeper
        self._marks: Marks | None = None

    @property
    def marks(self) -> Marks:
        if self._marks is None:
            self._marks = Marks(self._app.backend, self._runtime.settings.cluster.key_prefix)
        return self._marks

    def require_store(self) -> None:
        """Raises StoreAwayError at once when the store did not answer a moment ago."""
        if self.marks.rests:
            raise StoreAwayError("it did not answer a moment ago")

    def mark(self, task_id: str, reason: str) -> None:
        """Put up the tombstone. Raises StoreAwayError."""
        self.require_store()
        if not self.marks.end(task_id, reason) and self.marks.shared:
            raise StoreAwayError("the tombstone could not be put up")

    @contextmanager
    def storing(self, task_id: str, reason: str, text: str, state: str = states.FAILURE) -> Iterator[None]:
        """Around what stores the end of a task. It has ended all the same when that raises: the daemon stores it later.

        Then whoever waits for the result hears `state`, `reason` and `text`; errbacks and chords do not.
        """
        with self._runtime.waiting_for("the result store"):
            asked = time.monotonic()
            try:
                yield
            except Exception as error:
                # The store is away, or a hook of the task is broken.
                if asked_it := isinstance(error, self.marks.away_errors):
                    self.marks.unanswered(asked)
                away = asked_it or isinstance(error, StoreAwayError)
                logger.error(
                    "the end of task %s could not be stored: %s: %s", task_id, type(error).__name__, one_line(error),
                    exc_info=None if away else error,
                )  # fmt: skip
                self._runtime.event(
                    "task_end_not_stored", task_id=task_id, state=state, reason=reason, text=text,
                    error=one_line(error),
                )

    def fail(self, request: Any, reason: str, text: str) -> None:
        """Store FAILURE for good, with the errbacks and chords that hang on it; the caller is answered."""
        error = killed_error(reason, text)
        try:
            raise error
        except Exception as raised:  # noqa: BLE001  only to give it a traceback
            info = ExceptionInfo()
            traceback = raised.__traceback__
        with self.storing(request.id, reason, text):
            self.mark(request.id, reason)
            request.task.backend.mark_as_failure(
                request.id, error, request=request._context, store_result=request.store_errors
            )
            request.task.on_failure(error, request.id, request.args, request.kwargs, info)
            signals.task_failure.send(
                sender=request.task, task_id=request.id, exception=error, args=request.args, kwargs=request.kwargs,
                traceback=traceback, einfo=info,
            )  # fmt: skip

    def died(self, request: Any, text: str) -> list[dict[str, Any]]:
        """Count one more worker that died under this task; every death that is known."""
        death = {
            "at": timestamp(time.time()), "host": gethostname(), "by": text,
            "worker": self._runtime.name,
        }  # fmt: skip
        with self._runtime.waiting_for("the result store"):
            return self.marks.died(request.id, death, ask=not self.marks.hangs)

    def hopeless(self, deaths: list[dict[str, Any]]) -> bool:
        return len(deaths) >= self._runtime.settings.max_deliveries

    def quarantine(self, request: Any, deaths: list[dict[str, Any]]) -> bool:
        """Away with the message, whole. False when the broker did not confirm it: then it stays where it is."""
        queue = self._recorder.queue_of({**request.request_dict, "delivery_info": request.delivery_info}) or ""
        timeout_s = self._runtime.settings.publish_timeout_s
        try:
            with self._runtime.waiting_for("the broker"):
                name = send_to_quarantine(self._app, request, queue, deaths, timeout_s)
        except Exception as error:
            logger.exception("task %s could not be put into quarantine", request.id)
            self._runtime.event("quarantine_failed", task_id=request.id, reason=one_line(error))
            return False
        text = f"{len(deaths)} workers died while they ran it: it is in {name}"
        self.fail(request, WORKER_LOST, text)
        request.record(FAILURE, WORKER_LOST)
        logger.error(
            "task %s[%s]: %s", request.task.name, request.id, text,
            extra={"action": "quarantined", "task_id": request.id, "task_name": request.task.name, "queue": name},
        )  # fmt: skip
        self._runtime.event(
            "task_quarantined", task_id=request.id, task_name=request.task.name, queue=name, deaths=len(deaths)
        )
        return True

    def admit(self, request: Any) -> bool:
        """Whether a request may run now. One that may not is settled with the broker here."""
        delivery = request.delivery_info or {}
        if header_of(request, RESENT_HEADER):
            delivery["redelivered"] = True  # Celery looks there whether it has succeeded already
        if self.is_here(request):
            return False
        if request.id in self._runtime.revoked:
            worker_state.revoked.add(request.id)
            if request.revoked():  # stores REVOKED, acknowledges, and records
                worker_state.task_ready(request)
                return False
        if not delivery.get("redelivered"):
            return True
        if self._held(request):
            return False
        with self._runtime.waiting_for("the result store"):
            marked = self.marks.look(request.id)
        asks = self._runtime.patient and not request.ignore_result
        if not marked.known and asks and self._hold(request, _STORE_AWAY_S):  # nobody can tell whether it has ended
            return False
        if marked.ended == "revoked":
            # On a host that had not heard of it: Celery stores REVOKED, and nobody has recorded it yet.
            worker_state.revoked.add(request.id)
            if request.revoked():
                worker_state.task_ready(request)
                return False
        if marked.ended is not None:
            self._drop(request, marked.ended)
            return False
        if not (request.task.acks_late and self.hopeless(marked.deaths) and self.quarantine(request, marked.deaths)):
            return True
        worker_state.task_ready(request)
        request.acknowledge()
        return False

    def _held(self, request: Any) -> bool:
        """Whether a request has to wait, because another worker of this host runs its task still; or has ended it."""
        if self._runs_beside(request):
            request.held += 1
            # At first often: children of a worker that was killed may take a moment to die.
            return self._hold(request, min(_BESIDE_S, _BESIDE_FIRST_S * 2 ** min(request.held, 10)))
        # Its end is the end of both, as if it had been ours: a failure, too.
        return request.held > 0 and self.has_ended(request)

    def _runs_beside(self, request: Any) -> bool:
        """Its connection broke, or it was being replaced when ours did, and what it runs came to us."""
        own = self._runtime.board.board.path
        for path in Path(own).parent.iterdir() if own is not None else ():
            if str(path) == own:
                continue
            try:
                board = Board.open(str(path))
            except (OSError, ValueError):
                continue  # it is being made, or has just gone
            try:
                slots = [slot for slot in board.read() if slot.running and slot.running.id == request.id[:64]]
            finally:
                board.close()
            if any(process_may_live(slot.pid, slot.start_ticks) for slot in slots):
                return True
        return False

    def _hold(self, request: Any, seconds: float) -> bool:
        """Look at it again later, as Celery does with an ETA; False when that is not possible."""
        consumer = self._runtime.consumer
        if consumer.qos_global is False or not request.task.acks_late:
            return False  # what waits would keep the others of its queue from coming; or who had it has it no more
        consumer.qos.increment_eventually()
        request._eta_timer_entry = consumer.timer.call_after(seconds, consumer.apply_eta_task, (request,))
        worker_state.reserved_requests.discard(request)
        worker_state.task_scheduled(request)
        return True

    def _drop(self, request: Any, how: str) -> None:
        logger.warning(
            "task %s[%s] has ended before (%s): its message came again and is dropped",
            request.task.name, request.id, how,
            extra={"action": "ended_before", "task_id": request.id, "task_name": request.task.name},
        )  # fmt: skip
        self._runtime.event("task_dropped", task_id=request.id, task_name=request.task.name, reason=how)
        request._recorded = True  # by whoever ended it
        worker_state.task_ready(request)
        request.acknowledge()

    def has_ended(self, request: Any) -> bool:
        """Whether a request that came again has ended before by itself, as far as the result store can tell now."""
        if not (request.delivery_info or {}).get("redelivered") or request.ignore_result:
            return False
        with self._runtime.waiting_for("the result store"):
            state = self.marks.state(request.id)
        # Whoever stores REVOKED need not have recorded it.
        if state is None or state not in (states.SUCCESS, states.FAILURE):
            return False
        self._drop(request, state)
        return True

    def is_here(self, request: Any) -> bool:
        """Whether this very try is here already, since before the connection broke: its end is the end of both."""
        if not (request.delivery_info or {}).get("redelivered"):
            return False
        number = try_of(request.request_dict)
        running = [
            other for other in running_requests()
            if other is not request and other.id == request.id and try_of(other.request_dict) == number
        ]  # fmt: skip
        if self._keeper.holds(request):
            request.acknowledge()  # the first acknowledgement was lost on its way
        elif not any(other.take_message_of(request) for other in running):
            return False
        logger.info(
            "task %s[%s] came again and is here still: it does not run twice", request.task.name, request.id,
            extra={"action": "runs_still", "task_id": request.id, "task_name": request.task.name},
        )  # fmt: skip
        request._recorded = True
        worker_state.task_ready(request)
        for other in running:
            worker_state.requests[other.id] = other  # Celery's commands find it by its id
            if other not in worker_state.active_requests:  # it has just ended
                worker_state.requests.pop(other.id, None)
        return True
