"""The result store in Redis: a send does not touch it, and what has ended stays ended."""

from __future__ import annotations

from typing import Any

from celery import states
from celery.backends import redis as celery_redis

_ALIASES = {
    "redis": "limetaskd.tasks.results:RedisBackend",
    "rediss": "limetaskd.tasks.results:RedisBackend",
    "sentinel": "limetaskd.tasks.results:SentinelBackend",
}


_driver_info: dict[str, Any] = {}  # as `_add_driver_info` found it


class _Results:
    """What both backends change in Celery's."""

    client: Any
    connparams: dict[str, Any]
    expires: Any

    def _add_driver_info(self) -> None:
        """Once in a process and those that it forks: it reads the metadata of what is installed."""
        if not _driver_info:
            known = set(self.connparams)
            super()._add_driver_info()  # type: ignore[misc]
            _driver_info.update({key: value for key, value in self.connparams.items() if key not in known})
        self.connparams |= _driver_info

    @property
    def connected(self) -> bool:
        """Whether it may hold a connection: nothing is opened before its client is made."""
        return "client" in vars(self)

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Nothing: `AsyncResult.get` subscribes, and then reads what is there already.

        Celery subscribes at each send. Then a result store that is away or hangs delays sends, and a web application
        that never fetches its results collects subscriptions.
        """

    def on_connection_error(self, max_retries: Any, exc: Exception, intervals: Any, retries: int) -> Any:
        """Celery's, of writing; of reading it calls the other one. Whoever wants to know hears of both."""
        self.on_backend_retryable_error(exc)  # type: ignore[attr-defined]
        return super().on_connection_error(max_retries, exc, intervals, retries)  # type: ignore[misc]

    def _set_with_state(self, key: Any, value: Any, state: str) -> Any:
        """A try that is over must not overwrite the end of a later one.

        Celery sends the retry first and stores RETRY then: by that time a quick retry may have stored its SUCCESS.
        """
        if state != states.RETRY:
            return super()._set_with_state(key, value, state)  # type: ignore[misc]
        return self.ensure(self._store_retry, (key, value))  # type: ignore[attr-defined]

    def _store_retry(self, key: Any, value: Any) -> None:
        def store(pipe: Any) -> None:
            current = pipe.get(key)
            ended = current is not None and self.decode_result(current)["status"] in states.READY_STATES  # type: ignore[attr-defined]
            pipe.multi()
            if not ended:
                pipe.set(key, value, ex=self.expires or None)
                pipe.publish(key, value)

        self.client.transaction(store, key)


class RedisBackend(_Results, celery_redis.RedisBackend):  # type: ignore[misc]
    """redis:// and rediss://"""


class SentinelBackend(_Results, celery_redis.SentinelBackend):  # type: ignore[misc]
    """sentinel://"""


def use_our_results(app: Any) -> None:
    """Make `app` take these backends for its Redis URLs."""
    app.loader.override_backends = {**app.loader.override_backends, **_ALIASES}
