"""Queues as kombu declares them. Without Celery: the agent needs no more."""

from __future__ import annotations

from functools import lru_cache

import kombu

from limetaskd.core.settings import Queue


@lru_cache(maxsize=4096)
def kombu_queue(queue: Queue) -> kombu.Queue:
    """The declaration of one queue: durable, with its own binding, so that it gets nobody else's messages.

    A classic queue carries no `x-queue-type`: queues that exist already were declared without it.
    """
    return kombu.Queue(
        queue.actual,
        exchange=kombu.Exchange(queue.exchange, type=queue.exchange_type, durable=True),
        routing_key=queue.routing_key,
        queue_arguments={"x-queue-type": "quorum"} if queue.queue_type == "quorum" else None,
        durable=True,
    )
