"""The result store in Redis as senders need it: a send does not touch it."""

from __future__ import annotations

from typing import Any

from celery.backends import redis as celery_redis

_ALIASES = {
    "redis": "limetaskd.tasks.results:RedisBackend",
    "rediss": "limetaskd.tasks.results:RedisBackend",
    "sentinel": "limetaskd.tasks.results:SentinelBackend",
}


class RedisBackend(celery_redis.RedisBackend):  # type: ignore[misc]
    """Celery's, but it subscribes to a result when somebody waits for it, not at each send.

    So a result store that is away or hangs delays no send, and a web application that never fetches its results
    does not collect subscriptions.
    """

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Nothing: `AsyncResult.get` subscribes and then reads what is there already."""


class SentinelBackend(celery_redis.SentinelBackend):  # type: ignore[misc]
    """Likewise, found by Sentinel."""

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Nothing."""


def use_lazy_results(app: Any) -> None:
    """Make `app` take these backends for its Redis URLs."""
    app.loader.override_backends = {**app.loader.override_backends, **_ALIASES}
