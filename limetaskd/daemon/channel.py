"""The daemon's end of the local channel: `<runtime_dir>/channel.sock`. Shapes are in `limetaskd.core.channel`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limetaskd.core.channel import MAX_BYTES, Command, Event, Reply, State, decode, encode
from limetaskd.core.peer import peer_pid
from limetaskd.errors import ChannelError, CommandError, NoAnswerError

log = logging.getLogger("limetaskd.channel")


class Connection:
    """One connected process. `state` is the last thing it said of itself."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.peer_pid = peer_pid(sock)
        self.state: State | None = None
        self._numbers = itertools.count(1)
        self._sending = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def call(self, command: str, params: dict[str, Any], timeout_s: float | None) -> dict[str, Any]:
        """Send a command and wait for its reply.

        Raises CommandError when it is refused, NoAnswerError when nobody knows, ChannelError when it is too large.
        """
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            async with asyncio.timeout(timeout_s):
                async with self._sending:  # asyncio knows one writer of a socket
                    packet = encode(Command(number, command, params))
                    await asyncio.get_running_loop().sock_sendall(self._sock, packet)
                return await future
        except TimeoutError as error:
            raise NoAnswerError(f"{command}: no answer within {timeout_s:g} s") from error
        except OSError as error:
            raise NoAnswerError(f"{command}: the process cannot be told ({error.strerror})") from error
        finally:
            self._waiting.pop(number, None)
            if future.done() and not future.cancelled():
                future.exception()  # looked at, also when the sending itself has failed

    def answer(self, reply: Reply) -> None:
        future = self._waiting.get(reply.id)
        if future is None or future.done():
            return
        if reply.error is None:
            future.set_result(reply.result)
        else:
            future.set_exception(CommandError(reply.error))

    def hang_up(self) -> None:
        """Those who wait for an answer, or to say something, hear that it is no use."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(NoAnswerError("the process went away before it answered"))
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """After `hang_up`, once nobody sends: its descriptor becomes somebody else's."""
        async with self._sending:
            self._sock.close()


class ChannelServer:
    """Accepts processes; `on_state(connection, state)`, `on_event` and `on_close` are called in the loop."""

    def __init__(
        self,
        path: str,
        on_state: Callable[[Connection, State], None],
        on_event: Callable[[Connection, Event], None],
        on_close: Callable[[Connection], None],
    ) -> None:
        self._path = Path(path)
        self._on_state = on_state
        self._on_event = on_event
        self._on_close = on_close
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Bind and accept, anew if somebody has removed the socket.

        The lock on runtime_dir says that a socket file left here belongs to nobody.
        """
        if self._accepting is not None:
            self._accepting.cancel()
        if self._listener is not None:
            self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        old = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        finally:
            os.umask(old)
        listener.listen(512)
        self._listener = listener
        self._accepting = self._spawn(self._accept(listener))

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors, most likely: processes try again, so do we.
                log.error("the local channel cannot accept: %s", error)
                await asyncio.sleep(1)
                continue
            sock.setblocking(False)
            self._spawn(self._serve(sock))

    async def _serve(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        connection = Connection(sock)
        try:
            while packet := await loop.sock_recv(sock, MAX_BYTES + 1):
                try:
                    message = decode(packet)
                except ChannelError as error:
                    log.warning("pid %d on the local channel: %s", connection.peer_pid, error)
                    continue
                if isinstance(message, State):
                    connection.state = message
                    self._on_state(connection, message)
                elif isinstance(message, Reply):
                    connection.answer(message)
                elif isinstance(message, Event):
                    self._on_event(connection, message)
        except OSError as error:
            log.debug("pid %d left the local channel: %s", connection.peer_pid, error)
        finally:
            connection.hang_up()
            self._on_close(connection)
            await connection.close()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
