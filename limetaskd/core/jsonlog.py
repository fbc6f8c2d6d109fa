"""One JSON object a line, with the fields of the log contract (pure formatting).

Every process formats with this: the daemon, workers, senders. Times in UTC with milliseconds.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from datetime import UTC, datetime
from typing import Any

from limetaskd.core.redact import redact_text

ROUTING_FIELDS = ("task_route_task", "task_route_type", "task_queue", "task_id")
EXECUTION_FIELDS = (
    "task_id", "task_name", "task_queue", "task_user_id", "task_latency_ms", "task_duration_ms",
    "task_outcome", "application",
)  # fmt: skip
# The attributes that every LogRecord has; all others came as `extra`.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_HOST = socket.gethostname()


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC with milliseconds: 2026-11-24T10:00:00.123Z."""
    moment = datetime.fromtimestamp(seconds, UTC)
    # Both parts from one rounding: else 1.9999999 would be 02.999.
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def cut(message: str, limit_bytes: int) -> tuple[str, bool]:
    """`message` in at most `limit_bytes` of valid UTF-8 (0: no limit), and whether it was cut."""
    raw = message.encode("utf-8", "replace")
    if not limit_bytes or len(raw) <= limit_bytes:
        return message, False
    return raw[:limit_bytes].decode("utf-8", "ignore"), True


class JsonFormatter(logging.Formatter):
    """Formats a record, its `extra` fields included. `process`: the name of this process."""

    def __init__(self, process: str, max_message_bytes: int = 0) -> None:
        super().__init__()
        self.process = process
        self.max_message_bytes = max_message_bytes

    def document(self, record: logging.LogRecord) -> dict[str, Any]:
        """The record as a dict, before it becomes text."""
        message, truncated = cut(redact_text(record.getMessage()), self.max_message_bytes)
        document: dict[str, Any] = {
            "@timestamp": timestamp(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
            "host": _HOST,
            "pid": os.getpid(),
            "process": self.process,
        }
        if truncated:
            document["truncated"] = True
        for key, value in vars(record).items():
            if key not in _OWN and key not in document:
                document[key] = value
        if record.exc_info:
            document["exception"] = redact_text(self.formatException(record.exc_info))
        return document

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self.document(record), ensure_ascii=False, default=str)


def as_text(document: dict[str, Any]) -> str:
    """One line for people: time, level, process, message, then the other fields as key=value.

    Raises RecursionError for what is nested too deeply.
    """
    head = {"@timestamp", "level", "logger", "message", "host", "pid", "process", "exception"}
    rest = " ".join(f"{key}={value}" for key, value in document.items() if key not in head)
    line = (
        f"{document.get('@timestamp', '-')} {document.get('level', '-')!s:<8}"
        f" {document.get('process', '-')}[{document.get('pid', '-')}] {document.get('message', '')}"
    )
    if rest:
        line = f"{line} {rest}"
    if document.get("exception"):
        line = f"{line}\n{document['exception']}"
    return line
