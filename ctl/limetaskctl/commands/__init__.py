"""The commands, one module each.

A module has `add_arguments(parser)`, `params(args)` (of the method with the command's name), `render(result, view)`
and `WAITS` (whether it returns only when it is done, so that no limit of time is set by itself). One that does more
than to call and to print has `run(session, args)` instead of `params` and `render`.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from importlib import import_module
from typing import Any, Protocol, cast

from limetaskctl.errors import ReplyError
from limetaskctl.render import View
from limetaskctl.session import Session

# In the order of --help. The summaries stand here so that --help and completion import no command.
SUMMARIES = {
    "status": "daemon, pools, workers, running tasks and queue depths",
    "start": "start workers or pools",
    "stop": "stop workers or pools; running tasks finish first",
    "restart": "restart workers or pools, rolling",
    "scale": "change the task slots (or worker processes) of pools, live",
    "reload": "reread the configuration and apply what changed",
    "pause": "stop consuming queues on this host",
    "resume": "consume paused queues again",
    "drain": "let the workers of a pool finish, and stop them",
    "why": "the last scaling decisions of a pool",
    "tasks": "what runs now",
    "kill": "end a task that runs, for good",
    "revoke": "a task that waits will not run",
    "routes": "the routing table",
    "queues": "depth, consumers and oldest wait of the queues",
    "purge": "drop all waiting tasks of a queue",
    "quarantine": "tasks that killed their workers: list, show, replay, drop",
    "show": "post-mortems and history of a worker or pool",
    "logs": "the log of the daemon or of a worker",
    "events": "live stream of state changes, a JSON object a line",
    "upgrade": "replace the daemon's code by the installed one; the workers run on",
    "shutdown": "stop the daemon and its workers",
    "version": "version of the client and of the daemon",
    "completion": "print the completion script of a shell",
}

# Names that are promised; typing one says so instead of "unknown".
LATER = (
    "beat", "keys", "top",
    "health", "doctor",
)  # fmt: skip


class PlainCommand(Protocol):
    """A command that calls the method of its name and prints the result."""

    WAITS: bool

    def add_arguments(self, parser: ArgumentParser) -> None: ...
    def params(self, args: Namespace) -> dict[str, Any]: ...
    def render(self, result: dict[str, Any], view: View) -> str: ...


class RunCommand(Protocol):
    """A command with a course of its own."""

    def add_arguments(self, parser: ArgumentParser) -> None: ...
    def run(self, session: Session, args: Namespace) -> None: ...


def load(name: str) -> PlainCommand | RunCommand:
    """The module of a command in SUMMARIES."""
    return cast("PlainCommand | RunCommand", import_module(f"limetaskctl.commands.{name}"))


def run(name: str, session: Session, args: Namespace) -> None:
    """Run the command. Raises CtlError when it did not succeed."""
    try:
        _run(load(name), name, session, args)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        # A result of another shape than docs/control-protocol.md says: from a daemon of another version.
        raise ReplyError(
            f"the daemon's answer to {name!r} has another shape than this client knows"
            f" ({type(error).__name__}: {error}); compare: limetaskctl version"
        ) from error


def _run(command: PlainCommand | RunCommand, name: str, session: Session, args: Namespace) -> None:
    if hasattr(command, "run"):
        command.run(session, args)
        return
    result = session.call(name, command.params(args), command.WAITS)
    if session.as_json:
        session.document(result)
    else:
        session.line(command.render(result, session.view))
