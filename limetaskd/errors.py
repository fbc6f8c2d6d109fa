"""One tree of errors. The docstring of a class is its default message; a message says what to do.

Standard library only: senders and workers import this module.
"""

from __future__ import annotations


class LimetaskError(Exception):
    """limetaskd could not do what was asked."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message if message is not None else (type(self).__doc__ or "").strip())


class ConfigError(LimetaskError):
    """The configuration cannot be used.

    `problems` holds every line that an operator should read, all at once.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class RoutingError(LimetaskError):
    """The task cannot be routed."""


class PublishError(LimetaskError):
    """The task was not confirmed by the broker within publish.timeout."""


class ChannelError(LimetaskError):
    """A message on the local channel between daemon and worker cannot be understood."""


class CommandError(LimetaskError):
    """An operator's command is refused or failed; the message is shown to the operator."""


class NoAnswerError(CommandError):
    """A process may have received a command and did not answer: it may carry it out all the same."""


class AlreadyRunningError(LimetaskError):
    """Another limetaskd already runs on this runtime_dir."""
