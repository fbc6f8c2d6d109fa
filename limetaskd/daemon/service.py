"""What the service manager is told, and when: READY, STATUS, RELOADING, STOPPING, WATCHDOG, EXTEND_TIMEOUT."""

from __future__ import annotations

import asyncio
import logging
import time

from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.events import Event
from limetaskd.daemon.notify import Notifier

log = logging.getLogger("limetaskd.service")

POLL_S = 1.0
EXTEND_S = 30


class ServiceReporter:
    """Follows the daemon's events. The watchdog is fed from the loop, so a loop that hangs is noticed."""

    def __init__(self, daemon: Daemon, notifier: Notifier) -> None:
        self._daemon = daemon
        self._notifier = notifier
        self._ready = False
        daemon.events.subscribe(self._on_event)

    def start(self) -> None:
        self._daemon.background(self._report())
        if self._notifier.watchdog_interval_s is not None:
            self._daemon.background(self._feed(self._notifier.watchdog_interval_s))

    def _on_event(self, event: Event) -> None:
        if event["event"] == "reload_started":
            self._notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        elif event["event"] in {"reload_done", "reload_undone"}:
            self._notifier.send("READY=1")

    async def _report(self) -> None:
        """READY as soon as it is true, the words whenever they change."""
        while True:
            daemon = self._daemon
            if daemon.state == "stopping":
                self._notifier.send(f"EXTEND_TIMEOUT_USEC={EXTEND_S * 1_000_000}")
            elif not self._ready and daemon.ready():
                self._ready = True
                daemon.state = "running"
                self._notifier.send("READY=1")
                log.info("ready: %s", daemon.status_text(), extra={"action": "ready"})
            self._notifier.status(daemon.status_text())
            # Events wake us; the poll is for what changes without one, and for EXTEND_TIMEOUT.
            await daemon.events.wait(POLL_S if daemon.state == "stopping" or not self._ready else 60.0)

    async def _feed(self, interval_s: float) -> None:
        while True:
            self._notifier.send("WATCHDOG=1")
            await asyncio.sleep(interval_s)
