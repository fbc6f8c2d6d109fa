"""From a request to `<queue>.quarantine`: the message as it came, with what an operator must know beside it.

A classic durable queue, whatever type the others have: reading a quorum queue and giving its messages back would use
up their delivery limit. It is published through the default exchange, so nothing binds it to anything.
"""

from __future__ import annotations

from typing import Any

from kombu import Queue

from limetaskd.core.quarantine import HEADER, Entry, quarantine_queue
from limetaskd.tasks.kept import PROPERTIES


def send_to_quarantine(
    app: Any, request: Any, queue: str, deaths: list[dict[str, Any]], timeout_s: float
) -> str:
    """Publish, confirmed where the broker can; the name of the queue. Raises what the broker and its client raise."""
    message = request.message
    name = quarantine_queue(queue)
    delivery = message.delivery_info or {}
    entry = Entry(
        task_id=request.id,
        task_name=request.task.name,
        queue=queue,
        exchange=str(delivery.get("exchange") or ""),
        routing_key=str(delivery.get("routing_key") or queue),
        deaths=deaths,
    )
    headers = {**(message.headers or {}), HEADER: entry.to_json()}
    headers.pop("redelivered", None)
    properties = {key: message.properties[key] for key in PROPERTIES if message.properties.get(key) is not None}
    with app.amqp.producer_pool.acquire(block=True, timeout=timeout_s) as producer:
        producer.publish(
            message.body,
            exchange="",
            routing_key=name,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers=headers,
            declare=[Queue(name, durable=True, queue_arguments={"x-queue-type": "classic"})],
            delivery_mode=2,
            retry=True,
            retry_policy={"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 1.0},
            **properties,
        )
    return name
