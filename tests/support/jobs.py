"""The task module of the worker tests, and the brokers that they run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

JOBS = '''
import os, signal, subprocess, sys, time
from celery.exceptions import Ignore, Reject
from limetaskd.tasks.decorators import task


def note(text):
    fd = os.open(os.environ["LT_OUT"], os.O_WRONLY | os.O_APPEND)
    os.write(fd, f"{text}\\n".encode())
    os.close(fd)


@task
def number(n, seconds=0.0):
    """Notes its number when it is done."""
    if seconds:
        time.sleep(seconds)
    note(n)
    return n


@task
def begin_and_end(n, seconds):
    note(f"begin{n}")
    time.sleep(seconds)
    note(f"end{n}")


@task
def until(path, n=0):
    """Runs until the file exists."""
    note(f"begin{n}")
    while not os.path.exists(path):
        time.sleep(0.01)
    note(f"end{n}")


@task
def fail():
    raise ValueError("on purpose")


@task
def fail_after(path):
    """Runs until the file exists."""
    note("begin0")
    while not os.path.exists(path):
        time.sleep(0.01)
    raise ValueError("on purpose")


@task(bind=True, max_retries=2)
def retried(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0)


@task(time_limit=1)
def too_long():
    time.sleep(120)


@task(delivery="at-most-once")
def die_once():
    os.kill(os.getpid(), signal.SIGKILL)


@task
def ignored():
    raise Ignore()


@task
def rejected():
    raise Reject("no", requeue=False)


@task
def leave():
    sys.exit(3)


@task
def say(text):
    print(text)


@task
def pid():
    return os.getpid()


@task(bind=True)
def sends(self):
    number.delay(1)


@task
def descriptors():
    """What a pool child has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    return found
'''


@dataclass(frozen=True)
class Urls:
    kind: str
    broker: str
    backend: str


@pytest.fixture(params=["amqp", "redis"])
def urls(request: pytest.FixtureRequest) -> Any:
    """A fresh virtual host or database, and a result store; each test runs on both brokers."""
    backend = request.getfixturevalue("redis_url")
    broker = request.getfixturevalue("amqp_url") if request.param == "amqp" else backend
    return Urls(request.param, broker, backend)
