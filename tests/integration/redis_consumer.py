"""A consumer to be killed: `python -m tests.integration.redis_consumer BROKER_URL PREFIX QUEUE...`.

It writes the number of each message into the list `done` and then acknowledges it; `ready` counts consumers.
"""

from __future__ import annotations

import sys
from typing import Any

import redis
from kombu import Connection, Consumer, Exchange, Queue

from limetaskd.tasks.redis_transport import transport_url


def main() -> None:
    url, prefix, *names = sys.argv[1:]
    record = redis.Redis.from_url(url)

    def take(body: Any, message: Any) -> None:
        record.rpush("done", body["n"])
        message.ack()

    queues = [Queue(name, Exchange("numbers"), name) for name in names]
    with (
        Connection(transport_url(url), transport_options={"global_keyprefix": prefix}) as connection,
        Consumer(connection, queues, callbacks=[take], prefetch_count=8),
    ):
        record.incr("ready")
        while True:
            try:
                connection.drain_events(timeout=1)
            except TimeoutError:
                continue


if __name__ == "__main__":
    main()
