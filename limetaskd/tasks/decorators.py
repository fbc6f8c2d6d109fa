"""`@task`: Celery's shared task with a QoS category and a delivery promise."""

from __future__ import annotations

from typing import Any

from celery import Task, shared_task
from celery.exceptions import Reject

from limetaskd.errors import PublishError, RoutingError
from limetaskd.tasks.errors import BrokerRefusedError

AT_LEAST_ONCE = "at-least-once"
AT_MOST_ONCE = "at-most-once"


class LimeTask(Task):  # type: ignore[misc]
    """Base class of tasks. `qos`: the category that routes the task when its sender wishes nothing else."""

    abstract = True
    qos: str | None = None
    delivery: str | None = None

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """As Celery's, which drops the task when the retry cannot be sent.

        Here it goes back to its queue when the broker was away, and fails visibly when the broker refused the retry.
        """
        try:
            return super().retry(*args, **kwargs)
        except Reject as rejected:
            reason = rejected.reason
            if isinstance(reason, BrokerRefusedError | RoutingError):
                raise reason from rejected
            if isinstance(reason, PublishError):
                raise Reject(reason, requeue=True) from rejected
            raise


def task(*args: Any, qos: str | None = None, delivery: str | None = None, **options: Any) -> Any:
    """Make a task of a function: `@task` or `@task(qos="asap", ...)`; every option of Celery's decorator works.

    `delivery`: "at-least-once" (late acknowledgement; runs again when its worker dies) or "at-most-once" (early);
    None is the configured one. A task's own `acks_late` wins. The task exists in every app of the process, also in
    those that are made later. Raises TypeError or ValueError at the definition.
    """
    if qos is not None:
        if not isinstance(qos, str):
            raise TypeError(f"@task(qos=...) takes the name of a QoS category, not {type(qos).__name__}")
        if not qos.strip():
            raise ValueError("@task(qos=...) takes the name of a QoS category, not an empty one")
    if delivery is not None:
        if delivery not in (AT_LEAST_ONCE, AT_MOST_ONCE):
            raise ValueError(f"@task(delivery=...) takes {AT_LEAST_ONCE!r} or {AT_MOST_ONCE!r}, not {delivery!r}")
        late = delivery == AT_LEAST_ONCE
        options.setdefault("acks_late", late)
        # A late acknowledgement protects from a dead pool child only together with this.
        options.setdefault("reject_on_worker_lost", bool(options["acks_late"]))
    options.setdefault("base", LimeTask)
    return shared_task(*args, qos=qos, delivery=delivery, **options)
