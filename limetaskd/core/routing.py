"""Which queue a task goes to: the five rules, in their order (pure).

routing.tasks exact name > header `__queue` > header `__qos_category` > `@task(qos=...)` > the default queue.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from limetaskd.core.settings import Queue, Settings
from limetaskd.errors import RoutingError

QUEUE_HEADER = "__queue"
QOS_HEADER = "__qos_category"

TASK_ROUTE = "task_route"
HEADER_QUEUE = "header_queue"
HEADER_QOS = "header_qos"
TASK_QOS = "task_qos"
DEFAULT_QUEUE = "default_queue"


@dataclass(frozen=True)
class Decision:
    """The queue, the rule that chose it, and what an operator should be warned of."""

    queue: Queue
    type: str
    warnings: list[str] = field(default_factory=list)


def _text(value: object, header: str, task: str) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    raise RoutingError(
        f"task {task}: the header {header} must be a string, not {type(value).__name__}: give a configured name"
    )


def decide(
    settings: Settings,
    task: str,
    *,
    header_queue: object = None,
    header_qos: object = None,
    task_qos: str | None = None,
) -> Decision:
    """Route one task. Raises RoutingError for a header that is not a string, whichever rule would win."""
    queue_name = _text(header_queue, QUEUE_HEADER, task)
    category = _text(header_qos, QOS_HEADER, task)
    routing = settings.routing
    warnings: list[str] = []
    if task in routing.tasks:
        return Decision(settings.queue(routing.tasks[task]), TASK_ROUTE)
    if queue_name is not None:
        queue = find_queue(settings, queue_name)
        if queue is None:
            queue = settings.unknown_queue(queue_name)
            warnings.append(
                f"task {task}: no queue {queue_name!r} is configured, so nobody here consumes {queue.actual!r}"
            )
        return Decision(queue, HEADER_QUEUE, warnings)
    for chosen, kind, where in ((category, HEADER_QOS, QOS_HEADER), (task_qos, TASK_QOS, "@task(qos=...)")):
        if chosen is None:
            continue
        if chosen in routing.qos:
            return Decision(settings.queue(routing.qos[chosen]), kind, warnings)
        known = ", ".join(sorted(routing.qos)) or "none"
        warnings.append(f"task {task}: QoS category {chosen!r} of {where} is not configured (known: {known}); skipped")
    return Decision(settings.queue(routing.default), DEFAULT_QUEUE, warnings)


def find_queue(settings: Settings, name: str) -> Queue | None:
    """The configured queue that `name` means: a configured name first, else an actual name of this cluster."""
    for queue in settings.queues:
        if queue.name == name:
            return queue
    for queue in settings.queues:
        if queue.actual == name:
            return queue
    return None
