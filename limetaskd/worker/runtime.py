"""What one worker knows and says of itself: the one object that its parts share.

Plain attributes, written by the main thread and read by the link's thread: nothing here takes a lock, since pool
children are forked at any time.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery.worker import state as worker_state

from limetaskd.core import revoked
from limetaskd.core.channel import Command, Phase, Reply, State
from limetaskd.core.redact import redact_text
from limetaskd.core.settings import Settings
from limetaskd.worker import logs
from limetaskd.worker.drain import Drain
from limetaskd.worker.level import Level
from limetaskd.worker.link import Link
from limetaskd.worker.once import Permits
from limetaskd.worker.scoreboard import Scoreboard

if TYPE_CHECKING:
    from limetaskd.core.spec import ProcessSpec

logger = logging.getLogger(__name__)
_REASON_CHARACTERS = 500


def one_line(text: object) -> str:
    """`text` as a reason for people: no password, no line break, not endless."""
    return " ".join(redact_text(str(text)).split())[:_REASON_CHARACTERS]


class Runtime:
    """`spec` None: run by hand, nobody to report to."""

    def __init__(self, settings: Settings, name: str, spec: ProcessSpec | None = None) -> None:
        self.settings = settings
        self.name = name
        self.spec = spec
        self.phase = Phase.STARTING
        self.reason: str | None = None
        self.queues: list[str] = []
        self.consumer: Any = None
        self.pool: Any = None
        self.inbox: deque[Command] = deque()
        # Shrink commands that wait for slots to become idle, with the number still to go.
        self.shrinking: list[tuple[Command, int]] = []
        # Queues whose consumer is being cancelled: the command, the actual name, the consumer tag.
        self.cancelling: list[tuple[Command, str, str | None]] = []
        self.level = Level(settings.log_level)
        # Tasks wait for a result store that is away, unless the operator has said what they do.
        self.patient = "result_backend_always_retry" not in settings.celery
        self.turned = time.monotonic()  # when the event loop last turned
        self._waits: list[str] = []  # what the event loop (or a thread) waits for and may wait long
        self.revoked = self._read_revoked()
        # Pool children to be replaced when they are idle, with the commands that asked for it.
        self.retiring: dict[int, Command] = {}
        timeout_s = spec.shutdown_timeout_s if spec else settings.shutdown_timeout_s
        self.drain = Drain(timeout_s, self._on_drain)
        self.board = Scoreboard(spec.board if spec else None, spec.concurrency if spec else None)
        self.permits = Permits(self.board)
        # Written by signal handlers and by the link's thread, read by the event loop.
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.drain.wake = self.wake
        self.link: Link | None = None
        if spec is not None:
            self.link = Link(spec.channel, self.state, self._on_command, settings.orphan_timeout_s)

    def _read_revoked(self) -> dict[str, float]:
        try:
            return revoked.read(self.settings.state_dir)
        except (OSError, ValueError) as error:
            logger.error("the revoked tasks cannot be read: %s", error)
            return {}

    def state(self) -> State:
        """The full state, for the channel."""
        return State(
            name=self.name,
            generation=self.spec.generation if self.spec else 0,
            pid=os.getpid(),
            phase=self.phase,
            queues=list(self.queues),
            reason=self.reason,
            active=len(worker_state.active_requests),
            reserved=len(worker_state.reserved_requests) + len(worker_state.scheduled_requests),
            concurrency=self.concurrency,
            data={
                "loop_age_s": round(time.monotonic() - self.turned, 3),
                "pool": self.spec.pool_kind if self.spec else None,
                # A copy in one step: the main thread adds to it.
                "accepted": sum(list(worker_state.total_count.values())),
                "waits": ", ".join(dict.fromkeys(self._waits)) or None,
            },
        )

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Around a call in the event loop that may take long: the worker does not hang."""
        self._waits.append(what)  # one wait may hold another, and with threads there may be several
        self.changed()
        try:
            yield
        finally:
            self._waits.remove(what)
            self.turned = time.monotonic()

    @property
    def concurrency(self) -> int | None:
        """Slots when all that was asked for is done: a shrink may wait for tasks to end."""
        try:
            return int(self.pool.num_processes) - sum(count for _, count in self.shrinking)
        except AttributeError:  # not started yet, or already gone
            return self.spec.concurrency if self.spec else None

    def report(self, phase: str, *, reason: str | None = None, queues: list[str] | None = None) -> None:
        """Enter a phase. A draining worker stays one, whatever its connection does."""
        if self.phase == Phase.FAILED:
            return
        self.phase = Phase.DRAINING if self.drain.requested and phase != Phase.FAILED else phase
        self.reason = None if reason is None else one_line(reason)
        self.queues = [] if self.drain.requested else queues or []
        self.changed()

    def changed(self) -> None:
        if self.link is not None:
            self.link.poke()

    def _on_drain(self) -> None:
        self.report(Phase.DRAINING)

    def fail(self, reason: str) -> None:
        """Say why this process is about to end, and make sure that it was heard if anybody listens."""
        self.report(Phase.FAILED, reason=reason)
        if self.link is not None:
            self.link.flush(2.0)

    def event(self, name: str, **fields: object) -> None:
        if self.link is not None:
            self.link.event(name, fields)

    def reply(self, command: Command, *, error: str | None = None, result: dict[str, Any] | None = None) -> None:
        if self.link is not None:
            self.link.reply(Reply(command.id, error, result or {}))
            self.link.poke()

    def _on_command(self, command: Command) -> None:
        """In the link's thread: what must work without a broker is done here, the rest in the event loop."""
        if command.command == "reopen":
            try:
                logs.reopen_all()
            except OSError as error:
                self.reply(command, error=f"cannot open the log file: {error}")
            else:
                self.reply(command)
        elif command.command == "drain":
            self.drain.request()
            self.reply(command)
        elif command.command == "configure":
            self._configure(command)
        elif command.command == "revoke":
            self.revoked = revoked.add(self.revoked, str(command.params.get("id")), time.time())
            self.reply(command)
        else:
            self.inbox.append(command)
            os.eventfd_write(self.wake, 1)

    def _configure(self, command: Command) -> None:
        """Settings that take effect in place."""
        timeout_s = command.params.get("shutdown_timeout_s", self.drain.timeout_s)
        level = command.params.get("log_level")
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or timeout_s < 0:
            self.reply(command, error="`shutdown_timeout_s` must be a number of seconds")
            return
        if level is not None:
            try:
                self.level.set(level)
            except ValueError as error:
                self.reply(command, error=str(error))
                return
        self.drain.timeout_s = float(timeout_s)
        self.reply(command)
