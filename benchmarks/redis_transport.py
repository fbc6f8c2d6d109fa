"""Throughput and latency of our Redis transport beside plain kombu's, on one private Redis, in one run.

    python -m benchmarks.redis_transport [--messages 5000] [--fsync always|everysec|no] [--rounds 3]

Each round sends N messages, then consumes and acknowledges them, with kombu and with ours in turn, so that a noisy
machine disturbs both; the median round counts. `idle ms` is from the send to the consumer that waits. Compare the
ratios: the numbers belong to the machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kombu import Connection, Consumer, Exchange, Queue

from limetaskd.tasks.redis_transport import transport_url
from tests.support.brokers import Redis

BODY = {"args": [7, "Acme"], "kwargs": {}, "filler": "x" * 300}
QUEUES = [Queue(f"bench{number}", Exchange("bench"), f"bench{number}") for number in range(4)]
IDLE_SENDS = 200


@contextmanager
def consuming(connection: Any, prefetch: int) -> Iterator[list[float]]:
    """Consume all queues; the list gets the time at which each message arrived."""
    arrived: list[float] = []

    def take(_: Any, message: Any) -> None:
        arrived.append(time.perf_counter())
        message.ack()

    with Consumer(connection, QUEUES, callbacks=[take], prefetch_count=prefetch):
        yield arrived


def drain(connection: Any, arrived: list[float], until: int) -> None:
    while len(arrived) < until:
        try:
            connection.drain_events(timeout=1)
        except TimeoutError:
            continue


def one_round(url: str, messages: int) -> dict[str, float]:
    """Messages a second sent and consumed, and the median latency of a waiting consumer in ms."""
    with Connection(url) as connection:
        producer = connection.Producer()
        for queue in QUEUES:
            queue(connection.default_channel).declare()
        begin = time.perf_counter()
        for number in range(messages):
            producer.publish(BODY, exchange="bench", routing_key=f"bench{number % len(QUEUES)}")
        sent_s = time.perf_counter() - begin
        with consuming(connection, prefetch=8) as arrived:
            begin = time.perf_counter()
            drain(connection, arrived, messages)
            consumed_s = time.perf_counter() - begin
            latencies = []
            with Connection(url) as other:
                sender = other.Producer()
                for number in range(IDLE_SENDS):
                    with_timeout(connection)  # the consumer waits now
                    begin = time.perf_counter()
                    sender.publish(BODY, exchange="bench", routing_key="bench1")
                    drain(connection, arrived, messages + number + 1)
                    latencies.append((arrived[-1] - begin) * 1000)
    return {
        "send/s": messages / sent_s,
        "consume/s": messages / consumed_s,
        "idle ms": statistics.median(latencies),
    }


def with_timeout(connection: Any) -> None:
    try:
        connection.drain_events(timeout=0.005)
    except TimeoutError:
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fsync", choices=("always", "everysec", "no"), default="always")
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {"kombu": [], "ours": []}
    with Redis(["--appendfsync", options.fsync]) as server:
        for _ in range(options.rounds):
            for name, url in (("kombu", server.url), ("ours", transport_url(server.url))):
                server.flush()
                results[name].append(one_round(url, options.messages))
    print(f"{options.messages} messages a round, median of {options.rounds} rounds, appendfsync {options.fsync}")
    print(f"{'':12}{'kombu':>12}{'ours':>12}{'ratio':>8}")
    for key in results["kombu"][0]:
        plain, ours = (statistics.median(item[key] for item in results[name]) for name in ("kombu", "ours"))
        print(f"{key:12}{plain:12.2f}{ours:12.2f}{ours / plain:8.2f}")


if __name__ == "__main__":
    main()
