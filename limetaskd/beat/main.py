"""The schedule as a process of the daemon: ticks, reports, stops when told."""

from __future__ import annotations

import dataclasses
import logging
import os
import select
import signal
import threading
import time
from types import FrameType
from typing import Any, TextIO

from kombu.exceptions import KombuError

from limetaskd.beat.scheduler import RETRY_S, Scheduler, lock_schedule
from limetaskd.core.channel import Command, Phase, Reply, State
from limetaskd.core.redact import redact_text
from limetaskd.core.settings import Settings
from limetaskd.core.spec import ProcessSpec
from limetaskd.errors import LimetaskError
from limetaskd.worker import application, logs
from limetaskd.worker.begin import begin
from limetaskd.worker.link import Link

logger = logging.getLogger(__name__)

EX_CONFIG = 78
# A send is tried again for ever anyway; a short try lets a stop be quick.
SEND_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 4.0
TURN_POLL_S = 0.1


class Beat:
    """One schedule process."""

    def __init__(self, spec: ProcessSpec, settings: Settings) -> None:
        self.spec = spec
        self.settings = dataclasses.replace(
            settings, publish_timeout_s=min(settings.publish_timeout_s, SEND_TIMEOUT_S)
        )
        self.phase = Phase.STARTING
        self.reason: str | None = None
        self.stopping = False
        self.entries = 0
        self.ticked_at: float | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.link = Link(spec.channel, self.state, self._on_command, settings.orphan_timeout_s)

    def state(self) -> State:
        return State(
            name=self.spec.name,
            generation=self.spec.generation,
            pid=os.getpid(),
            phase=self.phase,
            reason=self.reason,
            data={"entries": self.entries, "ticked_at": self.ticked_at},
        )

    def report(self, phase: str, reason: str | None = None) -> None:
        reason = None if reason is None else " ".join(redact_text(reason).split())[:500]
        if (phase, reason) == (self.phase, self.reason):
            return
        if phase == Phase.CONNECTING and reason:
            logger.warning("the broker cannot be used, trying again for ever: %s", reason)
        self.phase, self.reason = phase, reason
        self.link.poke()

    def _on_command(self, command: Command) -> None:
        error = None
        if command.command == "drain":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        elif command.command == "reopen":
            try:
                logs.reopen_all()
            except OSError as failure:
                error = f"cannot open the log file: {failure}"
        elif command.command == "configure":
            logs.set_level(str(command.params.get("log_level", "INFO")))
        else:
            error = f"unknown command {command.command!r}"
        self.link.reply(Reply(command.id, error))

    def install_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, lambda _number, _frame: logs.reopen_all())

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopping = True
        os.eventfd_write(self._wake, 1)

    def _pause(self, seconds: float) -> None:
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.poll(seconds * 1000)

    def _take_turn(self) -> TextIO | None:
        """Wait until no other schedule with this state runs, known to the daemon or not; the lock.

        None when it is told to stop, or the disk refuses.
        """
        while not self.stopping:
            try:
                return lock_schedule(str(self.spec.state))
            except BlockingIOError:
                self.report(Phase.STARTING, "another schedule with this state_dir runs still")
                self._pause(TURN_POLL_S)
            except OSError as error:
                logger.error("%s: nothing keeps another schedule from running beside this one", error)
                break
        return None

    def run(self) -> int:
        app = application.build(self.settings)
        turn = self._take_turn()
        if not self.stopping:
            self._tick(app)
        if turn is not None:
            turn.close()
        logger.info("the schedule stops")
        return os.EX_OK

    def _tick(self, app: Any) -> None:
        scheduler = Scheduler(app, schedule_filename=self.spec.state)
        self.entries = len(scheduler.schedule)
        connected = False
        while not self.stopping:
            trouble = None if connected else self._connect(app)
            connected = trouble is None
            # Ticks also without a broker: what is due then is sent by the first tick that can.
            delay = scheduler.tick() if connected else RETRY_S
            self.ticked_at = time.time()
            if scheduler.trouble is not None and connected:
                connected, trouble = False, scheduler.trouble
            self.report(Phase.CONSUMING if trouble is None else Phase.CONNECTING, trouble)
            self._pause(delay)
        scheduler.close()

    def _connect(self, app: Any) -> str | None:
        """None when the broker answers, else why not."""
        connection = app.connection_for_write(connect_timeout=CONNECT_TIMEOUT_S)
        try:
            connection.connect()
        except (*connection.connection_errors, *connection.channel_errors, KombuError, OSError) as error:
            return f"{connection.as_uri()}: {error}"
        finally:
            connection.release()
        return None


def main(spec: ProcessSpec) -> int:
    """Run until told to stop. 0: stopped; 78 (EX_CONFIG): it cannot work like this."""
    settings = begin(spec)
    beat = Beat(spec, settings)
    beat.install_signals()
    beat.link.start()
    try:
        return beat.run()
    except LimetaskError as error:  # a task module or its schedule
        logger.critical("the schedule cannot start: %s", redact_text(str(error)))
        beat.report(Phase.FAILED, str(error))
        beat.link.flush(2.0)
        return EX_CONFIG
