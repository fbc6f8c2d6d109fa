"""The agent: the broker I/O of the daemon, in a process that may wait for a broker while the daemon does not.

It reports State with `data`:

    {"broker": {"up": bool, "error": str | null},
     "queues": [{"name": actual, "depth": int | null, "consumers": int | null, "oldest_wait_s": float | null}]}

and knows the commands of `results.py`, `quarantine` (see `quarantine.py`), `restore` {} -> {"restored": n}, `purge`
{"queue": actual} -> {"purged": n}, `look` {"queue": actual} -> {"depth": int | null, "unacknowledged": int | null}
(asked right then), `settings` {} (read the settings file again), `configure` {"log_level"}, `reopen` {} (its log file)
and `drain` {} (exit 0).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from dataclasses import replace
from typing import Any

from limetaskd.agent.watch import Watch
from limetaskd.core.channel import Command, Phase, Reply, State, encode
from limetaskd.core.spec import ProcessSpec
from limetaskd.errors import ChannelError
from limetaskd.worker import logs
from limetaskd.worker.begin import begin
from limetaskd.worker.link import Link

logger = logging.getLogger(__name__)

_FLUSH_S = 1.0


def fitting(state: State) -> State:
    """The state, without its figures when they are too many for one packet: silence would look like a hang."""
    try:
        encode(state)
    except ChannelError:
        reason = f"{len(state.data['queues'])} queues are too many to report their figures"
        return replace(state, reason=state.reason or reason, data={**state.data, "queues": []})
    return state


def answerable(reply: Reply) -> Reply:
    """`reply`, with fewer `tasks` than there are when they do not fit into a packet: an answer must always arrive."""
    while True:
        try:
            encode(reply)
        except ChannelError:
            tasks = reply.result.get("tasks")
            if not tasks:
                return Reply(reply.id, "the answer is too large to be passed on")
            if len(tasks) > 1:
                tasks = tasks[: len(tasks) // 2]
            else:
                body = str(tasks[0].get("body", ""))
                tasks = [{**tasks[0], "body": body[: len(body) // 2]}] if body else []
            reply = replace(reply, result={**reply.result, "tasks": tasks, "cut": True})
        else:
            return reply


class Agent:
    """The two threads (link, broker) and the end of the process."""

    def __init__(self, spec: ProcessSpec, alone_s: float | None = None) -> None:
        self._spec = spec
        self._stop = threading.Event()
        self._failed = False
        self._link = Link(spec.channel, self._state, self._command, alone_s)
        self._watch = Watch(spec.settings, self._link.poke, self._fail)

    def run(self) -> int:
        """Until SIGTERM or `drain` (exit code 0), or a fault of ours (1)."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, lambda *_: self._stop.set())
        signal.signal(signal.SIGUSR1, lambda *_: logs.reopen_all())
        self._link.start()
        self._watch.start()
        self._stop.wait()
        self._link.poke()
        self._link.flush(_FLUSH_S)
        self._link.close()
        # The other thread may wait for a broker: it ends with the process.
        return 1 if self._failed else 0

    def _fail(self) -> None:
        self._failed = True
        self._stop.set()

    def _state(self) -> State:
        view = self._watch.view
        phase, reason = view.phase, view.reason
        if self._failed:
            phase, reason = Phase.FAILED, "the agent failed: see its log"
        elif self._stop.is_set():
            phase = Phase.DRAINING
        return fitting(State(self._spec.name, self._spec.generation, os.getpid(), phase, reason=reason, data=view.data))

    def _command(self, command: Command) -> None:
        """In the link's thread: nothing here waits."""

        def answer(result: dict[str, Any] | None, error: str | None) -> None:
            self._link.reply(answerable(Reply(command.id, error, result or {})))

        if command.command == "drain":
            answer({}, None)
            self._stop.set()
        elif command.command == "reopen":
            try:
                logs.reopen_all()
            except OSError as error:
                answer(None, f"the log file cannot be opened again: {error}")
            else:
                answer({}, None)
        elif command.command == "configure":
            logs.set_level(str(command.params.get("log_level", "INFO")))
            answer({}, None)
        else:
            self._watch.ask(command.command, command.params, answer)


def main(spec: ProcessSpec) -> int:
    """Run the agent of the daemon; returns the exit code."""
    return Agent(spec, begin(spec).orphan_timeout_s).run()
