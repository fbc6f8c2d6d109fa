"""Errors of sending that Celery's and kombu's own handlers catch too, and those that end a task from outside."""

from __future__ import annotations

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from kombu.exceptions import OperationalError

from limetaskd.errors import LimetaskError, PublishError


class BrokerPublishError(PublishError, OperationalError):  # type: ignore[misc]
    """The task was not confirmed by the broker within publish.timeout; `__cause__` is what the broker said last."""


class BrokerRefusedError(BrokerPublishError):
    """The broker refused the task for good: trying again would not help."""


class TaskKilledError(LimetaskError):
    """The task was ended from outside."""


_KINDS: dict[str, type[Exception]] = {"time_limit": TimeLimitExceeded, "worker_lost": WorkerLostError}


def killed_error(reason: str, text: str) -> Exception:
    """What the caller of a task that was ended from outside gets, by `task_failure_reason`."""
    if reason == "not_registered":
        from celery.exceptions import NotRegistered  # only here: the agent does without Celery for long

        return NotRegistered(text)  # type: ignore[no-any-return]
    kind = _KINDS.get(reason)
    return TaskKilledError(f"{reason}: {text}") if kind is None else kind(text)
