"""No message is held unacknowledged for longer than `ack_deadline`: RabbitMQ would give up on this worker.

    running             written into state_dir, whole, and acknowledged; its file goes when the task has ended
    far ETA             the same, and the worker forgets it: the agent sends it again shortly before its time
    begun by no slot    back to its queue

Whoever acknowledges or rejects the request of a kept message later settles the file instead of the broker.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from celery.utils.time import maybe_make_aware
from celery.worker import state as worker_state

from limetaskd.errors import LimetaskError
from limetaskd.tasks.kept import Kept, folder_of, new_path, write
from limetaskd.worker.drain import give_back, take_back
from limetaskd.worker.records import Recorder
from limetaskd.worker.runtime import Runtime

logger = logging.getLogger(__name__)

# How often to look, as a part of the deadline, and at most this far apart.
_LOOKS = 4
_LOOK_S = 30.0
# So long before its ETA a task is sent again, or half of the deadline: the worker that gets it keeps the time exactly.
_LEAD_S = 5.0
_MOST_TROUBLED = 1000


class KeepError(LimetaskError):
    """A message cannot be written, or cannot be sent again later."""


class KeptRequest:
    """The message of a request that runs, in its file."""

    def __init__(self, keeper: Keeper, path: Path, kept: Kept) -> None:
        self._keeper = keeper
        self._path = path
        self._kept = kept

    def settle(self, *_: Any) -> None:
        """The task has ended: instead of the acknowledgement."""
        self._path.unlink(missing_ok=True)
        self._keeper.ended(self._kept.task_id)

    def give_back(self) -> None:
        """It shall run again, somewhere: instead of the requeue."""
        try:
            write(self._path, dataclasses.replace(self._kept, owner=None))
        except OSError as error:
            logger.error(
                "task %s is sent again when this worker has ended: its file %s cannot be changed: %s",
                self._kept.task_id, self._path, error,
            )  # fmt: skip
        self._keeper.ended(self._kept.task_id)

    def reject(self, _logger: Any, _errors: Any, requeue: bool) -> None:
        if requeue:
            self.give_back()
        else:
            self.settle()


class Keeper:
    """Of one worker. `step` is called in the event loop."""

    def __init__(self, runtime: Runtime, recorder: Recorder) -> None:
        self._runtime = runtime
        self._recorder = recorder
        settings, spec = runtime.settings, runtime.spec
        # By hand there is no agent to send again what is kept; a solo pool runs its tasks in the loop that would look.
        alone = spec is None or spec.pool_kind == "solo"
        self.deadline_s = None if alone or settings.state_dir is None else settings.ack_deadline_s
        self._folder = folder_of(settings.state_dir or "")
        self._kept: set[str] = set()
        # How far the prefetch count was lowered for what runs and does not count at the broker any more.
        self._lowered = 0
        self._next = 0.0
        self._troubled: set[str] = set()  # that an operator was told of

    @property
    def interval_s(self) -> float | None:
        """How often to look; None: never."""
        return None if self.deadline_s is None else min(self.deadline_s / _LOOKS, _LOOK_S)

    def holds(self, task_id: str) -> bool:
        """Whether this task runs here and its message is in a file: another copy has nothing to add."""
        return task_id in self._kept

    def connected(self) -> None:
        """A new connection has a new prefetch count."""
        self._lowered = 0
        self._adjust()

    def ended(self, task_id: str) -> None:
        self._kept.discard(task_id)
        self._adjust()

    def _adjust(self) -> None:
        """What is acknowledged leaves room for one more: for every busy slot another task would wait here."""
        qos = getattr(self._runtime.consumer, "qos", None)
        if qos is None:
            return
        while self._lowered < len(self._kept) and qos.value > 1:
            qos.decrement_eventually()
            self._lowered += 1
        while self._lowered > len(self._kept):
            qos.increment_eventually()
            self._lowered -= 1

    def step(self, consumer: Any) -> None:
        """Look, when it is time to. Raises connection errors."""
        now = time.monotonic()
        if self.deadline_s is None or now < self._next or self._runtime.drain.requested:
            return
        self._next = now + (self.interval_s or 0.0)
        oldest = now - self.deadline_s
        for request in tuple(worker_state.active_requests):
            if not request.acknowledged and request.kept is None and request.received_at < oldest:
                self._try(self._keep, consumer, request)
        for request in tuple(worker_state.scheduled_requests):
            left_s = _seconds_until(consumer.app, request)
            if now + left_s - request.received_at > self.deadline_s:
                self._try(self._put_away, consumer, request, time.time() + left_s)
        scheduled = set(worker_state.scheduled_requests)
        late = take_back(consumer, lambda request: request.received_at < oldest and request not in scheduled)
        give_back(consumer, late)

    def _try(self, keep: Callable[..., None], consumer: Any, request: Any, *args: Any) -> None:
        try:
            keep(consumer, request, *args)
        except KeepError as error:
            # It stays as it is and is tried again: the broker may repeat it, and nothing is lost.
            level = logging.DEBUG if request.id in self._troubled else logging.ERROR
            self._troubled = {*self._troubled, request.id} if len(self._troubled) < _MOST_TROUBLED else {request.id}
            logger.log(
                level, "task %s[%s] is held for longer than ack_deadline and cannot be kept in %s: %s",
                request.task.name, request.id, self._folder, error,
            )  # fmt: skip

    def _queue_of(self, consumer: Any, request: Any) -> str:
        """Raises KeepError when nobody knows."""
        delivery = request.message.delivery_info or {}
        for name, tag in consumer.task_consumer._active_tags.items():
            if tag == delivery.get("consumer_tag"):
                return str(name)
        name = self._recorder.queue_of({**request.request_dict, "delivery_info": delivery})
        if name is None:
            raise KeepError("its message does not say from which queue it came")
        return name

    def _acknowledge(self, message: Any, path: Path, kept: Kept) -> None:
        """In this order: in between there may be two of it, never none. Raises KeepError, connection errors."""
        try:
            write(path, kept)
        except (OSError, ValueError, TypeError) as error:
            raise KeepError(str(error)) from error
        try:
            message.ack()
        except Exception:
            path.unlink(missing_ok=True)  # the broker still has it
            raise

    def _keep(self, consumer: Any, request: Any) -> None:
        queue = self._queue_of(consumer, request)
        kept = Kept.of_message(request.message, request.id, request.task.name, queue)
        path = new_path(self._folder)
        self._acknowledge(request.message, path, kept)
        request.keep(KeptRequest(self, path, kept))
        self._kept.add(request.id)
        self._adjust()
        self._tell(kept, "it runs longer than ack_deadline (%g s)", self.deadline_s)

    def _put_away(self, consumer: Any, request: Any, eta: float) -> None:
        queue = self._queue_of(consumer, request)
        lead_s = min(_LEAD_S, (self.deadline_s or 0.0) / 2)
        kept = Kept.of_message(request.message, request.id, request.task.name, queue, due=eta - lead_s)
        self._acknowledge(request.message, new_path(self._folder), kept)
        (taken,) = take_back(consumer, lambda other: other is request)
        taken.acknowledged = True
        worker_state.task_ready(taken)
        self._tell(kept, "its ETA is further away than ack_deadline (%g s)", self.deadline_s)

    def _tell(self, kept: Kept, why: str, *values: Any) -> None:
        logger.info(
            f"task %s[%s] was acknowledged and is kept in %s: {why}",
            kept.task_name, kept.task_id, self._folder, *values,
            extra={"action": "kept", "task_id": kept.task_id, "task_name": kept.task_name, "queue": kept.queue},
        )  # fmt: skip
        self._runtime.event("task_kept", task_id=kept.task_id, task_name=kept.task_name, task_queue=kept.queue)


def _seconds_until(app: Any, request: Any) -> float:
    """Until the ETA of a scheduled request; its message says it in ISO 8601, and Celery has read it already."""
    eta = datetime.fromisoformat(str(request.request_dict.get("eta")))
    return float((maybe_make_aware(eta, tz=app.timezone) - app.now()).total_seconds())
