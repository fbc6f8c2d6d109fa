"""supervisor's HTTP server, driven by our loop: a client that goes while it is waited for in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import xmlrpc.client
from pathlib import Path
from typing import Any

from limetaskd.daemon.engine import Groups, XmlRpcServer

DEADLINE_S = 10.0


class Leaving:
    """A channel that is readable at some time, never writable, and is closed when it is read."""

    server = None

    def __init__(self, channels: dict[int, Any]) -> None:
        self.peer, self.sock = socket.socketpair()
        self.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.sock.send(bytes(65536))
        self.channels = channels
        channels[self.sock.fileno()] = self

    def readable(self) -> bool:
        return True

    writable = readable

    def handle_read_event(self) -> None:
        del self.channels[self.sock.fileno()]
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


async def call(client: socket.socket, method: str) -> Any:
    """Send an XML-RPC request on a connected socket; the result."""
    body = xmlrpc.client.dumps((), method).encode()
    head = f"POST /RPC2 HTTP/1.0\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, head.encode() + body)
    answer = b""
    while part := await loop.sock_recv(client, 65536):
        answer += part
    (result,), _ = xmlrpc.client.loads(answer.split(b"\r\n\r\n", 1)[1].decode())
    return result


def test_the_next_client_on_the_same_descriptor_is_served(tmp_path: Path) -> None:
    path = str(tmp_path / "supervisor.sock")

    async def run() -> None:
        server = XmlRpcServer(Groups(), path, lambda: None, lambda: None)
        server.POLL_S = 2 * DEADLINE_S  # its look at all channels would hide that one was forgotten
        server.start()
        leaving = Leaving(server._map)
        number = leaving.sock.fileno()
        client = socket.socket(socket.AF_UNIX)  # now: it must not take the number
        client.setblocking(False)
        with leaving.peer, client:
            async with asyncio.timeout(DEADLINE_S):
                while number not in server._writers:
                    await asyncio.sleep(0)
                leaving.peer.send(b"x")
                while number in server._map:
                    await asyncio.sleep(0)
                await asyncio.get_running_loop().sock_connect(client, path)
                while number not in server._map:  # the server's end
                    await asyncio.sleep(0)
                assert await call(client, "supervisor.getAPIVersion") == "3.0"
        await server.close()

    asyncio.run(run())


def test_the_socket_closes_also_at_the_moment_that_something_happens_on_it(tmp_path: Path) -> None:
    async def run() -> None:
        server = XmlRpcServer(Groups(), str(tmp_path / "supervisor.sock"), lambda: None, lambda: None)
        server.start()
        leaving = Leaving(server._map)  # so that it waits with a timeout
        with leaving.peer:
            while not server._readers:
                await asyncio.sleep(0)
            server._wake.set()
            closing = asyncio.create_task(server.close())
            done, _ = await asyncio.wait([closing], timeout=DEADLINE_S)
            assert done == {closing}

    asyncio.run(run())
