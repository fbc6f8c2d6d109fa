"""The worker's end of the local channel: a small thread that reports and receives, and reconnects for ever.

The thread never touches Celery: commands are handed on. Pool children are forked at any moment; a child closes what
it inherited at once, so that the daemon sees the end of a worker when its main process ends.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from limetaskd.core.channel import MAX_BYTES, REPORT_INTERVAL_S, Command, Event, Message, Reply, State, decode, encode
from limetaskd.errors import ChannelError

logger = logging.getLogger(__name__)

RECONNECT_S = 0.2
SEND_TIMEOUT_S = 5.0
_FLUSH_STEP_S = 0.01


class Link:
    """`snapshot` gives the full state at any time; `on_command` runs in the thread and must not block.

    `alone_s`: without a daemon for so many seconds the process tells itself to finish (SIGTERM); None: it goes on.
    """

    def __init__(
        self,
        path: str,
        snapshot: Callable[[], State],
        on_command: Callable[[Command], None],
        alone_s: float | None = None,
    ) -> None:
        self._path = path
        self._alone_s = alone_s
        self._snapshot = snapshot
        self._on_command = on_command
        self._outbox: deque[Message] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._socket: socket.socket | None = None
        self._changed = 1  # counted up by `poke`, so that no change is missed while a state is on its way
        self._reported = 0
        self._closing = False
        self._abandoned = False
        # Held by a fork, and here only while a descriptor is born: a child always knows what to close.
        self._birth = threading.Lock()
        os.register_at_fork(
            before=self._birth.acquire, after_in_parent=self._birth.release, after_in_child=self._abandon
        )
        self._thread = threading.Thread(target=self._run, name="limetaskd-link", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def poke(self) -> None:
        """The state has changed: send it. Safe in a signal handler."""
        self._changed += 1
        self._signal()

    def reply(self, message: Reply) -> None:
        self._outbox.append(message)
        self._signal()

    def event(self, name: str, fields: dict[str, object]) -> None:
        self._outbox.append(Event(name, fields))
        self._signal()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was said has been sent; False when the daemon does not listen."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self._outbox and self._reported >= self._changed:
                return True
            time.sleep(_FLUSH_STEP_S)
        return False

    def close(self) -> None:
        """End the thread; the daemon sees the end of the connection."""
        self._closing = True
        self._signal()
        if self._thread.is_alive():
            self._thread.join(SEND_TIMEOUT_S)

    def _signal(self) -> None:
        # In a child the number may be another file's by now.
        if not self._abandoned:
            os.eventfd_write(self._wake, 1)

    def _abandon(self) -> None:
        """In a forked child: the link belongs to the parent."""
        self._birth.release()
        if self._abandoned:
            return  # a child of a child
        self._abandoned = self._closing = True
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        os.close(self._wake)

    def _run(self) -> None:
        # Signals are the main thread's: there they interrupt what blocks.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        seen = time.monotonic()
        while not self._closing:
            connection = self._connect()
            if connection is None:
                if self._alone_s is not None and time.monotonic() - seen > self._alone_s:
                    logger.warning("no daemon for %g s: this process finishes and goes", self._alone_s)
                    self._alone_s = None
                    os.kill(os.getpid(), signal.SIGTERM)
                self._pause(RECONNECT_S)
                continue
            try:
                self._serve(connection)
            except OSError as error:
                logger.debug("the daemon's channel was lost: %s", error)
            finally:
                seen = time.monotonic()
                with self._birth:
                    self._socket = None
                    connection.close()

    def _connect(self) -> socket.socket | None:
        with self._birth:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket = connection
        connection.settimeout(SEND_TIMEOUT_S)
        try:
            connection.connect(self._path)
        except OSError as error:
            logger.debug("no daemon at %s: %s", self._path, error)
            with self._birth:
                self._socket = None
                connection.close()
            return None
        return connection

    def _drain_wake(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return

    def _pause(self, seconds: float) -> None:
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.poll(seconds * 1000)
        self._drain_wake()
        # Wakes must not turn the wait for a daemon into a busy loop.
        time.sleep(min(seconds, 0.05))

    def _serve(self, connection: socket.socket) -> None:
        """Report and obey until the connection ends. Raises OSError."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(connection, select.POLLIN)
        self._reported = 0
        due = time.monotonic()
        while not self._closing:
            while self._outbox:
                self._send(connection, self._outbox[0])
                self._outbox.popleft()
            if self._reported < self._changed or time.monotonic() >= due:
                reported = self._changed
                self._send(connection, self._snapshot())
                self._reported = reported
                due = time.monotonic() + REPORT_INTERVAL_S
            ready = {fd for fd, _ in poller.poll(max(0.0, due - time.monotonic()) * 1000)}
            if self._wake in ready:
                self._drain_wake()
            if connection.fileno() in ready:
                packet = connection.recv(MAX_BYTES)
                if not packet:
                    return
                self._receive(packet)

    def _send(self, connection: socket.socket, message: Message) -> None:
        try:
            packet = encode(message)
        except ChannelError:
            logger.exception("a message to the daemon was dropped")
            return
        connection.send(packet)

    def _receive(self, packet: bytes) -> None:
        try:
            message = decode(packet)
        except ChannelError as error:
            logger.warning("the daemon sent something that is not a command: %s", error)
            return
        if isinstance(message, Command):
            self._on_command(message)
