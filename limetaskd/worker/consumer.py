"""Celery's consumer, which says what it does: connecting (and why it cannot), consuming (and what), draining.

It waits for its broker for ever, obeys the daemon in its event loop, and treats a queue that the broker refuses as
the end: that is for an operator to repair.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from celery.exceptions import WorkerShutdown
from celery.worker import loops
from celery.worker.consumer import Consumer as CeleryConsumer

from limetaskd.core.channel import Phase
from limetaskd.worker import queues
from limetaskd.worker.commands import run_commands
from limetaskd.worker.records import FAILURE
from limetaskd.worker.runtime import one_line

logger = logging.getLogger(__name__)

EX_CONFIG = 78
# AMQP: access refused, not found, precondition failed (declared with other arguments).
_REFUSALS = (403, 404, 406)
_PAUSE_STEPS, _PAUSE_STEP_S = 10, 0.1
_RETRY_FIRST_S, _RETRY_STEP_S, _RETRY_MAX_S = 0.2, 0.3, 3.0

# Celery's event loop begins with a look for a message that waits up to 0.1 s for one. What was read before, among the
# answers of the broker, would not get to a pool child for so long. A message that comes later wakes the loop anyway.
if hasattr(loops, "_quick_drain"):  # it is Celery's own affair: another version may do without
    loops._quick_drain = partial(loops._quick_drain, timeout=0)


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """`controller.lime` is the Runtime of this worker."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.lime = kwargs["controller"].lime
        self.lime.consumer = self
        super().__init__(*args, **kwargs)

    def connect(self) -> Any:
        self.lime.drain.between_tries()
        if self.lime.drain.requested:
            raise WorkerShutdown(os.EX_OK)
        queues.offline(self)
        self.lime.report(Phase.CONNECTING, reason=self.lime.reason)
        return super().connect()

    def ensure_connected(self, conn: Any) -> Any:
        conf = self.app.conf
        if not conf.broker_connection_retry or conf.broker_connection_retry_on_startup is False:
            return super().ensure_connected(conn)  # the operator wants it to give up

        def on_error(error: Exception, _interval: float) -> None:
            self._news(f"{conn.as_uri()}: {error}")

        connected = conn.ensure_connection(
            on_error,
            conf.broker_connection_max_retries,
            interval_start=_RETRY_FIRST_S,
            interval_step=_RETRY_STEP_S,
            interval_max=_RETRY_MAX_S,
            callback=self._between_tries,
        )
        self.first_connection_attempt = False
        self.broker_connection_retry_attempt = 0
        return connected

    def _between_tries(self) -> None:
        self.lime.drain.between_tries()
        if self.lime.drain.requested:
            raise WorkerShutdown(os.EX_OK)
        queues.offline(self)

    def update_strategies(self) -> None:
        self.controller.before_strategies()
        super().update_strategies()
        self.controller.on_strategies()

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A task that nothing here defines has ended: Celery drops the message and stores NotRegistered."""
        headers = message.headers or {}
        source = headers if "id" in headers else message.payload  # of Celery's protocol 2, or 1
        task_id, name = str(source["id"]), str(source["task"])
        with self.controller.endings.storing(task_id, "not_registered", name):
            super().on_unknown_task(body, message, exc)
        self.controller.recorder.write(
            task_id, name, {**headers, "delivery_info": message.delivery_info or {}}, FAILURE,
            started=None, duration_ms=None, reason="not_registered",
        )  # fmt: skip

    def on_ready(self) -> None:
        """Called at each connection, right after the broker has confirmed every consumer."""
        super().on_ready()
        logger.info("consuming %s", ", ".join(self.consuming()), extra={"action": "consuming"})
        self.report_consuming()

    def consuming(self) -> list[str]:
        """Actual names of the queues that are consumed now."""
        return sorted(queue.name for queue in self.task_consumer.queues) if self.task_consumer else []

    def report_consuming(self) -> None:
        self.lime.report(Phase.CONSUMING, queues=self.consuming())

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Errors that kombu does not try again, like a refused login: an administrator may repair it any time."""
        self._news(f"{self.conninfo.as_uri()}: {exc}")
        for _ in range(_PAUSE_STEPS):
            self._between_tries()
            time.sleep(_PAUSE_STEP_S)

    def _news(self, reason: str) -> None:
        """Log and report why there is no connection. The first failure is news, the hundredth is not."""
        level = logging.ERROR if one_line(reason) != self.lime.reason else logging.DEBUG
        logger.log(level, "the broker cannot be used, trying again for ever: %s", one_line(reason))
        self.lime.report(Phase.CONNECTING, reason=reason)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        if self.lime.phase == Phase.CONNECTING:
            self._refused(exc)
        super().on_connection_error_after_connected(exc)
        self.lime.report(Phase.CONNECTING, reason=f"{self.conninfo.as_uri()}: {exc}")

    def _refused(self, exc: Exception) -> None:
        """The broker answered, and will answer the same again. Raises WorkerShutdown."""
        if isinstance(exc, tuple(self.channel_errors)) and getattr(exc, "reply_code", None) in _REFUSALS:
            logger.critical("the broker refuses a queue or exchange of this worker: %s", one_line(exc))
            self.lime.fail(f"the broker refuses: {exc}")
            raise WorkerShutdown(EX_CONFIG) from exc

    def register_with_event_loop(self, hub: Any) -> None:
        super().register_with_event_loop(hub)
        # The hub forgets its readers at each lost connection.
        hub.add_reader(self.lime.wake, self._on_wake)
        hub.on_tick.add(self._on_tick)
        if self.controller.keeper.interval_s is not None:
            hub.call_repeatedly(self.controller.keeper.interval_s, lambda: None)  # a turn of the loop is all it takes

    def _on_wake(self) -> None:
        try:
            os.eventfd_read(self.lime.wake)
        except BlockingIOError:
            return

    def _on_tick(self) -> None:
        self.lime.turned = time.monotonic()
        if self.connection is None or self.task_consumer is None:
            return
        self.lime.drain.step(self)
        run_commands(self)
        self.controller.keeper.step(self)
        # kombu's hub now waits for descriptors, for up to 10 s, whatever it still has to do by itself: a message that
        # py-amqp has read already, or an acknowledgement, would wait as long.
        if self.hub is not None and self.hub._ready:
            os.eventfd_write(self.lime.wake, 1)

    def call_soon_ack(
        self, p: Callable[..., Any], *args: Any, before_start: Future[None] | None = None, **kwargs: Any
    ) -> Any:
        """Celery's. `before_start` is done when the acknowledgement is out, or has failed; cancelled, it is not sent.

        Only the thread of the loop may use the connection.
        """
        if before_start is None:
            return super().call_soon_ack(p, *args, **kwargs)

        def send() -> None:
            if before_start.set_running_or_notify_cancel():
                try:
                    p(*args, **kwargs)
                except Exception as error:  # noqa: BLE001
                    # Whatever it was: who waits sees that nothing is acknowledged, and the loop goes on.
                    logger.error("a message could not be acknowledged: %s", one_line(error))
                finally:
                    before_start.set_result(None)

        if self.hub is None or threading.current_thread() is threading.main_thread():
            return send()
        return self.hub.call_soon(send)

    def perform_pending_operations(self) -> None:
        """Each turn of the loop of transports without an event loop."""
        super().perform_pending_operations()
        if self.hub is None:
            self._on_tick()
