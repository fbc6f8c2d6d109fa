"""sd_notify: what systemd is told, over the datagram socket of `$NOTIFY_SOCKET` (systemd's sd_notify(3))."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger("limetaskd.notify")


class Notifier:
    """Sends state to the service manager; does nothing when there is none."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for a name in the abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self._last_status = ""
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        usec = environ.get("WATCHDOG_USEC", "")
        watchdog_pid = environ.get("WATCHDOG_PID", str(os.getpid()))
        self.watchdog_interval_s: float | None = None
        if self._socket and usec.isdigit() and watchdog_pid == str(os.getpid()):
            self.watchdog_interval_s = int(usec) / 1e6 / 2

    def send(self, *lines: str) -> None:
        """Send assignments such as `READY=1`. A full or vanished socket is reported, and never waited for."""
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.warning("the service manager could not be told %s: %s", lines[0], error)

    def status(self, text: str) -> None:
        """`STATUS=` in words, when it has changed."""
        if text != self._last_status:
            self._last_status = text
            self.send(f"STATUS={text}")
