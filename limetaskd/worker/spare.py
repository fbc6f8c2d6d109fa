"""A process that is forked ahead of its need: it waits to be told what it is to become.

    image  --fork-->  go-between  --fork-->  spare       its parent is the daemon, a subreaper, from here on
    image  --packet-->  spare                            it becomes a worker or a schedule
    image  --end of the socket-->  spare                 it exits: it is no use without its image

Nobody watches it while it waits. That it was killed is noticed when it is called, and another one is forked then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable

from limetaskd.core.channel import MAX_BYTES
from limetaskd.errors import LimetaskError

END_TIMEOUT_S = 1.0
_ANSWER_BYTES = 256


class CannotForkError(LimetaskError):
    """There is no new process. Raised in the caller alone: an OSError may come from within a new process."""


class Spare:
    """The image's hold on it. `pid` stays its own as long as `call` succeeds: nobody reaps it before its death."""

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self._socket = sock

    def call(self, packet: bytes) -> bool:
        """Give it what it waits for (at most MAX_BYTES); False when it is dead. It is a spare no longer."""
        try:
            self._socket.send(packet)
        except OSError:
            return False
        finally:
            self._socket.close()
        return True

    def dismiss(self) -> None:
        """End it and wait for its death: who stops the daemon expects that no process remains."""
        with self._socket as sock, contextlib.suppress(OSError):  # dead already
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(END_TIMEOUT_S)
            try:
                sock.recv(1)  # the kernel closes its end when it dies
            except TimeoutError:
                os.kill(self.pid, signal.SIGKILL)  # somebody has stopped it; its end is open, so it lives
                sock.recv(1)


def fork_ahead(settle: Callable[[], None]) -> Spare | bytes:
    """Fork a spare. Returns twice: its Spare at once, and in the new process the packet of `call`.

    The new process runs `settle` before it waits. Raises CannotForkError.
    """
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise CannotForkError(f"cannot fork: {error}") from error
    try:
        between = os.fork()
    except OSError as error:
        ours.close()
        theirs.close()
        raise CannotForkError(f"cannot fork: {error}") from error
    if between == 0:
        ours.close()
        _fork_again(theirs)
        settle()
        return _wait(theirs)
    theirs.close()
    answer = ours.recv(_ANSWER_BYTES)
    # From here on the spare alone has the other end, and the daemon is its parent.
    with contextlib.suppress(ChildProcessError):  # a module ignores SIGCHLD: it was collected at its end
        os.waitpid(between, 0)
    if not answer.isdigit():
        ours.close()
        raise CannotForkError(answer.decode() or "the fork failed")
    return Spare(int(answer), ours)


def _fork_again(theirs: socket.socket) -> None:
    """In the first child: fork, tell the pid (or what went wrong), and be gone. Returns in the second child only."""
    try:
        pid = os.fork()
        answer = str(pid)
    except OSError as error:
        pid, answer = -1, f"cannot fork: {error}"
    if pid == 0:
        return
    try:
        theirs.send(answer.encode())
    finally:
        os._exit(os.EX_OK)  # whatever happened: what comes next in the code is the image's


def _wait(theirs: socket.socket) -> bytes:
    try:
        packet = theirs.recv(MAX_BYTES)
    except OSError:
        packet = b""
    if not packet:
        os._exit(os.EX_OK)  # with the socket open: its end tells `dismiss` that this process has ended
    theirs.close()
    return packet
