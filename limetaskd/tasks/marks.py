"""What must be known of a task on every host, kept beside its result: that it has ended for good, and its deaths.

    limetaskd-ended-<id>    a tombstone: why it was ended; whoever gets its message again acknowledges it unrun
    limetaskd-deaths-<id>   a list: one JSON object for each worker that died by itself while it ran the task

Both live for a week. A result store that can only store results (rpc, a database) keeps neither: deaths are then
counted by this process alone. A store that is away never stops a task: what cannot be known is not known.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from celery.backends.base import BaseKeyValueStoreBackend

logger = logging.getLogger(__name__)

LIFE_S = 7 * 86400
_MOST_DEATHS = 50
_MOST_LOCAL = 10_000
# After a failure the store is left alone for so long: a question may block for seconds.
_REST_S = 10.0


@dataclass(frozen=True)
class Marked:
    """`ended`: the reason, None: not ended. `deaths`: what is known of each, the oldest first."""

    ended: str | None = None
    deaths: list[dict[str, Any]] = field(default_factory=list)


class Marks:
    """`backend`: Celery's result backend; `prefix`: of the cluster's keys."""

    def __init__(self, backend: Any, prefix: str) -> None:
        self._backend = backend
        self._prefix = prefix
        self._shared = isinstance(backend, BaseKeyValueStoreBackend)
        self._redis = self._shared and hasattr(backend, "client") and hasattr(backend.client, "rpush")
        self._errors: tuple[type[BaseException], ...] = (
            *getattr(backend, "connection_errors", ()),
            *getattr(backend, "channel_errors", ()),
            OSError,
        )
        self._local: dict[str, list[dict[str, Any]]] = {}
        self._rest_until = 0.0

    def _key(self, kind: str, task_id: str) -> str:
        return f"{self._prefix}limetaskd-{kind}-{task_id}"

    def _failed(self, what: str, task_id: str, error: BaseException) -> None:
        self._rest_until = time.monotonic() + _REST_S
        logger.error("%s of task %s: the result store is away: %s", what, task_id, type(error).__name__)

    def end(self, task_id: str, reason: str) -> bool:
        """Put up the tombstone; False when that is not possible (now, or with this store)."""
        if not self._shared:
            return False
        try:
            if self._redis:
                self._backend.client.set(self._key("ended", task_id), reason, ex=LIFE_S)
            else:
                self._backend.set(self._key("ended", task_id), reason)
        except self._errors as error:
            self._failed("the tombstone", task_id, error)
            return False
        return True

    def died(self, task_id: str, death: dict[str, Any]) -> list[dict[str, Any]]:
        """Count one more death; all that are known now."""
        # The daemon asks again when an answer is late, and the first question may be answered all the same: the very
        # same death counts once.
        local = self._local.setdefault(task_id, [])
        if death not in local:
            local.append(death)
        if len(self._local) > _MOST_LOCAL:
            del self._local[next(iter(self._local))]
        if not self._shared:
            return list(local)
        key = self._key("deaths", task_id)
        try:
            if self._redis:
                with self._backend.client.pipeline() as pipe:
                    item = json.dumps(death)
                    pipe.lrem(key, 0, item)
                    pipe.rpush(key, item)
                    pipe.ltrim(key, -_MOST_DEATHS, -1)
                    pipe.expire(key, LIFE_S)
                    pipe.lrange(key, 0, -1)
                    return [json.loads(item) for item in pipe.execute()[4]]
            deaths = [*(known for known in self._read(key) if known != death), death]
            self._backend.set(key, json.dumps(deaths))
            return deaths
        except self._errors as error:
            self._failed("a death", task_id, error)
            return list(local)

    def _read(self, key: str) -> list[dict[str, Any]]:
        text = self._backend.get(key)
        return list(json.loads(text)) if text else []

    def look(self, task_id: str) -> Marked:
        """What is known of a task whose message has come again."""
        local = list(self._local.get(task_id, ()))
        if not self._shared or time.monotonic() < self._rest_until:
            return Marked(None, local)
        keys = self._key("ended", task_id), self._key("deaths", task_id)
        try:
            if self._redis:
                with self._backend.client.pipeline(transaction=False) as pipe:
                    pipe.get(keys[0])
                    pipe.lrange(keys[1], 0, -1)
                    ended, items = pipe.execute()
                deaths = [json.loads(item) for item in items]
            else:
                ended, deaths = self._backend.get(keys[0]), self._read(keys[1])
        except self._errors as error:
            self._failed("the marks", task_id, error)
            return Marked(None, local)
        reason = ended.decode() if isinstance(ended, bytes) else ended
        return Marked(str(reason) if reason else None, deaths)

    def forget(self, task_id: str) -> None:
        """As if nothing had happened: an operator sends it again. Raises what the store raises."""
        self._local.pop(task_id, None)
        if self._redis:
            self._backend.client.delete(self._key("ended", task_id), self._key("deaths", task_id))
        elif self._shared:
            self._backend.delete(self._key("ended", task_id))
            self._backend.delete(self._key("deaths", task_id))
