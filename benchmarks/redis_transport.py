"""Throughput and latency of our Redis transport beside plain kombu's, on one private Redis, in one run.

    python -m benchmarks.redis_transport [--messages 5000] [--fsync always|everysec|no] [--rounds 3] [--embedded]

`--embedded`: not redis-server on TCP, but the server of `limetaskd --embedded` on its UNIX socket.

Each round sends N messages, then consumes and acknowledges them, with kombu and with ours in turn, so that a noisy
machine disturbs both; the median round counts. `idle ms` is from the send to the consumer that waits. Compare the
ratios: the numbers belong to the machine. Seen on two busy cores (kombu 5.7.0, Redis 7.0.15, Valkey 9.1.2):

                        send/s        consume/s      idle ms        ratio of consuming
    Redis, always       2017 -> 1897   438 -> 1030   1.3 -> 1.0     1.7 to 2.4
    Redis, everysec     3915 -> 3699  2561 -> 4372   0.7 -> 1.0     1.7 to 2.0
    embedded, always    1795 -> 2170   946 -> 1758   1.2 -> 1.3     1.9

Taking and recording are one round trip here and two in kombu, hence the gain; a send and a wake-up cost about the
same. `always` (each change on the disk before it is answered) costs one sender half of its speed, 0.2 ms a send.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kombu import Connection, Consumer, Exchange, Queue

from limetaskd.daemon import embedded
from limetaskd.tasks.redis_transport import transport_url
from tests.support.brokers import Redis
from tests.support.waiting import wait_until

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


@contextmanager
def running(own: bool, fsync: str) -> Iterator[str]:
    """A private server; the URL."""
    if not own:
        with Redis(["--appendfsync", fsync]) as server:
            yield server.url
        return
    with tempfile.TemporaryDirectory(prefix="lt-bench-", dir="/tmp") as folder:
        embedded.prepare(folder)
        path = embedded.socket_path(folder)
        argv = [*embedded.server_argv(embedded.find_server(), folder), "--appendfsync", fsync]
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: asyncio.run(embedded.ping(path, 1)))
            yield f"redis+socket://{path}"
        finally:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fsync", choices=("always", "everysec", "no"), default="always")
    parser.add_argument("--embedded", action="store_true")
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {"kombu": [], "ours": []}
    with running(options.embedded, options.fsync) as url:
        for _ in range(options.rounds):
            for name, address in (("kombu", url), ("ours", transport_url(url))):
                with Connection(url) as connection:
                    connection.default_channel.client.flushall()
                results[name].append(one_round(address, options.messages))
    print(f"{options.messages} messages a round, median of {options.rounds} rounds, appendfsync {options.fsync}")
    print(f"{'':12}{'kombu':>12}{'ours':>12}{'ratio':>8}")
    for key in results["kombu"][0]:
        plain, ours = (statistics.median(item[key] for item in results[name]) for name in ("kombu", "ours"))
        print(f"{key:12}{plain:12.2f}{ours:12.2f}{ours / plain:8.2f}")


if __name__ == "__main__":
    main()
