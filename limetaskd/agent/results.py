"""The agent's hand in the result store: what the daemon has to say of a task whose worker can say nothing any more.

    end_task {"id", "reason", "text", "state"}
                                         tombstone and state (FAILURE if none is given) -> {"state": that, or "SUCCESS"
                                         when it was first}
    count_deaths {"deaths": [{"id", "death": {...} or null: not to be counted}]}
                                         -> {"counts": {id: deaths known now}, "done": ids whose SUCCESS is stored}
    revoke {"id"}                        tombstone, and word to the workers of all hosts

The store is not the broker: these work while that is away. Celery is imported with the first of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from limetaskd.agent.brokers import connection_of
from limetaskd.core.redact import redact_text
from limetaskd.core.settings import Settings
from limetaskd.errors import CommandError


class ResultStore:
    """Connects when it is needed first."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._app: Any = None
        self._marks: Any = None
        self.commands: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "end_task": self._end_task,
            "count_deaths": self._count_deaths,
            "revoke": self._revoke,
        }

    @property
    def app(self) -> Any:
        """A Celery app with the result store of the workers; it knows no tasks."""
        if self._app is None:
            from celery import Celery

            from limetaskd.tasks.conf import celery_settings, is_redis

            app = Celery("limetaskd-agent", set_as_current=False)
            app.conf.update(celery_settings(self._settings))
            if is_redis(app.conf.result_backend):
                from limetaskd.tasks.results import use_our_results

                use_our_results(app)
            self._app = app
        return self._app

    @property
    def marks(self) -> Any:
        if self._marks is None:
            from limetaskd.tasks.marks import Marks

            self._marks = Marks(self.app.backend, self._settings.cluster.key_prefix)
        return self._marks

    def obey(self, command: str, params: dict[str, Any]) -> dict[str, Any]:
        """Raises CommandError with the reason; the daemon tries again."""
        try:
            return self.commands[command](params)
        except Exception as error:
            # Whatever the client library of the store raises: there are many.
            text = " ".join(redact_text(f"{type(error).__name__}: {error}").split())
            raise CommandError(f"{command}: {text}") from error

    def forget(self, task_id: str) -> None:
        """As if the task had never run: no result, no marks."""
        if self._settings.backend_url is not None:
            self.app.backend.forget(task_id)
        self.marks.forget(task_id)

    def _revoke(self, params: dict[str, Any]) -> dict[str, Any]:
        """Tell the workers of all hosts, and those that get the message again."""
        task_id = str(params["id"])
        marked = self.marks.end(task_id, "revoked")
        with connection_of(self._settings) as connection:
            self.app.control.revoke(task_id, connection=connection)
        return {"marked": marked}

    def _end_task(self, params: dict[str, Any]) -> dict[str, Any]:
        from celery import states
        from celery.exceptions import TaskRevokedError

        from limetaskd.tasks.errors import killed_error

        task_id, reason, text = str(params["id"]), str(params["reason"]), str(params["text"])
        state = str(params.get("state") or states.FAILURE)
        backend = self.app.backend
        stores = self._settings.backend_url is not None
        known = backend.get_state(task_id) if stores else None
        if known == states.SUCCESS:
            return {"state": states.SUCCESS}
        marked = self.marks.end(task_id, reason)
        if stores and known not in states.READY_STATES:  # its worker may have stored it, and why, after all
            error = TaskRevokedError(text) if state == states.REVOKED else killed_error(reason, text)
            backend.store_result(task_id, error, state)
        return {"state": state, "marked": marked}

    def _count_deaths(self, params: dict[str, Any]) -> dict[str, Any]:
        from celery import states

        stores = self._settings.backend_url is not None
        counts, done = {}, []
        for item in params["deaths"]:
            task_id, death = str(item["id"]), item["death"]
            if stores and self.app.backend.get_state(task_id) == states.SUCCESS:
                done.append(task_id)
            elif death is not None:
                counts[task_id] = len(self.marks.died(task_id, dict(death)))
        return {"counts": counts, "done": done}
