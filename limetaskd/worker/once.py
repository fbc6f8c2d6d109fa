"""At most once: a task begins when its message has been acknowledged, and not before.

Celery acknowledges in the next turn of its event loop: by then a pool child has begun, and a solo task has ended. When
they take their worker along, the message comes again. Here the slot says first that the task runs (so that a death is
told from now on), then the main process acknowledges, and only then the task begins.

    in the main process (threads, solo, ...)   the request waits for the event loop
    in a pool child                            it waits for the answer to its number, on the scoreboard

What cannot be acknowledged is not begun: its connection broke, and its message is in its queue again. What is lost on
the way in the very moment in which the connection breaks is beyond that: an acknowledgement, which RabbitMQ does not
confirm (the task may run once more), or the answer of Redis to it (the task does not run).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from limetaskd.core.board import SlotWriter
from limetaskd.errors import LimetaskError
from limetaskd.worker.scoreboard import Scoreboard

NUMBER = "limetaskd_number"  # among the headers that a child is given
_LOOK_FIRST_S, _LOOK_MAX_S = 0.0001, 0.02


class NotBegunError(LimetaskError):
    """A task that may run at most once was accepted and is not begun: its message may come again."""


class Permits:
    """Of one worker; its pool children inherit it."""

    def __init__(self, board: Scoreboard) -> None:
        self._board = board.board
        self._main = os.getpid()
        self._last = 0
        self._accepted: ContextVar[Any] = ContextVar("accepted")  # of a thread, or a greenlet

    # In the main process.

    def number(self, request: Any) -> None:
        """Before a request that is acknowledged early goes to the pool."""
        self._last += 1
        request.request_dict[NUMBER] = self._last

    def accepted(self, request: Any) -> None:
        """Whoever calls is about to run it."""
        self._accepted.set(request)

    def answer(self, pid: int, request: Any, *, yes: bool) -> None:
        """To the pool child that is about to run it."""
        self._board.answer(pid, request.request_dict[NUMBER], yes=yes)

    def connection_lost(self) -> None:
        """What no child has been told of by now is in its queue again, and nobody knows of it any more."""
        self._board.answer_no_more(self._last)

    # Where the task runs.

    def ask(self, slot: SlotWriter | None, headers: Mapping[str, Any]) -> None:
        """Return when the task may begin. Raises NotBegunError when it may not."""
        if os.getpid() == self._main:
            self._accepted.get().acknowledge_first()
        elif slot is not None and NUMBER in headers:  # without a slot there is nowhere to look for an answer
            self._wait(slot, headers[NUMBER])

    @staticmethod
    def _wait(slot: SlotWriter, number: int) -> None:
        pause_s = _LOOK_FIRST_S
        while (answer := slot.answer(number)) is None:  # a main process that dies takes us along
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LOOK_MAX_S)
        if not answer:
            raise NotBegunError
