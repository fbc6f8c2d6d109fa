"""The audit log: each operator action with its time, who asked for it, its parameters and its outcome.

A file of its own, `<state_dir>/log/audit.log`, one JSON object a line, and the event `operator_action`. Who it was is
what the client says of itself: ZeroMQ over ipc:// does not tell. Who may ask at all is decided by the socket's mode.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from limetaskd.core.jsonlog import timestamp
from limetaskd.core.redact import redact_text
from limetaskd.daemon.events import EventBus
from limetaskd.errors import LimetaskError

log = logging.getLogger("limetaskd.audit")

_MOST_CHARACTERS = 256
_HOST = socket.gethostname()


@dataclass(frozen=True)
class Operator:
    """Who asks. `via`: "control" (the client says the rest of itself), "signal", "supervisor", "limetaskd"."""

    via: str = "limetaskd"
    uid: int | None = None
    user: str | None = None
    pid: int | None = None

    def as_document(self) -> dict[str, Any]:
        return {"via": self.via, "uid": self.uid, "user": self.user, "pid": self.pid}

    def __str__(self) -> str:
        return self.user or (f"uid {self.uid}" if self.uid is not None else self.via)

    @classmethod
    def of_client(cls, client: dict[str, Any]) -> Operator:
        """What the request's member `client` says; anything odd in it is left out."""

        def number(key: str) -> int | None:
            value = client.get(key)
            return value if isinstance(value, int) and not isinstance(value, bool) else None

        user = client.get("user")
        return cls("control", number("uid"), user[:_MOST_CHARACTERS] if isinstance(user, str) else None, number("pid"))


ITSELF = Operator()
# Of the action that is being carried out by this asyncio task.
OPERATOR: ContextVar[Operator] = ContextVar("limetaskd_operator", default=ITSELF)


class Audit:
    """Writes the log in a thread of its own, so that neither the loop nor a client waits for the disk."""

    def __init__(self, path: str, events: EventBus) -> None:
        self._path = path
        self._events = events
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limetaskd-audit")

    async def carry_out(self, by: Operator, action: str, params: dict[str, Any], work: Awaitable[Any]) -> Any:
        """Await `work` in the name of `by`, and record how it went."""
        OPERATOR.set(by)
        started = time.monotonic()
        outcome, reason = "interrupted", None
        try:
            result = await work
            outcome = "done"
            return result
        except LimetaskError as error:
            outcome, reason = "failed", str(error)
            raise
        except asyncio.CancelledError:
            raise
        except Exception as error:
            outcome, reason = "failed", repr(error)
            raise
        finally:
            self.record(action, params, outcome, reason=reason, by=by, duration_s=time.monotonic() - started)

    def record(
        self,
        action: str,
        params: dict[str, Any],
        outcome: str,
        *,
        reason: str | None = None,
        by: Operator | None = None,
        duration_s: float = 0.0,
    ) -> None:
        """One action. `outcome`: "done", "failed" (with the reason) or "interrupted" (the daemon stopped)."""
        by = by or OPERATOR.get()
        fields = {
            "action": action,
            "params": json.loads(redact_text(json.dumps(params, default=str))),
            "outcome": outcome,
            "reason": None if reason is None else redact_text(reason),
            "by": by.as_document(),
            "duration_s": round(duration_s, 3),
        }
        self._events.emit("operator_action", **fields)
        document = {
            "@timestamp": timestamp(time.time()),
            "level": "INFO" if outcome == "done" else "WARNING",
            "logger": "limetaskd.audit",
            "message": f"{by}: {action} {outcome}",
            "host": _HOST,
            "pid": os.getpid(),
            "process": "limetaskd",
            **fields,
        }
        self._thread.submit(self._write, json.dumps(document, ensure_ascii=False, default=str) + "\n")

    def _write(self, line: str) -> None:
        # Opened for each line: the file may have been rotated, and actions are rare.
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                os.write(descriptor, line.encode("utf-8", "backslashreplace"))
            finally:
                os.close(descriptor)
        except OSError as error:
            log.error("the audit log %s cannot be written (%s): %s", self._path, error, line.rstrip())

    def close(self) -> None:
        """Write what is left."""
        self._thread.shutdown(wait=True)
