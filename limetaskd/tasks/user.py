"""Whose task it is: `task_user` in the sender, inherited by the tasks that a task sends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery._state import get_current_worker_task

from limetaskd.tasks.message import USER_HEADER, header_of

_UNSET = object()
_user: ContextVar[Any] = ContextVar("limetaskd_task_user", default=_UNSET)


@contextmanager
def task_user(user_id: str | int | None) -> Iterator[None]:
    """Tasks sent inside carry `user_id` (as text), and so do the tasks that those send. None: nobody."""
    token = _user.set(None if user_id is None else str(user_id))
    try:
        yield
    finally:
        _user.reset(token)


def user_of(request: Any) -> str | None:
    """The user of a task's request; None when there is none."""
    value = header_of(request, USER_HEADER)
    return None if value is None else str(value)


def current_user() -> str | None:
    """The user of what runs now: of `task_user`, else of the task that a worker executes here."""
    value = _user.get()
    if value is not _UNSET:
        return value if isinstance(value, str) else None
    task = get_current_worker_task()
    return None if task is None else user_of(task.request)
