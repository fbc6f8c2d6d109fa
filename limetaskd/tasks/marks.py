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
# A store that has not answered is left alone for a moment, and longer when the question took long: each would.
_REST_S = 1.0
_LONG_REST_S = 20.0
_SLOW_S = 5.0  # a store that works answers sooner, also on a host that is busy
_SAY_EVERY_S = 10.0


@dataclass(frozen=True)
class Marked:
    """`ended`: the reason, None: not ended. `deaths`: what is known of each, the oldest first.

    `known` False: the store did not answer, and there may be more.
    """

    ended: str | None = None
    deaths: list[dict[str, Any]] = field(default_factory=list)
    known: bool = True


class Marks:
    """`backend`: Celery's result backend; `prefix`: of the cluster's keys."""

    def __init__(self, backend: Any, prefix: str) -> None:
        self._backend = backend
        self._prefix = prefix
        self.shared = isinstance(backend, BaseKeyValueStoreBackend)
        self._redis = self.shared and hasattr(backend, "client") and hasattr(backend.client, "rpush")
        errors = (*getattr(backend, "connection_errors", ()), *getattr(backend, "channel_errors", ()))
        self._errors: tuple[type[BaseException], ...] = (*errors, OSError)
        # Of the client library: an OSError may be anybody's.
        self.away_errors = tuple(kind for kind in errors if kind.__module__ != "builtins")
        self._local: dict[str, list[dict[str, Any]]] = {}
        self._rest_until = 0.0
        self._hung_until = 0.0
        self._quiet_until = 0.0

    def _key(self, kind: str, task_id: str) -> str:
        return f"{self._prefix}limetaskd-{kind}-{task_id}"

    @property
    def rests(self) -> bool:
        """The store did not answer a moment ago, and is left alone."""
        return time.monotonic() < self._rest_until

    @property
    def hangs(self) -> bool:
        """It took so long not to answer that a question must not be asked without need."""
        return time.monotonic() < self._hung_until

    def unanswered(self, asked: float) -> None:
        """The store has not answered what it was asked then (monotonic s)."""
        self._rest_until = max(time.monotonic() + _REST_S, self._hung_until)
        self.perhaps_unanswered(asked)

    def perhaps_unanswered(self, asked: float) -> None:
        """As `unanswered`, of an answer that may stand for none: it does when it took long."""
        now = time.monotonic()
        if now - asked > _SLOW_S:
            self._rest_until = self._hung_until = now + _LONG_REST_S

    def _failed(self, what: str, task_id: str, asked: float, error: BaseException) -> None:
        self.unanswered(asked)
        now = time.monotonic()
        if now < self._quiet_until:
            return
        self._quiet_until = now + _SAY_EVERY_S
        logger.error("%s of task %s: the result store is away: %s", what, task_id, type(error).__name__)

    def end(self, task_id: str, reason: str) -> bool:
        """Put up the tombstone; False when that is not possible (now, or with this store)."""
        if not self.shared:
            return False
        asked = time.monotonic()
        try:
            if self._redis:
                self._backend.client.set(self._key("ended", task_id), reason, ex=LIFE_S)
            else:
                self._backend.set(self._key("ended", task_id), reason)
        except self._errors as error:
            self._failed("the tombstone", task_id, asked, error)
            return False
        return True

    def died(self, task_id: str, death: dict[str, Any], *, ask: bool = True) -> list[dict[str, Any]]:
        """Count one more death; all that are known now. `ask` False: here alone, without the store."""
        # The daemon asks again when an answer is late, and the first question may be answered all the same: the very
        # same death counts once.
        local = self._local.setdefault(task_id, [])
        if death not in local:
            local.append(death)
        if len(self._local) > _MOST_LOCAL:
            del self._local[next(iter(self._local))]
        if not self.shared or not ask:
            return list(local)
        asked = time.monotonic()
        try:
            return self._count(self._key("deaths", task_id), death)
        except self._errors as error:
            self._failed("a death", task_id, asked, error)
            return list(local)

    def _count(self, key: str, death: dict[str, Any]) -> list[dict[str, Any]]:
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

    def _read(self, key: str) -> list[dict[str, Any]]:
        text = self._backend.get(key)
        return list(json.loads(text)) if text else []

    def look(self, task_id: str) -> Marked:
        """What is known of a task whose message has come again."""
        local = list(self._local.get(task_id, ()))
        if not self.shared:
            return Marked(None, local)
        if self.rests:
            return Marked(None, local, known=False)
        asked = time.monotonic()
        try:
            return self._look(self._key("ended", task_id), self._key("deaths", task_id))
        except self._errors as error:
            self._failed("the marks", task_id, asked, error)
            return Marked(None, local, known=False)

    def _look(self, ended_key: str, deaths_key: str) -> Marked:
        if self._redis:
            with self._backend.client.pipeline(transaction=False) as pipe:
                pipe.get(ended_key)
                pipe.lrange(deaths_key, 0, -1)
                ended, items = pipe.execute()
            deaths = [json.loads(item) for item in items]
        else:
            ended, deaths = self._backend.get(ended_key), self._read(deaths_key)
        reason = ended.decode() if isinstance(ended, bytes) else ended
        return Marked(str(reason) if reason else None, deaths)

    def state(self, task_id: str) -> str | None:
        """Celery's state of its result; None: nobody can tell."""
        if not self.shared or self.rests:
            return None
        asked = time.monotonic()
        try:
            return str(self._backend.get_state(task_id))
        except Exception as error:  # noqa: BLE001  away, or what is stored cannot be read
            self._failed("the result", task_id, asked, error)
            return None

    def forget(self, task_id: str) -> None:
        """As if nothing had happened: an operator sends it again. Raises what the store raises."""
        self._local.pop(task_id, None)
        if self._redis:
            self._backend.client.delete(self._key("ended", task_id), self._key("deaths", task_id))
        elif self.shared:
            self._backend.delete(self._key("ended", task_id))
            self._backend.delete(self._key("deaths", task_id))
