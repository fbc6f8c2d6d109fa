"""What a command gets to work with: calls to the daemon, and output."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from limetaskctl.render import View

if TYPE_CHECKING:
    from limetaskctl.client import Client

DEFAULT_TIMEOUT_S = 10.0


class Session:
    """One run of the client. It connects at the first call, so that what needs no daemon never imports zmq.

    `endpoint` is asked then. `timeout_s` None: the default of each call. `json`: print documents, not text.
    """

    def __init__(
        self, endpoint: Callable[[], str], timeout_s: float | None, as_json: bool, view: View, out: TextIO
    ) -> None:
        self.as_json = as_json
        self.view = view
        self.timeout_s = timeout_s
        self._endpoint = endpoint
        self._out = out
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The connection. Raises UnreachableError."""
        if self._client is None:
            from limetaskctl.client import Client

            self._client = Client(self._endpoint())
        return self._client

    def call(self, method: str, params: dict[str, Any], waits: bool = False, longer_s: float = 0.0) -> dict[str, Any]:
        """The result of `method`; errors as Client.call.

        `waits`: without --timeout there is no limit. `longer_s`: how long the daemon was asked to hold the answer.
        """
        timeout_s = self.timeout_s
        if timeout_s is None and not waits:
            timeout_s = DEFAULT_TIMEOUT_S
        if timeout_s is not None:
            timeout_s += longer_s
        return self.client.call(method, params, timeout_s, waits)

    def line(self, text: str) -> None:
        """Print one line (or text of several), at once: who reads a pipe waits for it."""
        self._out.write(f"{text}\n")
        self._out.flush()

    def document(self, document: dict[str, Any]) -> None:
        """Print one JSON document."""
        self.line(json.dumps(document, indent=2, ensure_ascii=False))

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
