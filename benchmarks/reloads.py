"""Many reloads of one daemon under load: time, descriptors, processes, memory; sent against run.

    python -m benchmarks.reloads [--reloads 1000] [--broker rabbitmq|redis]

Two configurations take turns: a queue moves between two pools and back, one pool goes and comes, slots, timeouts and
categories change. A process of its own sends numbered tasks all the time. Fails when a task was lost or ran twice, or
when the daemon holds more descriptors or processes at the end than after the first ten reloads.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.support import crm, load
from tests.support.brokers import RabbitMQ, Redis
from tests.support.daemon import Daemon
from tests.support.load import Load

WARM_UP = 10
EXPECTED_GROWTH = 4


def configurations(broker: str, backend: str) -> tuple[dict[str, Any], dict[str, Any]]:
    one = crm.configuration(broker, backend, imports=[crm.MODULE, load.MODULE], pools={})
    two = copy.deepcopy(one)
    two["tasks"]["routing"]["qos"]["email"] = "q_background"
    two["limetaskd"]["pools"] = {
        "asap": {"concurrency": 3, "queues": ["q_asap", "q_background"]},
        "default": {"shutdown_timeout": "20s"},
    }
    return one, two


def figures(daemon: Daemon) -> dict[str, int]:
    process = psutil.Process(daemon.pid)
    return {
        "descriptors": len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())),
        "processes": len(daemon.processes()),
        "memory_bytes": process.memory_info().rss,
    }


def run(daemon: Daemon, plans: tuple[dict[str, Any], dict[str, Any]], reloads: int) -> int:
    """The exit code."""
    took: list[float] = []
    first: dict[str, int] = {}
    with Load(daemon, ("asap", "background", "other")) as work:
        work.goes_on()
        for number in range(reloads):
            daemon.configure(plans[(number + 1) % 2])
            begun = time.perf_counter()
            daemon.ctl("reload")
            took.append(time.perf_counter() - begun)
            if number + 1 == WARM_UP:
                first = figures(daemon)
                print(f"after {WARM_UP}: {first}", flush=True)
            elif (number + 1) % 100 == 0:
                print(f"after {number + 1}: {figures(daemon)}, {work.sent} tasks sent", flush=True)
        work.goes_on()
    work.check()
    last = figures(daemon)
    median_ms = statistics.median(took) * 1000
    print(f"{reloads} reloads, median {median_ms:.0f} ms with the client, longest {max(took):.2f} s")
    print(f"{work.sent} tasks sent, each ran once; {first} -> {last}")
    grown = [key for key in ("descriptors", "processes") if last[key] > first[key] + EXPECTED_GROWTH]
    if grown:
        print(f"these grew: {', '.join(grown)}")
    return 1 if grown else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reloads", type=int, default=1000)
    parser.add_argument("--broker", choices=("rabbitmq", "redis"), default="redis")
    arguments = parser.parse_args()
    with Redis(persistent=False) as redis:
        rabbitmq = RabbitMQ() if arguments.broker == "rabbitmq" else None
        if rabbitmq is not None:
            rabbitmq.start()
        plans = configurations(rabbitmq.url if rabbitmq is not None else redis.url, redis.url)
        daemon = Daemon(plans[0])
        daemon.module(crm.MODULE, crm.SOURCE)
        daemon.module(load.MODULE, load.SOURCE)
        try:
            with daemon:
                daemon.wait_running()
                return run(daemon, plans, max(arguments.reloads, WARM_UP))
        finally:
            if rabbitmq is not None:
                rabbitmq.close()


if __name__ == "__main__":
    sys.exit(main())
