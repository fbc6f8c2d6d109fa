"""The headers of a task message that are ours, and how a worker reads them back.

    __queue, __qos_category   wishes of the sender (limetaskd.core.routing); they belong to one send
    __routed_queue            actual name of the queue that was chosen; a retry goes there again
    __routed_type             the rule that chose it (`task_route_type`)
    __sent_at                 when this try was sent (unix seconds)
    __user_id                 whose task it is; tasks that it sends inherit it
    __schedule_entry          name of the schedule entry that sent it
    __resent                  it was sent again from state_dir: it may have run before, whatever the broker says
    __planned_at              when it was planned (RFC 3339, UTC)
"""

from __future__ import annotations

from typing import Any

ROUTED_QUEUE_HEADER = "__routed_queue"
ROUTED_TYPE_HEADER = "__routed_type"
SENT_AT_HEADER = "__sent_at"
USER_HEADER = "__user_id"
RESENT_HEADER = "__resent"
ENTRY_HEADER = "__schedule_entry"
PLANNED_HEADER = "__planned_at"


def header_of(request: Any, name: str) -> Any:
    """A header of a task's request: of `task.request`, of the worker's Request, or of a mapping of headers."""
    if isinstance(request, dict):
        return request.get(name)
    for attribute in ("headers", "request_dict"):
        headers = getattr(request, attribute, None)
        if isinstance(headers, dict) and name in headers:
            return headers[name]
    return None


def queue_of(request: Any) -> str | None:
    """Actual name of the queue that a task's message went to; None when the message does not say.

    The routing key of a message through the default exchange is the name of its queue, whoever sent it.
    """
    delivery = getattr(request, "delivery_info", None) or {}
    if delivery.get("exchange") == "" and delivery.get("routing_key"):
        return str(delivery["routing_key"])
    name = header_of(request, ROUTED_QUEUE_HEADER)
    return name if isinstance(name, str) else None


def sent_at_of(request: Any) -> float | None:
    """When this try was sent (unix seconds); None when the sender did not say."""
    value = header_of(request, SENT_AT_HEADER)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
