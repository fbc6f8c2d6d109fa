"""The control socket: a ZeroMQ ROUTER in the daemon's loop. Each request is a task of its own."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
from pathlib import Path

import zmq
import zmq.asyncio

from limetaskd.core.redact import redact_text
from limetaskd.daemon import commands
from limetaskd.daemon.audit import Operator
from limetaskd.daemon.control import protocol
from limetaskd.daemon.control.protocol import RpcError
from limetaskd.daemon.daemon import Daemon
from limetaskd.errors import LimetaskError
from limetaskd.plan.model import ControlPlan

log = logging.getLogger("limetaskd.control")

# More requests than this at once are a runaway client: it is told so.
MAX_PENDING = 1000


class ControlServer:
    """Serves the commands of `limetaskd.daemon.commands` until `close`."""

    def __init__(self, daemon: Daemon, plan: ControlPlan) -> None:
        self._daemon = daemon
        self._plan = plan
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._tasks: set[asyncio.Task[None]] = set()
        self._path = Path(plan.endpoint.removeprefix("ipc://"))

    def start(self) -> None:
        """Bind, guarded by file mode and group. Raises LimetaskError when that cannot be done."""
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_BYTES)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        old = os.umask(0o177)
        try:
            self._socket.bind(self._plan.endpoint)
        except zmq.ZMQError as error:
            raise LimetaskError(f"the control socket {self._plan.endpoint} cannot be opened: {error}") from error
        finally:
            os.umask(old)
        if self._plan.group is not None:
            try:
                os.chown(self._path, -1, grp.getgrnam(self._plan.group).gr_gid)
            except (KeyError, PermissionError) as error:
                raise LimetaskError(
                    f"limetaskd.control.group: {self._plan.group!r} cannot be given {self._path}: {error}"
                ) from error
        self._path.chmod(self._plan.mode)
        self._run(self._serve())

    def _run(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self) -> None:
        while True:
            try:
                frames = await self._socket.recv_multipart()
            except zmq.ZMQError as error:
                log.error("the control socket: %s", error)
                await asyncio.sleep(1)
                continue
            # identity, then the document; a REQ client puts an empty frame between.
            if len(self._tasks) > MAX_PENDING:
                await self._send(frames[0], protocol.error(None, protocol.FAILED, "too many requests at once"))
            else:
                self._run(self._answer(frames[0], frames[1:]))

    async def _answer(self, identity: bytes, frames: list[bytes]) -> None:
        request_id = None
        wants_answer = True
        try:
            if not frames or (len(frames) > 1 and any(frames[:-1])):
                raise RpcError(protocol.INVALID_REQUEST, "one frame a request")
            request = protocol.parse(frames[-1])
            request_id, wants_answer = request.id, request.wants_answer
            by = Operator.of_client(request.client)
            answer = await commands.run(self._daemon, request.method, request.params, by)
            reply = protocol.result(request_id, answer)
        except RpcError as error:
            reply = protocol.error(error.request_id if request_id is None else request_id, error.code, str(error))
        except LimetaskError as error:
            reply = protocol.error(request_id, protocol.FAILED, redact_text(str(error)))
        except Exception as error:
            # The edge: a bug in one command must neither end the daemon nor leave a client without an answer.
            log.exception("a command failed unexpectedly")
            reply = protocol.error(request_id, protocol.INTERNAL_ERROR, redact_text(f"internal error: {error!r}"))
        if wants_answer:
            prefix = [b""] if len(frames) > 1 else []
            await self._send(identity, *prefix, reply)

    async def _send(self, *frames: bytes) -> None:
        try:
            await self._socket.send_multipart(list(frames), flags=zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.debug("a client did not take its answer: %s", error)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close()
        # Lets the last answers out for at most LINGER; the loop has nothing else to do by now.
        self._context.term()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
