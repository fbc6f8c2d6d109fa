"""One connection to the daemon: a DEALER socket, one deadline for each call, and clear words when nobody is there.

libzmq connects in the background and for ever, so it never says that nobody listens. Two things say it here: a plain
connect to the UNIX socket first, and libzmq's monitor events while waiting for an answer.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq

from limetaskctl import protocol
from limetaskctl.endpoint import path_of
from limetaskctl.errors import RefusedError, ReplyError, StillWaitingError, UnreachableError
from limetaskctl.identity import identity

HANDSHAKE_S = 10.0
_PROBE_S = 0.9
_GREETING_S = 0.1
_ZMTP_GREETING = b"\xff"  # the first byte of a ZeroMQ peer, sent as soon as it accepts
_MONITOR = "inproc://limetaskctl.monitor"
_EVENT = struct.Struct("=HI")  # libzmq: u16 event, u32 value
_FAILED_HANDSHAKE = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _FAILED_HANDSHAKE


class Client:
    """Calls methods of the daemon at `endpoint` (`ipc://PATH`), one at a time.

    Raises UnreachableError at once when nobody listens there.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._path = path_of(endpoint)
        self._pidfd = probe(self._path)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.monitor(_MONITOR, _EVENTS)
        self._monitor = self._context.socket(zmq.PAIR)
        self._monitor.linger = 0
        self._monitor.connect(_MONITOR)
        self._socket.connect(endpoint)
        self._last_id = 0
        self._connected = False
        self._gone = False

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection; nothing more is sent."""
        self._socket.disable_monitor()
        self._context.destroy(linger=0)
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def call(
        self, method: str, params: dict[str, Any], timeout_s: float | None = None, waits: bool = False
    ) -> dict[str, Any]:
        """The result of `method`. `timeout_s` None: as long as the daemon lives; `waits`: it is meant to take long.

        Raises RefusedError with the daemon's reason, ReplyError for an answer that cannot be understood,
        UnreachableError when there is no daemon (any more), or none that answers in time; StillWaitingError
        instead of that when the method waits.
        """
        self._last_id += 1
        request_id = self._last_id
        frame = protocol.encode_request(request_id, method, params, identity())
        now = time.monotonic()
        deadline = None if timeout_s is None else now + timeout_s
        handshake_s = HANDSHAKE_S if timeout_s is None else min(HANDSHAKE_S, timeout_s)
        handshake_deadline = now + handshake_s
        self._socket.send(frame)
        while True:
            response = self._receive(request_id)
            if response is not None:
                return self._result(method, response)
            if self._gone:
                raise UnreachableError(f"the daemon at {self._path} went away before it answered")
            now = time.monotonic()
            if not self._connected and now >= handshake_deadline:
                raise UnreachableError(f"the daemon at {self._path} does not answer (waited {handshake_s:g} s)")
            if deadline is not None and now >= deadline:
                if waits:
                    raise StillWaitingError(
                        f"{method} is not done after {timeout_s:g} s; the daemon goes on (see: limetaskctl status)"
                    )
                raise UnreachableError(f"the daemon at {self._path} did not answer within {timeout_s:g} s")
            if not self._connected:
                self._wait(handshake_deadline - now)  # never later than the deadline
            else:
                self._wait(None if deadline is None else deadline - now)

    def wait_gone(self, timeout_s: float | None = None) -> None:
        """Return when the daemon has ended, after it has said that it stops. Raises StillWaitingError."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._gone:
            left = _left(deadline)
            if left is not None and left <= 0:
                raise StillWaitingError(f"the daemon has not stopped after {timeout_s:g} s; it goes on stopping")
            self._wait(left)
        # The socket closes a little before the process ends, and a new daemon is refused until it has.
        if self._pidfd is None:
            return
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        left = _left(deadline)
        if not poller.poll(None if left is None else max(0, left * 1000)):
            raise StillWaitingError(f"the daemon has not stopped after {timeout_s:g} s; it goes on stopping")

    def _wait(self, seconds: float | None) -> None:
        """Wait for an answer or for news of the connection; takes note of the news."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        # Rounded up: a poll of 0 ms would spin until the deadline.
        poller.poll(None if seconds is None else int(max(0.0, seconds) * 1000) + 1)
        while True:
            try:
                event = _EVENT.unpack_from(self._monitor.recv_multipart(zmq.NOBLOCK)[0])[0]
            except zmq.Again:
                return
            if event & _FAILED_HANDSHAKE:
                raise UnreachableError(f"{self._path}: what listens there is not limetaskd's control socket")
            if event == zmq.EVENT_DISCONNECTED:
                self._gone = True
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED and not self._gone:
                self._connected = True

    def _receive(self, request_id: int) -> protocol.Response | None:
        """The answer to `request_id` if it has come. Answers to earlier requests that nobody awaits are dropped."""
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            if len(frames) != 1:
                raise ReplyError(f"the daemon's answer has {len(frames)} frames instead of one")
            response = protocol.decode_response(frames[0])
            if response.id is None or response.id >= request_id:
                return response

    @staticmethod
    def _result(method: str, response: protocol.Response) -> dict[str, Any]:
        if response.error_code is None:
            return response.result
        if response.error_code == protocol.UNKNOWN_METHOD:
            raise RefusedError(
                f"the daemon does not know {method!r}: it is of another version (see: limetaskctl version)",
                response.error_code,
            )
        raise RefusedError(response.error_message or "the daemon refused and gave no reason", response.error_code)


def probe(path: str) -> int | None:
    """Check that somebody listens at the UNIX socket `path` (`@name`: abstract); a pidfd of who it is, if known.

    The caller closes the pidfd. Raises UnreachableError with what is wrong and what to do.
    """
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
        plain.settimeout(_PROBE_S)
        try:
            plain.connect(address)
        except OSError as error:
            raise UnreachableError(_explain(path, error)) from error
        plain.settimeout(_GREETING_S)
        try:
            greeting = plain.recv(1)
        except OSError:
            greeting = b""  # it says nothing yet: a daemon that is slow, or frozen
        if greeting not in {b"", _ZMTP_GREETING}:
            # libzmq would take some of that for the first version of its protocol.
            raise UnreachableError(f"{path}: what listens there is not limetaskd's control socket")
        pid = struct.unpack("=iII", plain.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    if pid <= 0:  # a daemon outside this pid name space
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None  # no pidfd (an old kernel, or it has just ended): the closed connection has to tell


def _explain(path: str, error: OSError) -> str:
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return f"cannot reach limetaskd: no socket at {path} (is it running? another place: --socket)"
    if error.errno == errno.ECONNREFUSED:
        if _is_socket(path):
            return f"cannot reach limetaskd: nobody listens at {path} any more (is it running?)"
        return f"cannot reach limetaskd: {path} is not a socket"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"cannot reach limetaskd: permission denied for {path}{_who_may(path)}"
    if error.errno == errno.EPROTOTYPE:
        return f"cannot reach limetaskd: {path} is a socket of another kind; the control socket is control.sock"
    if isinstance(error, TimeoutError) or error.errno == errno.EAGAIN:
        return f"cannot reach limetaskd: {path} takes no connection (does the daemon hang?)"
    return f"cannot reach limetaskd: {path}: {error.strerror or error}"


def _is_socket(path: str) -> bool:
    try:
        return path.startswith("@") or stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        return True  # it is gone now: so it was a daemon's socket


def _who_may(path: str) -> str:
    """` (owner root, group lime)`, or nothing when even that may not be seen."""
    try:
        file = Path(path)
        return f" (owner {file.owner()}, group {file.group()}, mode {stat.S_IMODE(file.stat().st_mode):04o})"
    except (OSError, KeyError):
        return ""


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()
