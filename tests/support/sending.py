"""What the tests of the task library share: settings by hand, apps that leave nothing behind, what lies in a queue."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import kombu
from celery import _state

from limetaskd.core.names import Cluster
from limetaskd.core.settings import Queue, Routing, Settings
from limetaskd.tasks import app as app_module
from limetaskd.tasks.binding import bound_apps
from limetaskd.tasks.conf import celery_settings
from tests.support.guard import GUARD, kill_session
from tests.support.waiting import wait_until

DEFAULT, ASAP, BACKGROUND, SPECIAL = "lime_default", "lime_asap", "lime_background", "lime_special"
SETTINGS_VARIABLE = "TEST_SETTINGS"


def make_settings(broker_url: str, backend_url: str | None = None, **changes: Any) -> Settings:
    """Settings with a default queue, two categories and one task of its own; `changes` are fields of Settings."""
    cluster = Cluster(changes.get("prefix", ""), changes.get("suffix", ""))
    queue_type = changes.get("queue_type", "classic")
    keys = {DEFAULT: "lime_default_key", ASAP: ASAP, BACKGROUND: BACKGROUND, SPECIAL: SPECIAL}
    values: dict[str, Any] = {
        "application": "limetask",
        "prefix": "",
        "suffix": "",
        "exchange": "lime_exchange",
        "queues": [
            Queue(
                name,
                cluster.actual(name),
                "lime_exchange",
                "topic" if queue_type == "quorum" else "direct",
                cluster.routing_key(key),
                queue_type,
            )
            for name, key in keys.items()
        ],
        "routing": Routing(DEFAULT, {"asap": ASAP, "background": BACKGROUND}, {"my.special.task": SPECIAL}),
        **changes,
    }
    return Settings(broker_url=broker_url, backend_url=backend_url, **values)


def without(settings: Settings, *names: str) -> Settings:
    """`settings` without these queues."""
    return dataclasses.replace(settings, queues=[queue for queue in settings.queues if queue.name not in names])


@contextmanager
def clean_apps() -> Iterator[None]:
    """The apps made inside are current and default nowhere behind it."""
    before = _state._tls.current_app, _state.default_app, app_module._default
    try:
        yield
    finally:
        _state._tls.current_app, _state.default_app, app_module._default = before
        for app in bound_apps:
            # Results that a group left subscribed would go on looking for their server when they are freed.
            consumer = getattr(app._backend_cache, "result_consumer", None)
            if consumer is not None and hasattr(consumer, "subscribed_to"):
                consumer.subscribed_to.clear()


def connection(settings: Settings) -> kombu.Connection:
    """Of the tests themselves, with the names of the cluster."""
    conf = celery_settings(settings)
    return kombu.Connection(conf["broker_url"], transport_options=conf["broker_transport_options"])


def take_all(settings: Settings, actual: str) -> list[Any]:
    """Take every message out of one queue; each has `headers`, `properties`, `delivery_info`, `payload`."""
    found = []
    with connection(settings) as client:
        channel = client.channel()
        while True:
            try:
                message = kombu.Queue(actual)(channel).get(no_ack=True)
            except client.channel_errors as error:
                if getattr(error, "code", None) == 404:
                    return found
                raise
            if message is None:
                return found
            found.append(message)


def tasks_in(settings: Settings, actual: str) -> list[str]:
    """Names of the tasks that wait in one queue, taken out of it."""
    return [message.headers["task"] for message in take_all(settings, actual)]


class Worker:
    """A `celery worker` of `tests.support.sending_tasks`, in a process of its own."""

    def __init__(self, settings: Settings, *arguments: str, name: str = "w") -> None:
        self.settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix="lt-worker-", dir="/tmp"))
        GUARD.add_folder(str(self.folder))
        self.log = self.folder / "log"
        environment = {**os.environ, SETTINGS_VARIABLE: settings.to_json(), "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "celery", "-A", "tests.support.sending_tasks", "worker", "-l", "INFO",
                    "-n", f"{name}@test", "--without-gossip", "--without-mingle", *arguments,
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )  # fmt: skip
        GUARD.add_session(self.process.pid)

    def wait_ready(self) -> Worker:
        wait_until(lambda: "ready." in self.log.read_text() or self.process.poll() is not None, 60, self.text)
        assert self.process.poll() is None, self.text()
        return self

    def text(self) -> str:
        return self.log.read_text(errors="replace")[-8000:]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        kill_session(self.process.pid)
        self.process.wait(30)
        GUARD.forget_session(self.process.pid)

    def __enter__(self) -> Worker:
        return self.wait_ready()

    def __exit__(self, *_: object) -> None:
        self.stop()
