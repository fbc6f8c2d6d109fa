"""Memory, start and recovery: limetaskd with and without preload, beside plain `celery worker` processes.

    python -m benchmarks.preload [--heavy]

Four dedicated pools of two slots and a schedule. All in one run on one machine: the ratios are what counts. Memory is
PSS (shared pages counted once, in shares) of all processes, the image and the agent included; the daemon apart.
`replaced_ms` is from the death of a worker (its pidfd becomes readable) to the first act of its replacement (it opens
its log), `recovery_ms` from the kill -9 to the result of the replacement's first task in the sender.
`--heavy` imports numpy, pandas and sqlalchemy in the task module (they must be installed).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.support.brokers import RabbitMQ, Redis
from tests.support.daemon import Daemon
from tests.support.sender import Sender
from tests.support.waiting import wait_until

LIGHT = """
from limetaskd import task

@task(name="bench.noop")
def noop():
    return 1

@task(name="bench.busy")
def busy():
    return sum(range(1000))
"""
HEAVY = "import numpy, pandas, sqlalchemy\n"
QUEUES = {"asap": "q_asap", "background": "q_background", "scheduled": "q_scheduled"}
KILLS = 25
IN_OPEN = 0x20  # inotify(7)


def pss(pids: list[int]) -> float:
    """MiB; of what has ended meanwhile, none."""
    found = 0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += psutil.Process(pid).memory_full_info().pss
    return found / 2**20


def replaced_ms(pid: int, log: Path) -> float:
    """kill -9 of the worker `pid`, whose replacement opens `log`."""
    notes = ctypes.CDLL(None).inotify_init1(os.O_CLOEXEC)
    assert ctypes.CDLL(None).inotify_add_watch(notes, bytes(log), IN_OPEN) >= 0
    death = os.pidfd_open(pid)
    moments: dict[int, float] = {}
    poller = select.poll()
    for descriptor in (notes, death):
        poller.register(descriptor, select.POLLIN)
    os.kill(pid, signal.SIGKILL)
    while len(moments) < 2:
        ready = poller.poll(10_000)
        assert ready
        for descriptor, _ in ready:
            moments[descriptor] = time.monotonic()
            poller.unregister(descriptor)
    for descriptor in (notes, death):
        os.close(descriptor)
    return (moments[notes] - moments[death]) * 1000


def configuration(broker: str, backend: str, preload: bool) -> dict[str, Any]:
    return {
        "tasks": {
            "broker_connection_string": broker,
            "backend_connection_string": backend,
            "routing": {"qos": QUEUES},
        },
        "limetaskd": {
            "strategy": "dedicated", "concurrency": 2, "imports": ["benchtasks"], "preload": preload,
            "restart": {"period": "10ms"},
        },
    }  # fmt: skip


def measure(broker: str, backend: str, source: str, preload: bool) -> dict[str, float]:
    daemon = Daemon(configuration(broker, backend, preload))
    daemon.module("benchtasks", source)
    try:
        begun = time.monotonic()
        daemon.start()
        daemon.wait_running()
        started_s = time.monotonic() - begun
        if preload:
            wait_until(lambda: daemon.named("limetaskd:spare"))  # counts, too
        others = [process.pid for process in daemon.processes() if process.pid != daemon.pid]
        result = {"pss_mib": pss(others), "daemon_mib": pss([daemon.pid]), "start_s": started_s}
        recoveries, replacements = [], []
        with Sender(daemon) as sender:
            sender.result(sender.send("bench.noop", queue="q_asap"))
            for _ in range(KILLS):
                wait_until(lambda: daemon.worker("asap:0")["ready"])
                os.kill(daemon.worker("asap:0")["pid"], signal.SIGKILL)
                killed = time.monotonic()
                sender.result(sender.send("bench.noop", queue="q_asap"))
                recoveries.append((time.monotonic() - killed) * 1000)
            for _ in range(KILLS):
                wait_until(lambda: daemon.worker("asap:0")["ready"])
                wait_until(lambda: not preload or daemon.named("limetaskd:spare"))
                log = daemon.state_dir / "log" / "asap:0.log"
                replacements.append(replaced_ms(daemon.worker("asap:0")["pid"], log))
        result["recovery_ms"] = statistics.median(recoveries)
        result["replaced_ms"] = statistics.median(replacements)
        daemon.stop()
        return result
    finally:
        daemon.close()


def measure_plain(broker: str, backend: str, source: str, folder: Path) -> dict[str, float]:
    """Four `celery worker` processes of two slots and a `celery beat`, as supervisord would start them."""
    app = (
        "from celery import Celery\n"
        f"app = Celery('bench', broker={broker!r}, backend={backend!r})\n"
        + source.replace("from limetaskd import task", "task = app.task")
    )
    (folder / "plain.py").write_text(app)
    begun = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "plain", *arguments], cwd=folder,
            stdout=(folder / f"{number}.log").open("wb"), stderr=subprocess.STDOUT,
        )
        for number, arguments in enumerate(
            [["worker", "-l", "INFO", "-c", "2", "-Q", f"p{number}", "-n", f"p{number}@%h"] for number in range(4)]
            + [["beat", "-s", str(folder / "schedule")]]
        )
    ]  # fmt: skip
    try:
        wait_until(lambda: all("ready." in (folder / f"{n}.log").read_text() for n in range(4)), 90)
        started_s = time.monotonic() - begun
        pids = [process.pid for process in processes]
        pids += [child.pid for pid in list(pids) for child in psutil.Process(pid).children(recursive=True)]
        return {"pss_mib": pss(pids), "start_s": started_s}
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heavy", action="store_true")
    heavy = parser.parse_args().heavy
    source = (HEAVY if heavy else "") + LIGHT
    with RabbitMQ() as rabbitmq, Redis() as redis:
        results = {
            "plain": measure_plain(rabbitmq.url, redis.url_of(1), source, Path(rabbitmq.folder)),
            "exec": measure(rabbitmq.new_vhost(), redis.url_of(2), source, preload=False),
            "preload": measure(rabbitmq.new_vhost(), redis.url_of(3), source, preload=True),
        }
    plain = results["plain"]["pss_mib"]
    for result in results.values():
        result["pss_of_plain"] = result["pss_mib"] / plain
    print(json.dumps({name: {k: round(v, 2) for k, v in result.items()} for name, result in results.items()}, indent=1))


if __name__ == "__main__":
    main()
