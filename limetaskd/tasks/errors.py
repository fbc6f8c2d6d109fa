"""Errors of sending that Celery's and kombu's own handlers catch too."""

from __future__ import annotations

from kombu.exceptions import OperationalError

from limetaskd.errors import PublishError


class BrokerPublishError(PublishError, OperationalError):  # type: ignore[misc]
    """The task was not confirmed by the broker within publish.timeout; `__cause__` is what the broker said last."""


class BrokerRefusedError(BrokerPublishError):
    """The broker refused the task for good: trying again would not help."""
