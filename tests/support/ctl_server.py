"""A daemon's control socket for tests of the client: a ROUTER that answers as docs/control-protocol.md says."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

DOCUMENT = Path(__file__).parents[2] / "docs" / "control-protocol.md"
_EXAMPLE = re.compile(r"^```json\n(.*?)^```", re.MULTILINE | re.DOTALL)

_LINGER_MS = 10_000

# Of one request: the frames to answer with; none = no answer.
Answer = Callable[[dict[str, Any]], list[bytes]]


def examples() -> dict[str, dict[str, Any]]:
    """Method -> {"method", "params", "result"}, as printed in the document."""
    found = [json.loads(text) for text in _EXAMPLE.findall(DOCUMENT.read_text("utf-8"))]
    return {example["method"]: example for example in found}


def result(request: dict[str, Any], value: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": value}).encode()


def error(request: dict[str, Any], code: int, message: str) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": message}}).encode()


class ControlServer:
    """Listens at `path` in a thread until `close`. `requests` holds what came; `answers` what it says to a method."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[dict[str, Any]] = []
        self.answers: dict[str, Answer] = {
            method: (lambda request, value=example["result"]: [result(request, value)])
            for method, example in examples().items()
        }
        self._last_method: str | None = None
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        self._router.bind(f"ipc://{path}")
        self._stop = self._context.socket(zmq.PAIR)
        self._stop.bind("inproc://stop")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def answer(self, method: str, value: Any) -> None:
        """Answer `method` with this result."""
        self.answers[method] = lambda request: [result(request, value)]

    def refuse(self, method: str, code: int, message: str) -> None:
        self.answers[method] = lambda request: [error(request, code, message)]

    def raw(self, method: str, *frames: bytes) -> None:
        """Answer `method` with these frames as they are (none: never)."""
        self.answers[method] = lambda request: list(frames)

    def close_after(self, method: str) -> None:
        """Stop listening as soon as `method` has been answered; the answer still goes out."""
        self._last_method = method

    def wait(self) -> None:
        """Until it has stopped listening by itself."""
        self._thread.join()

    def methods(self) -> list[str]:
        return [request["method"] for request in self.requests]

    def close(self) -> None:
        """Stop listening; the socket file goes, as a daemon's does."""
        if self._thread.is_alive():
            self._stop.send(b"")
            self._thread.join()
        self._context.destroy(linger=0)
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        stop = self._context.socket(zmq.PAIR)
        stop.connect("inproc://stop")
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(stop, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if stop in ready:
                self._router.close()
                return
            peer, *frames = self._router.recv_multipart()
            (frame,) = frames
            request = json.loads(frame)
            self.requests.append(request)
            answer = self.answers[request["method"]](request)
            if answer:
                self._router.send_multipart([peer, *answer])
            if request["method"] == self._last_method:
                self._router.linger = _LINGER_MS
                self._router.close()
                return
