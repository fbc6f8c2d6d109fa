"""The agent's thread of broker I/O: it keeps the figures, gives back what the dead hold, and does what it is told.

The broker may be away or frozen for as long as it likes: every wait has an end, and then it is tried again.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from limetaskd.agent import quarantine
from limetaskd.agent.brokers import Broker, BrokerAwayError, away, connect, connection_of
from limetaskd.agent.kept import KeptMessages
from limetaskd.agent.results import ResultStore
from limetaskd.core.channel import Phase
from limetaskd.core.redact import redact_text, redact_url
from limetaskd.core.settings import Settings
from limetaskd.errors import CommandError, LimetaskError

logger = logging.getLogger(__name__)

FIGURES_S = 2.0
RESTORE_S = 10.0
RESEND_S = 1.0
RETRY_S = (1.0, 2.0, 4.0, 5.0)

# Where kombu's native delayed delivery keeps messages for quorum queues, one for each power of two of seconds.
DELAY_QUEUES = [f"celery_delayed_{level}" for level in range(28)]

Answer = Callable[[dict[str, Any] | None, str | None], None]


@dataclass(frozen=True)
class View:
    """What the agent knows right now; replaced as a whole."""

    phase: str = Phase.STARTING
    reason: str | None = None
    data: dict[str, Any] = field(default_factory=lambda: {"broker": {"up": False, "error": None}, "queues": []})


class Watch(threading.Thread):
    """`view` may be read at any time; `on_change` is called after each change; `on_end` when the thread fails."""

    def __init__(self, settings_path: str, on_change: Callable[[], None], on_end: Callable[[], None]) -> None:
        super().__init__(name="limetaskd-broker", daemon=True)
        self._path = Path(settings_path)
        self._settings = Settings.from_json(self._path.read_text(encoding="utf-8"))
        self._on_change = on_change
        self._on_end = on_end
        self._jobs: queue.SimpleQueue[tuple[str, dict[str, Any], Answer]] = queue.SimpleQueue()
        self._broker: Broker | None = None
        self._store = ResultStore(self._settings)
        self._kept = KeptMessages(self._settings.state_dir)
        self._failures = 0
        self._figures_due = self._restore_due = 0.0
        self.view = View()

    def ask(self, command: str, params: dict[str, Any], answer: Answer) -> None:
        """Have a command done; `answer(result, error)` is called in this thread of ours."""
        self._jobs.put((command, params, answer))

    def run(self) -> None:
        try:
            while True:
                self._keep_up()
                self._work_until(min(self._figures_due, self._kept.next_due()))
        except Exception:
            # A fault of ours. The daemon starts another agent; a thread that is gone in silence would help nobody.
            logger.exception("the agent cannot go on")
            self._on_end()

    def _work_until(self, deadline: float) -> None:
        while True:
            try:
                command, params, answer = self._jobs.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return
            try:
                answer(self._obey(command, params), None)
            except LimetaskError as error:
                answer(None, str(error))
            except Exception as error:
                # A fault in one command, or a result store that is away: whoever asked hears it, the others go on.
                logger.exception("the command %s failed", command)
                answer(None, redact_text(f"{type(error).__name__}: {error}"))
            deadline = min(deadline, self._figures_due)
            if time.monotonic() >= deadline:
                return  # however many wait: each may take long, and nobody else does the rest

    def _keep_up(self) -> None:
        """Connect when needed, restore when due, and look."""
        try:
            broker = self._connected()
            if time.monotonic() >= self._restore_due:
                self._restore(broker)
            self._resend(broker)
            self._show(broker)
            self._failures = 0
            self._figures_due = time.monotonic() + FIGURES_S
        except BrokerAwayError as error:
            self._lost(error)

    def _connected(self) -> Broker:
        if self._broker is None:
            self._broker = connect(self._settings)
            self._restore_due = 0.0
            logger.info(
                "connected to the broker %s", redact_url(self._settings.broker_url), extra={"action": "broker_up"}
            )
        return self._broker

    def _restore(self, broker: Broker) -> int:
        self._restore_due = time.monotonic() + RESTORE_S
        restored = broker.restore()
        if restored:
            logger.warning(
                "%d messages that dead processes held went back to their queues", restored,
                extra={"action": "restored", "messages": restored},
            )  # fmt: skip
        return restored

    def _resend(self, broker: Broker) -> None:
        """Send again what is due. Raises BrokerAwayError."""
        due = self._kept.due()
        if not due:
            return
        end = time.monotonic() + RESEND_S
        try:
            with connection_of(self._settings, confirm=True) as sending:
                for path in due:
                    self._kept.send(path, sending)
                    if time.monotonic() > end:
                        return  # the rest with the next look
        except broker.gone as error:
            raise away(error) from error

    def _show(self, broker: Broker) -> None:
        figures = broker.figures([item.actual for item in self._settings.queues])
        data = {"broker": {"up": True, "error": None}, "queues": [asdict(figure) for figure in figures]}
        self._change(View(Phase.CONSUMING, None, data))

    def _lost(self, error: BrokerAwayError) -> None:
        text = str(error)
        if self._broker is not None:
            self._broker.close()
            self._broker = None
        where = redact_url(self._settings.broker_url)
        if text != self.view.data["broker"]["error"]:
            logger.warning("the broker %s is away: %s", where, text, extra={"action": "broker_away"})
        unknown = [
            {"name": item.actual, "depth": None, "consumers": None, "oldest_wait_s": None}
            for item in self._settings.queues
        ]
        data = {"broker": {"up": False, "error": text}, "queues": unknown}
        self._change(View(Phase.CONNECTING, f"waits for the broker {where}: {text}", data))
        self._figures_due = time.monotonic() + RETRY_S[min(self._failures, len(RETRY_S) - 1)]
        self._failures += 1

    def _change(self, view: View) -> None:
        self.view = view
        self._on_change()

    def _obey(self, command: str, params: dict[str, Any]) -> dict[str, Any]:
        """Raises LimetaskError with a message for the operator."""
        if command == "settings":
            return self._reread()
        if command in self._store.commands:
            return self._store.obey(command, params)
        broker = self._broker
        if broker is None:
            raise CommandError(f"the broker is away: {self.view.data['broker']['error'] or 'not connected yet'}")
        try:
            if command == "restore":
                return {"restored": self._restore(broker)}
            if command == "look":
                name = params.get("queue")
                if not isinstance(name, str) or not name:
                    raise CommandError("look needs the name of a queue")
                depth = broker.figures([name])[0].depth
                if params.get("delayed") and any(figure.depth for figure in broker.figures(DELAY_QUEUES)):
                    depth = None  # some of those may be for this queue
                if depth is not None:
                    depth += self._kept.waiting(name)
                return {"depth": depth, "unacknowledged": broker.unacknowledged(name)}
            if command == "purge":
                name = params.get("queue")
                if not isinstance(name, str) or not name:
                    raise CommandError("purge needs the name of a queue")
                purged = broker.purge(name)
                self._figures_due = 0.0
                logger.warning(
                    "purged %s: %d messages dropped", name, purged, extra={"action": "purged", "task_queue": name}
                )
                return {"purged": purged}
            if command == "quarantine":
                return self._quarantine(broker, params)
        except BrokerAwayError as error:
            self._lost(error)
            raise
        raise CommandError(f"the agent does not know the command {command!r}")

    def _quarantine(self, broker: Broker, params: dict[str, Any]) -> dict[str, Any]:
        """Raises BrokerAwayError, CommandError."""
        queues = [item.actual for item in self._settings.queues if params.get("queue") in (None, item.actual)]
        try:
            with connection_of(self._settings, confirm=True) as sending:
                return quarantine.obey(broker.connection, sending, self._store, queues, params)
        except CommandError:
            raise
        except broker.gone as error:
            raise away(error) from error

    def _reread(self) -> dict[str, Any]:
        try:
            settings = Settings.from_json(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CommandError(f"the settings cannot be read again: {error}") from error
        moved = (settings.broker_url, settings.celery, settings.cluster) != (
            self._settings.broker_url, self._settings.celery, self._settings.cluster
        )  # fmt: skip
        self._settings = settings
        self._store = ResultStore(settings)
        if moved and self._broker is not None:
            self._broker.close()
            self._broker = None
        self._failures, self._figures_due = 0, 0.0
        return {}
