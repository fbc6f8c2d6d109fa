"""Why a command did not succeed, each kind with its exit code."""

from __future__ import annotations

from typing import Any

DONE = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130  # 128 + SIGINT
CLOSED_PIPE = 141  # 128 + SIGPIPE


class CtlError(Exception):
    """The command did not succeed. `code`: the JSON-RPC code when the daemon said so, else None."""

    exit_code = FAILED

    def __init__(self, message: str, code: int | None = None, document: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.document = document or {}  # what --json shows beside the error


class RefusedError(CtlError):
    """The daemon refused, or could not do it; its message is the reason."""


class ReplyError(CtlError):
    """The daemon's answer cannot be understood."""


class StillWaitingError(CtlError):
    """The client stopped waiting (--timeout); the daemon goes on."""


class UsageError(CtlError):
    """The command line cannot be understood."""

    exit_code = USAGE


class UnreachableError(CtlError):
    """Nobody answers at the endpoint."""

    exit_code = UNREACHABLE
