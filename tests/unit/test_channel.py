"""The daemon's end of the local channel, with real sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from limetaskd.daemon.channel import Connection
from limetaskd.errors import NoAnswerError


def test_a_connection_ends_under_those_who_still_want_to_say_something() -> None:
    """Its descriptor is soon somebody else's: nobody may be left who waits to write to it."""

    async def run() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        connection = Connection(ours)
        number = ours.fileno()
        # The process has stopped: nobody reads, until the socket takes no more.
        calls = [asyncio.ensure_future(connection.call("x", {"x": "x" * 60_000}, 30)) for _ in range(20)]
        for _ in range(100):
            await asyncio.sleep(0)
        connection.hang_up()
        async with asyncio.timeout(10):
            await connection.close()
            for call in calls:
                with pytest.raises(NoAnswerError):
                    await call
        assert not asyncio.get_running_loop().remove_writer(number)
        theirs.close()

    asyncio.run(run())
