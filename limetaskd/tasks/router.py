"""Where a task goes: the five rules, applied to whatever Celery was told.

`Router.route` is asked by `app.send_task`, with the options of the send; the answer travels in the option
`ROUTE_OPTION` to the sender in `amqp.py`, which decides finally: only there it is known whether it is a retry.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import kombu
from celery._state import get_current_worker_task

from limetaskd.core.routing import QOS_HEADER, QUEUE_HEADER, Decision, decide, find_queue
from limetaskd.core.settings import Queue, Settings
from limetaskd.errors import RoutingError
from limetaskd.tasks.binding import Binding
from limetaskd.tasks.message import ROUTED_TYPE_HEADER, header_of, queue_of
from limetaskd.tasks.queues import kombu_queue

ROUTE_OPTION = "limetaskd_route"
# What names a destination in Celery's options; `redelivered` comes along in the options of a retry.
_DESTINATION = ("queue", "exchange", "routing_key", "exchange_type", "redelivered")


@dataclass(frozen=True)
class Wish:
    """What the sender asked for. `queue`: by header or by Celery's `queue=`, `routing_key=`."""

    name: str  # the name that routes: of the task, or of the task that a `starmap` maps
    queue: object
    category: object
    by_option: bool  # by `queue=`: `task.retry(queue=...)` may send a retry elsewhere, a header may not


@dataclass(frozen=True)
class Route:
    """One send: its wish, and the end of its time (monotonic clock)."""

    wish: Wish
    settings: Settings
    decision: Decision
    deadline: float


def read_wish(settings: Settings, name: str, options: dict[str, Any]) -> Wish:
    """The wish in Celery's options. Raises RoutingError for a destination that is no name."""
    headers = options.get("headers") or {}
    queue = headers.get(QUEUE_HEADER)
    by_option = False
    if queue is None and options.get("queue") is not None:
        queue, by_option = options["queue"], True
        if isinstance(queue, kombu.Queue):
            queue = queue.alias or queue.name
        if not isinstance(queue, str):
            raise RoutingError(f"task {name}: queue= must be a name, not {type(queue).__name__}")
    if queue is None and options.get("routing_key"):
        queue = _by_routing_key(settings, name, options["routing_key"])
    return Wish(name, queue, headers.get(QOS_HEADER), by_option)


def _by_routing_key(settings: Settings, name: str, key: object) -> str:
    """The queue that a routing key means. No raw key goes to the broker: it might be one of another cluster."""
    if not isinstance(key, str):
        raise RoutingError(f"task {name}: routing_key= must be a string, not {type(key).__name__}")
    own = settings.cluster.routing_key(key)
    for queue in settings.queues:
        if queue.routing_key in (key, own):
            return queue.name
    return key


class Router:
    """Celery's router of one app. `task_routes` has no say: the contract's five rules are all there is."""

    def __init__(self, app: Any, binding: Binding) -> None:
        self.app = app
        self.binding = binding

    def route(
        self,
        options: dict[str, Any],
        name: str,
        args: Any = (),  # noqa: ARG002 - Celery's signature
        kwargs: Any = None,  # noqa: ARG002
        task_type: Any = None,
    ) -> dict[str, Any]:
        """The options with the queue that they lead to. Raises RoutingError."""
        route = self.plan(name, options, task_type)
        rest = {key: value for key, value in options.items() if key not in _DESTINATION}
        return {**rest, "queue": kombu_queue(route.decision.queue), ROUTE_OPTION: route}

    def plan(self, name: str, options: dict[str, Any], task_type: Any = None) -> Route:
        """The route of one send that begins now. Raises RoutingError."""
        settings = self.binding.settings()
        wish = read_wish(settings, name, options)
        decision = self._decide(settings, wish, task_type)
        return Route(wish, settings, decision, time.monotonic() + settings.publish_timeout_s)

    def _decide(self, settings: Settings, wish: Wish, task_type: Any = None) -> Decision:
        return decide(
            settings,
            wish.name,
            header_queue=wish.queue,
            header_qos=wish.category,
            task_qos=self._task_qos(wish.name, task_type),
        )

    def _task_qos(self, name: str, task_type: Any) -> str | None:
        if task_type is None or task_type.name != name:
            # By name, or a `starmap` that is routed as the task that it maps. Unknown here: the sender need not
            # have the task module.
            registry = self.app.tasks if self.app.autofinalize or self.app.finalized else self.app._tasks
            task_type = registry.get(name)
        qos = getattr(task_type, "qos", None)
        return qos if isinstance(qos, str) else None

    def final(self, route: Route, task_id: str, retries: int) -> Decision:
        """The decision for the message. A retry goes where its first try went, while that queue is configured."""
        first = _first_try(route.settings, task_id, retries)
        if first is None:
            return route.decision
        queue, actual, kind = first
        wished = find_queue(route.settings, route.wish.queue) if isinstance(route.wish.queue, str) else None
        if queue is None:
            # It is configured no more. What asked for it by name does not count: nobody consumes it now.
            known = wished.name if wished is not None and wished.actual != actual else None
            wish = Wish(route.wish.name, known, route.wish.category, False)
            return self._decide(route.settings, wish)
        if route.wish.by_option and wished is not None and wished != queue:
            return route.decision  # task.retry(queue=...)
        return Decision(queue, kind or route.decision.type)


def _first_try(settings: Settings, task_id: str, retries: int) -> tuple[Queue | None, str, str | None] | None:
    """(queue if it is still configured, its actual name, type) of the try that runs here; None: no retry of it."""
    if not retries:
        return None
    task = get_current_worker_task()
    if task is None or task.request.id != task_id:
        return None
    actual = queue_of(task.request)
    if actual is None:
        return None
    queue = next((queue for queue in settings.queues if queue.actual == actual), None)
    kind = header_of(task.request, ROUTED_TYPE_HEADER)
    return queue, actual, kind if isinstance(kind, str) else None
