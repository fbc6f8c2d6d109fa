"""Log records of the library: ordinary records of the logger `limetaskd`, with the fields as `extra`.

The application's own logging is left alone. Only while it has configured none (no handler on the root logger and
none on `limetaskd`), a JSON handler on stderr shows our records; that is looked at anew for each record, so an
application that configures its logging later gets each record once.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from limetaskd.core.jsonlog import JsonFormatter
from limetaskd.core.routing import Decision

ROOT_NAME = "limetaskd"
ROUTING_NAME = "limetaskd.routing"

class FallbackHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what `sys.stderr` is now, like logging's handler of last resort."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(JsonFormatter(Path(sys.argv[0] or "python").name))

    @property
    def stream(self) -> Any:
        return sys.stderr


_fallback = FallbackHandler()
_level = logging.INFO


def configure(level: str, max_message_bytes: int) -> None:
    """Level and longest message (bytes, 0: no limit) of the handler that is used when the application has none."""
    global _level
    _level = getattr(logging, level.upper(), logging.INFO)
    formatter = _fallback.formatter
    if isinstance(formatter, JsonFormatter):
        formatter.max_message_bytes = max_message_bytes


def logger(name: str = ROOT_NAME) -> logging.Logger:
    """The logger `name`, ready for a record now."""
    ours = logging.getLogger(ROOT_NAME)
    configured = bool(logging.getLogger().handlers) or any(handler is not _fallback for handler in ours.handlers)
    if configured == (_fallback in ours.handlers):
        if configured:
            ours.removeHandler(_fallback)
            ours.setLevel(logging.NOTSET)
        else:
            ours.addHandler(_fallback)
            if ours.level == logging.NOTSET:
                ours.setLevel(_level)
    return logging.getLogger(name)


def log_decision_warnings(decision: Decision, task_id: str) -> None:
    """What an operator should know about this decision."""
    for warning in decision.warnings:
        logger(ROUTING_NAME).warning("%s", warning, extra={"task_id": task_id, "task_queue": decision.queue.actual})


def log_sent(task: str, decision: Decision, task_id: str) -> None:
    """The routing record: the broker has confirmed the task."""
    out = logger(ROUTING_NAME)
    if not out.isEnabledFor(logging.INFO):
        return
    out.info(
        "task %s sent to %s (%s)",
        task,
        decision.queue.actual,
        decision.type,
        extra={
            "task_route_task": task,
            "task_route_type": decision.type,
            "task_queue": decision.queue.actual,
            "task_id": task_id,
        },
    )
