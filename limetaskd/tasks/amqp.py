"""`app.amqp` of a configured app: the one place that every task message goes through."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import celery.app.amqp
import kombu
from celery.utils.time import maybe_make_aware
from kombu.transport.native_delayed_delivery import calculate_routing_key

from limetaskd.core.redact import redact_text
from limetaskd.core.routing import Decision
from limetaskd.tasks import logs, pool, publish
from limetaskd.tasks.binding import Binding, binding_of
from limetaskd.tasks.message import RESENT_HEADER, ROUTED_QUEUE_HEADER, ROUTED_TYPE_HEADER, SENT_AT_HEADER, USER_HEADER
from limetaskd.tasks.queue_table import Queues
from limetaskd.tasks.queues import kombu_queue
from limetaskd.tasks.router import ROUTE_OPTION, Router
from limetaskd.tasks.user import current_user

DELAY_EXCHANGE = "celery_delayed_27"  # Celery's: the first level of its native delayed delivery


class AMQP(celery.app.amqp.AMQP):  # type: ignore[misc]
    """Celery's, with our router, our pool of producers and our sender of task messages."""

    queues_cls = Queues

    def __init__(self, app: Any) -> None:
        binding = binding_of(app)
        if binding is None:
            raise RuntimeError("limetaskd.tasks.amqp.AMQP belongs to an app of create_app or configure_app")
        self.binding: Binding = binding
        self._pool_lock = threading.Lock()
        self._producer_pool: Any = None
        super().__init__(app)

    def Queues(self, *args: Any, **kwargs: Any) -> Queues:  # noqa: N802 - Celery's name
        queues: Queues = super().Queues(*args, **kwargs)
        queues.binding = self.binding
        return queues

    def Router(self, queues: Any = None, create_missing: Any = None) -> Router:  # noqa: N802, ARG002 - Celery's
        return Router(self.app, self.binding)

    @property
    def producer_pool(self) -> Any:
        found = self._producer_pool
        if found is None:
            with self._pool_lock:
                found = self._producer_pool
                if found is None:
                    found = self._producer_pool = pool.producer_pool(self.app, self.binding.settings())
        return found

    def forget_locks(self) -> None:
        """In a forked child: a thread that is no more may have held the lock."""
        self._pool_lock = threading.Lock()

    def _create_task_sender(self) -> Callable[..., Any]:
        send = super()._create_task_sender()

        def send_task_message(producer: Any, name: str, message: Any, **options: Any) -> Any:
            return self._send(send, producer, name, message, options)

        return send_task_message

    def _send(self, send: Callable[..., Any], producer: Any, name: str, message: Any, options: dict[str, Any]) -> Any:
        """Route, mark, publish until confirmed, log. Raises RoutingError, PublishError."""
        fields = message.headers if message.headers.get("id") else message.body  # protocol 1 has them in the body
        task_id = fields["id"]
        route = options.pop(ROUTE_OPTION, None) or self.router.plan(name, options)
        decision = self.router.final(route, task_id, fields.get("retries") or 0)
        logs.log_decision_warnings(decision, task_id)
        queue = kombu_queue(decision.queue)
        publisher = publish.Publisher(
            producer,
            task=name,
            queue=decision.queue.actual,
            deadline=route.deadline,
            timeout_s=route.settings.publish_timeout_s,
            confirm=route.settings.publish_confirm,
            attempts=_attempts(self.app, options),
        )
        destination = self._destination(queue, fields.get("eta"), publisher)
        for used in ("queue", "exchange", "routing_key", "exchange_type", "retry", "retry_policy", "timeout",
                     "confirm_timeout", "event_dispatcher"):  # fmt: skip
            options.pop(used, None)
        options["headers"] = _mark(options.get("headers"), decision)
        options["declare"] = [queue, *(options.get("declare") or ())]
        # The event is no part of the promise: that it cannot be sent must not look as if the task were not.
        result = send(publisher, name, message._replace(sent_event=None), retry=False, **destination, **options)
        logs.log_sent(name, decision, task_id)
        if message.sent_event:
            self._send_event(producer, queue, message.sent_event)
        return result

    def _destination(self, queue: kombu.Queue, eta: str | None, publisher: publish.Publisher) -> dict[str, Any]:
        """A direct exchange: by the default exchange to this queue alone. A topic one: by its exchange, later by
        Celery's native delayed delivery (the ETA of a message in a quorum queue would block those behind it)."""
        if queue.exchange.type != "topic":
            return {"queue": queue}
        destination = {"queue": queue, "exchange": queue.exchange.name, "routing_key": queue.routing_key}
        seconds = _seconds_until(self.app, eta)
        if seconds >= 1 and publisher.is_amqp:
            publisher.delayed_queue = queue
            publisher.delayed_queue_type = self.app.conf.broker_native_delayed_delivery_queue_type
            destination["exchange"] = DELAY_EXCHANGE
            destination["routing_key"] = calculate_routing_key(int(seconds), queue.routing_key)
        return destination

    def _send_event(self, producer: Any, queue: kombu.Queue, event: dict[str, Any]) -> None:
        event.update(queue=queue.name, exchange=queue.exchange.name, routing_key=queue.routing_key)
        connection = producer.connection
        try:
            self._event_dispatcher.publish("task-sent", event, producer, retry=False)
        except (*connection.connection_errors, *connection.channel_errors, kombu.exceptions.OperationalError) as error:
            publish.drop(connection)
            logs.logger(logs.ROUTING_NAME).warning("the event task-sent was not sent: %s", redact_text(str(error)))


def _mark(headers: dict[str, Any] | None, decision: Decision) -> dict[str, Any]:
    """The headers of one try."""
    marked = dict(headers or {})
    marked.pop(RESENT_HEADER, None)  # of the message that a retry is made of
    marked[ROUTED_QUEUE_HEADER] = decision.queue.actual
    marked[ROUTED_TYPE_HEADER] = decision.type
    marked[SENT_AT_HEADER] = time.time()
    if USER_HEADER not in marked:
        user = current_user()
        if user is not None:
            marked[USER_HEADER] = user
    return marked


def _attempts(app: Any, options: dict[str, Any]) -> int | None:
    """How often to try at most; None: until the deadline. `retry=False` is the caller's own wish."""
    retry = options.get("retry")
    if retry is None:
        retry = app.conf.task_publish_retry
    if not retry:
        return 1
    limit = (options.get("retry_policy") or {}).get("max_retries")
    return None if limit is None else int(limit) + 1


def _seconds_until(app: Any, eta: str | None) -> float:
    if not eta:
        return 0.0
    when = maybe_make_aware(datetime.fromisoformat(eta), tz=app.timezone)
    return float((when - app.now()).total_seconds())
