"""Tasks for the tests of the task library; imported by `celery -A` with the settings in the environment."""

from __future__ import annotations

import os
from typing import Any

from celery import chain, chord, group

from limetaskd import send_task, task
from limetaskd.core.settings import Settings
from limetaskd.tasks.app import build_app
from limetaskd.tasks.message import header_of, queue_of
from limetaskd.tasks.user import current_user, user_of

if os.environ.get("TEST_SETTINGS"):
    app = build_app(Settings.from_json(os.environ["TEST_SETTINGS"]))


def seen(request: Any) -> dict[str, Any]:
    """How this message came."""
    return {
        "queue": queue_of(request),
        "user": user_of(request),
        "current": current_user(),
        "retries": request.retries,
        "sent_at": header_of(request, "__sent_at"),
        "type": header_of(request, "__routed_type"),
    }


@task(bind=True, name="t.where")
def where(self: Any, *_args: Any) -> dict[str, Any]:
    return seen(self.request)


@task(bind=True, name="t.where_asap", qos="asap")
def where_asap(self: Any, *_args: Any) -> dict[str, Any]:
    return seen(self.request)


@task(name="t.add")
def add(a: int, b: int) -> int:
    return a + b


@task(name="t.total", qos="asap")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@task(bind=True, name="t.again", qos="asap", max_retries=3)
def again(self: Any, history: list[Any], countdown: float = 0, options: dict[str, Any] | None = None) -> list[Any]:
    """Retries twice, and returns how each try came."""
    history = [*history, seen(self.request)]
    if self.request.retries < 2:
        raise self.retry(args=(history, countdown, options), countdown=countdown, **(options or {}))
    return history


@task(bind=True, name="t.parent")
def parent(self: Any) -> list[str]:
    """Sends children by every way, and returns their ids."""
    sent = [
        where.delay(),
        where_asap.delay(),
        where.apply_async(countdown=0.01),
        send_task("t.where"),
        self.app.send_task("t.where"),
        where.s().apply_async(),
    ]
    return [result.id for result in sent]


@task(name="t.canvas")
def canvas() -> list[str]:
    """A chain, a group and a chord from inside a task."""
    first = chain(add.s(1, 2), add.s(3)).apply_async()
    second = group(add.s(1, 1), add.s(2, 2)).apply_async()
    third = chord([add.s(1, 1), add.s(2, 2)], total.s())()
    return [first.id, *[child.id for child in second.children], third.id]
