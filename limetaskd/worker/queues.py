"""Which queues this worker consumes, changed while it runs: the commands `consume`, `cancel` and `held`.

What is selected in `app.amqp.queues` is what the next connection consumes, so a choice that is made while the broker
is away holds as well. A queue that is cancelled gets back at once what had been prefetched of it and not begun.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from celery.worker import state as worker_state

from limetaskd.core.channel import Command
from limetaskd.core.routing import find_queue
from limetaskd.core.settings import Queue, Settings
from limetaskd.errors import CommandError
from limetaskd.worker.drain import give_back, take_back

logger = logging.getLogger(__name__)


def known_queue(runtime: Any, command: Command) -> Queue:
    """The queue that is meant; settings that were written after this worker started win. Raises CommandError."""
    name = command.params.get("queue")
    if not isinstance(name, str) or not name:
        raise CommandError("`queue` must be the configured name of a queue")
    queue = None
    if runtime.spec is not None:
        try:
            queue = find_queue(Settings.from_json(Path(runtime.spec.settings).read_text()), name)
        except (OSError, ValueError) as error:
            raise CommandError(f"cannot read the settings: {error}") from error
    queue = queue or find_queue(runtime.settings, name)
    if queue is None:
        raise CommandError(f"no queue {name!r} is configured")
    return queue


def _actual(consumer: Any, command: Command) -> str:
    """The actual name of the queue that is meant: it may be consumed here and configured no longer."""
    name = command.params.get("queue")
    if isinstance(name, str) and name in _selected(consumer):
        return name
    return known_queue(consumer.lime, command).actual


def _select(consumer: Any, queue: Queue) -> None:
    from limetaskd.tasks.queues import kombu_queue

    # Also when the name is known: by a header alone it may stand there with a binding that nobody configured.
    consumer.app.amqp.queues.select_add(kombu_queue(queue))


def _selected(consumer: Any) -> list[str]:
    return sorted(consumer.app.amqp.queues.consume_from)


def consume(consumer: Any, command: Command) -> None:
    """Begin to consume a queue; done when the broker has confirmed it."""
    queue = known_queue(consumer.lime, command)
    if not consumer.task_consumer.consuming_from(queue.actual):
        _select(consumer, queue)
        try:
            consumer.add_task_queue(queue.actual)
        except BaseException:
            # The reconnect that follows must not meet the same refusal.
            consumer.app.amqp.queues.deselect(queue.actual)
            raise
    consumer.report_consuming()
    consumer.lime.reply(command, result={"queues": consumer.consuming()})


def cancel(consumer: Any, command: Command) -> None:
    """Stop consuming a queue; done when nothing of it waits in this worker. What runs goes on."""
    actual = _actual(consumer, command)
    tag = consumer.task_consumer._active_tags.get(actual)
    if tag is None:
        consumer.app.amqp.queues.deselect(actual)
    else:
        consumer.cancel_task_queue(actual)
    consumer.report_consuming()
    consumer.lime.cancelling.append((command, actual, tag))
    settle(consumer)


def consume_anew(consumer: Any, prefetch: int) -> None:
    """Of quorum queues, a consumer keeps the prefetch that it began with: it has to begin again."""
    consumer.task_consumer.qos(prefetch_count=prefetch, apply_global=False)
    consumer.task_consumer.cancel()
    consumer.task_consumer.consume()


def settle(consumer: Any) -> None:
    """Finish what `cancel` has begun. kombu puts the end of a consumer off while it reads for it (Redis)."""
    runtime = consumer.lime
    channel = consumer.task_consumer.channel
    for entry in list(runtime.cancelling):
        command, actual, tag = entry
        if tag is not None and tag in getattr(channel, "_consumers", ()):
            continue
        runtime.cancelling.remove(entry)
        requests = take_back(consumer, partial(came_from, consumer, actual, tag))
        give_back(consumer, requests)
        runtime.reply(command, result={"queues": consumer.consuming(), "given_back": len(requests)})


def came_from(consumer: Any, actual: str, tag: str | None, request: Any) -> bool:
    """Whether the message of a request was consumed from the queue `actual` (by the consumer `tag`)."""
    delivery = request.message.delivery_info or {}
    if tag is not None and delivery.get("consumer_tag") == tag:
        return True
    queues = consumer.app.amqp.queues
    exchange, key = delivery.get("exchange") or "", delivery.get("routing_key")
    if not exchange and key == actual:
        return True
    if not dict.__contains__(queues, actual):
        return False
    queue = dict.__getitem__(queues, actual)
    return (exchange, key) == (queue.exchange.name if queue.exchange else "", queue.routing_key)


def held(consumer: Any, command: Command) -> None:
    """How many messages of a queue this worker holds, running ones included."""
    actual = _actual(consumer, command)
    tag = consumer.task_consumer._active_tags.get(actual)
    requests = {*worker_state.reserved_requests, *worker_state.scheduled_requests, *worker_state.active_requests}
    count = sum(
        1 for request in requests if not request.acknowledged and came_from(consumer, actual, tag, request)
    )
    consumer.lime.reply(command, result={"held": count})


def offline(consumer: Any) -> None:
    """While there is no connection: what the next one will consume. Nothing is prefetched then."""
    runtime = consumer.lime
    for command, _, _ in runtime.cancelling:
        runtime.reply(command, result={"queues": _selected(consumer), "given_back": 0})
    runtime.cancelling.clear()
    kept = []
    while runtime.inbox:
        command = runtime.inbox.popleft()
        if command.command not in {"consume", "cancel"}:
            kept.append(command)
            continue
        try:
            if command.command == "consume":
                _select(consumer, known_queue(runtime, command))
            else:
                consumer.app.amqp.queues.deselect(_actual(consumer, command))
        except CommandError as error:
            runtime.reply(command, error=str(error))
            continue
        runtime.reply(command, result={"queues": _selected(consumer), "given_back": 0})
    runtime.inbox.extendleft(reversed(kept))
