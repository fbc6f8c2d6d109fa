"""No message is held unacknowledged for longer than `ack_deadline`: RabbitMQ would give up on this worker.

    running             written into state_dir, whole, and acknowledged; its file goes when the task has ended
    far ETA             the same, and the worker forgets it: the agent sends it again shortly before its time
    begun by no slot    back to its queue

Whoever acknowledges or rejects the request of a kept message later settles the file instead of the broker.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from celery.worker import state as worker_state

from limetaskd.errors import LimetaskError
from limetaskd.tasks.kept import WRITE_ERRORS, Kept, folder_of, new_path, write
from limetaskd.tasks.message import SENT_AT_HEADER
from limetaskd.worker.drain import give_back, running_requests, take_back
from limetaskd.worker.queues import consume_anew
from limetaskd.worker.records import Recorder
from limetaskd.worker.runtime import Runtime

logger = logging.getLogger(__name__)

# How often to look, as a part of the deadline, and at most this far apart.
_LOOKS = 4
_LOOK_S = 30.0
# So long before its ETA a task is sent again, or half of the deadline: the worker that gets it keeps the time exactly.
_LEAD_S = 5.0
_MOST_TROUBLED = 1000
# Of one turn of the event loop, for writing.
_BUDGET_S = 0.5


class KeepError(LimetaskError):
    """A message cannot be written, or cannot be sent again later."""


class KeptRequest:
    """The message of a request that runs, in its file."""

    def __init__(self, keeper: Keeper, path: Path, kept: Kept) -> None:
        self._keeper = keeper
        self._path = path
        self.kept = kept

    def settle(self, *_: Any) -> None:
        """The task has ended: instead of the acknowledgement."""
        self._path.unlink(missing_ok=True)
        self._keeper.ended(self)

    def give_back(self) -> None:
        """It shall run again, somewhere: instead of the requeue."""
        try:
            write(self._path, dataclasses.replace(self.kept, owner=None))
        except OSError as error:
            logger.error(
                "task %s is sent again when this worker has ended: its file %s cannot be changed: %s",
                self.kept.task_id, self._path, error,
            )  # fmt: skip
        self._keeper.ended(self)

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
        self._kept: dict[str, KeptRequest] = {}
        self._lowered = False
        self._queues: dict[str, str] = {}  # consumer tag -> queue, also of those that were cancelled
        self._next = 0.0
        self._troubled: set[str] = set()  # that an operator was told of

    @property
    def interval_s(self) -> float | None:
        """How often to look; None: never."""
        return None if self.deadline_s is None else min(self.deadline_s / _LOOKS, _LOOK_S)

    def holds(self, request: Any) -> bool:
        """Whether this very try runs here already and its message is in a file: another copy has nothing to add."""
        known = self._kept.get(request.id)
        return known is not None and try_of(known.kept.headers) == try_of(request.request_dict)

    def ended(self, request: KeptRequest) -> None:
        """In any thread."""
        if self._kept.get(request.kept.task_id) is request:
            del self._kept[request.kept.task_id]

    def step(self, consumer: Any) -> None:
        """Look, when it is time to. Raises connection errors."""
        if self.deadline_s is None:
            return
        self._follow(consumer)
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (self.interval_s or 0.0)
        with self._runtime.waiting_for("the disk"):
            if not self._look(consumer, now - self.deadline_s, now + _BUDGET_S):
                self._next = 0.0  # the rest with the next turn of the loop
                os.eventfd_write(self._runtime.wake, 1)
        self._follow(consumer)

    def _look(self, consumer: Any, oldest: float, end: float) -> bool:
        """Everything that was received before `oldest`; False when there was no time left for all of it."""
        deadline_s = self.deadline_s or 0.0
        # What came over a connection that is no more has gone back to its queue, and cannot be acknowledged.
        channel = consumer.task_consumer.channel
        for request in running_requests():
            if not request.task.acks_late:
                continue  # it is acknowledged, or is about to be, before it begins
            late = not request.acknowledged and request.kept is None and request.received_at < oldest
            if late and request.message.channel is channel:
                self._try(self._keep, consumer, request)
                if time.monotonic() > end:
                    return False
        if self._runtime.drain.requested:
            return True  # everything else is given back
        ahead = set()
        for request in [each for each in tuple(worker_state.scheduled_requests) if each.eta]:  # others: see Endings
            left_s = float((request.eta - consumer.app.now()).total_seconds())
            if left_s > 0:
                ahead.add(request)
            if time.monotonic() + left_s - request.received_at > deadline_s:
                self._try(self._put_away, consumer, request, time.time() + left_s)
                if time.monotonic() > end:
                    return False
        waiting = take_back(consumer, lambda request: request.received_at < oldest and request not in ahead)
        if self._runtime.settings.queue_type == "quorum":
            # Each requeue there counts towards the delivery limit, at which the broker drops the message.
            for request in tuple(waiting):
                if self._try(self._send_again, consumer, request):
                    waiting.remove(request)
        give_back(consumer, waiting)
        return True

    def _follow(self, consumer: Any) -> None:
        """What is acknowledged leaves room for one more: for every busy slot another task would wait here.

        The count is set, not changed by one: kombu's QoS stops at 1 and loses count there. While Celery has lowered it
        by itself for what ran when a connection broke, it does so for these too.
        """
        qos = consumer.qos
        restored = getattr(consumer, "_maximum_prefetch_restored", True)
        if not (self._kept or self._lowered) or not consumer.initial_prefetch_count or not restored:
            return
        wanted = max(1, consumer.initial_prefetch_count + len(worker_state.scheduled_requests) - len(self._kept))
        self._lowered = bool(self._kept)
        if qos.value == wanted or self._runtime.drain.requested:
            return
        qos.value = wanted
        if consumer.qos_global is False:
            consume_anew(consumer, wanted)

    def _try(self, keep: Callable[..., None], consumer: Any, request: Any, *args: Any) -> bool:
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
            return False
        return True

    def _queue_of(self, consumer: Any, request: Any) -> str:
        """Raises KeepError when nobody knows."""
        for name, tag in consumer.task_consumer._active_tags.items():
            self._queues[tag] = str(name)
        delivery = request.message.delivery_info or {}
        name = self._queues.get(str(delivery.get("consumer_tag"))) or self._recorder.queue_of(
            {**request.request_dict, "delivery_info": delivery}
        )
        if name is None:
            raise KeepError("its message does not say from which queue it came")
        return name

    def _acknowledge(self, message: Any, path: Path, kept: Kept) -> None:
        """In this order: in between there may be two of it, never none. Raises KeepError, connection errors."""
        try:
            write(path, kept)
        except WRITE_ERRORS as error:
            self._drop(path)
            raise KeepError(str(error)) from error
        try:
            message.ack()
        except Exception:
            self._drop(path)  # the broker still has it
            raise

    @staticmethod
    def _drop(path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.debug("%s: %s", path, error)

    def _keep(self, consumer: Any, request: Any) -> None:
        queue = self._queue_of(consumer, request)
        with request.settling:  # a thread may end it right now
            if request.acknowledged:
                return
            kept = Kept.of_message(request.message, request.id, request.task.name, queue)
            path = new_path(self._folder)
            self._acknowledge(request.message, path, kept)
            self._kept[request.id] = held = KeptRequest(self, path, kept)
            request.keep(held)
        self._tell(kept, "it runs longer than ack_deadline (%g s)", self.deadline_s)

    def _put_away(self, consumer: Any, request: Any, eta: float) -> None:
        lead_s = min(_LEAD_S, (self.deadline_s or 0.0) / 2)
        kept = self._leave(consumer, request, eta - lead_s)
        if request._eta_timer_entry is not None:
            consumer.timer.cancel(request._eta_timer_entry)
            consumer.qos.decrement_eventually()  # as it does when its time has come
        self._tell(kept, "its ETA is further away than ack_deadline (%g s)", self.deadline_s)

    def _send_again(self, consumer: Any, request: Any) -> None:
        self._leave(consumer, request, 0.0)

    def _leave(self, consumer: Any, request: Any, due: float) -> Kept:
        """This worker has nothing to do with it any more."""
        queue = self._queue_of(consumer, request)
        kept = Kept.of_message(request.message, request.id, request.task.name, queue, due=due)
        self._acknowledge(request.message, new_path(self._folder), kept)
        request.acknowledged = True
        worker_state.task_ready(request)
        return kept

    def _tell(self, kept: Kept, why: str, *values: Any) -> None:
        logger.info(
            f"task %s[%s] was acknowledged and is kept in %s: {why}",
            kept.task_name, kept.task_id, self._folder, *values,
            extra={"action": "kept", "task_id": kept.task_id, "task_name": kept.task_name, "queue": kept.queue},
        )  # fmt: skip
        self._runtime.event("task_kept", task_id=kept.task_id, task_name=kept.task_name, task_queue=kept.queue)


def try_of(headers: Mapping[str, Any]) -> tuple[Any, Any]:
    """Tells the tries of one task apart: a retry has its id."""
    return headers.get("retries"), headers.get(SENT_AT_HEADER)
