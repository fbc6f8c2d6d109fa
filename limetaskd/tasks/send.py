"""`send_task`: by name, from a process that need not have the task's module."""

from __future__ import annotations

from typing import Any

from limetaskd.core.routing import QOS_HEADER, QUEUE_HEADER
from limetaskd.errors import RoutingError
from limetaskd.tasks.app import current_configured_app
from limetaskd.tasks.message import USER_HEADER


def send_task(
    name: str,
    args: Any = None,
    kwargs: Any = None,
    *,
    qos: str | None = None,
    queue: Any = None,
    user_id: str | int | None = None,
    **options: Any,
) -> Any:
    """Send the task `name` and return its AsyncResult, once the broker has confirmed it.

    `qos`, `queue`, `user_id` set the headers; `options` are those of Celery (`task_id`, `countdown`, `headers`, ...).
    Uses the app of create_app or configure_app, or builds one by the configuration that the commands would take.
    Raises RoutingError for a bad destination, PublishError when the broker does not confirm in `publish.timeout`.
    """
    headers = dict(options.pop("headers", None) or {})
    if qos is not None:
        if not isinstance(qos, str):
            raise RoutingError(f"task {name}: qos= must be the name of a category, not {type(qos).__name__}")
        headers[QOS_HEADER] = qos
    if isinstance(queue, str):
        headers[QUEUE_HEADER] = queue
    elif queue is not None:
        options["queue"] = queue  # a kombu Queue, or what the router refuses
    if user_id is not None:
        headers[USER_HEADER] = str(user_id)
    return current_configured_app().send_task(name, args, kwargs, headers=headers, **options)
