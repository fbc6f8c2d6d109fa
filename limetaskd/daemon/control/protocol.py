"""JSON-RPC 2.0 on the wire (pure): one JSON document a frame, at most 1 MiB.

    request   {"jsonrpc": "2.0", "id": 1, "method": "status", "params": {}}
              "protocol": 1 and "client": {"uid", "user", "pid"} may be added
    result    {"jsonrpc": "2.0", "id": 1, "result": {...}}
    error     {"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": "..."}}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from limetaskd.core.documents import loads
from limetaskd.errors import LimetaskError

PROTOCOL_VERSION = 1
MAX_BYTES = 1024 * 1024

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
FAILED = -32000

Params = dict[str, Any]


class RpcError(LimetaskError):
    """The request cannot be answered with a result."""

    def __init__(self, code: int, message: str, request_id: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id


@dataclass(frozen=True)
class Request:
    id: Any  # None: a notification, which gets no answer
    method: str
    params: Params
    wants_answer: bool
    client: Params  # what the client says of itself: for the audit log, proven by nothing


def parse(frame: bytes) -> Request:
    """Raises RpcError, with the code of the specification, for anything that is not a request."""
    if len(frame) > MAX_BYTES:
        raise RpcError(INVALID_REQUEST, f"a request has at most {MAX_BYTES} bytes")
    try:
        document = loads(frame)
    except ValueError as error:
        raise RpcError(PARSE_ERROR, f"not JSON: {error}") from error
    if isinstance(document, list):
        raise RpcError(INVALID_REQUEST, "batches are not supported: send one request a frame")
    if not isinstance(document, dict):
        raise RpcError(INVALID_REQUEST, "a request is a JSON object")
    request_id = document.get("id")
    if not isinstance(request_id, str | int | float | None) or isinstance(request_id, bool):
        raise RpcError(INVALID_REQUEST, "id must be a string or a number")
    if document.get("jsonrpc") != "2.0":
        raise RpcError(INVALID_REQUEST, 'jsonrpc must be "2.0"', request_id)
    if document.get("protocol", PROTOCOL_VERSION) != PROTOCOL_VERSION:
        raise RpcError(
            INVALID_REQUEST,
            f"this daemon speaks protocol {PROTOCOL_VERSION}: use the limetaskctl of its own version",
            request_id,
        )
    method = document.get("method")
    if not isinstance(method, str):
        raise RpcError(INVALID_REQUEST, "method must be a string", request_id)
    params = document.get("params", {})
    if params is None:
        params = {}
    if not isinstance(params, dict):
        raise RpcError(INVALID_PARAMS, "params must be an object", request_id)
    client = document.get("client")
    return Request(request_id, method, params, "id" in document, client if isinstance(client, dict) else {})


def result(request_id: Any, value: Any) -> bytes:
    """Raises RpcError when the result does not fit into a frame."""
    frame = json.dumps({"jsonrpc": "2.0", "id": request_id, "result": value}, ensure_ascii=False).encode()
    if len(frame) > MAX_BYTES:
        raise RpcError(FAILED, f"the answer would have {len(frame)} bytes: ask for less", request_id)
    return frame


def error(request_id: Any, code: int, message: str) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}}).encode()


def take(params: Params, allowed: dict[str, tuple[type, ...]]) -> Params:
    """Check names and types of `params`; absent ones become None. Raises RpcError."""
    for name in params:
        if name not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            raise RpcError(INVALID_PARAMS, f"unknown parameter {name!r} (known: {known})")
    taken: Params = {}
    for name, types in allowed.items():
        value = params.get(name)
        wrong_bool = isinstance(value, bool) and bool not in types
        if value is not None and (wrong_bool or not isinstance(value, types)):
            expected = " or ".join(item.__name__ for item in types)
            raise RpcError(INVALID_PARAMS, f"{name} must be {expected}, not {type(value).__name__}")
        taken[name] = value
    return taken


def names(params: Params, key: str) -> list[str]:
    """A list of at least one name. Raises RpcError."""
    value = params.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise RpcError(INVALID_PARAMS, f"{key} must be a list of names")
    return value
