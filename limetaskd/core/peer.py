"""Who is at the other end of a UNIX socket."""

from __future__ import annotations

import socket
import struct


def peer_pid(sock: socket.socket) -> int:
    """The process that has connected, or that listens, as the kernel tells it. Raises OSError."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])
