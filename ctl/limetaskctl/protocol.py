"""JSON-RPC 2.0 frames of the control socket (pure). One JSON document a frame, at most `MAX_BYTES`.

    request   {"jsonrpc": "2.0", "id": 1, "method": "status", "params": {"pool": "asap"}}
    result    {"jsonrpc": "2.0", "id": 1, "result": {...}}
    error     {"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": "no pool 'asap'"}}

docs/control-protocol.md describes every method.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from limetaskctl.errors import ReplyError, UsageError

PROTOCOL_VERSION = 1
MAX_BYTES = 1024 * 1024
# A daemon keeps to MAX_BYTES as well; to refuse a readable answer would help nobody.
MAX_ANSWER_BYTES = 16 * 1024 * 1024

UNKNOWN_METHOD = -32601


class Response(NamedTuple):
    """One answer: `error_code` None means that `result` holds the result. `id` None: the request was unreadable."""

    id: int | None
    result: dict[str, Any]
    error_code: int | None = None
    error_message: str = ""


def encode_request(
    request_id: int, method: str, params: dict[str, Any], client: dict[str, Any] | None = None
) -> bytes:
    """One request frame; `client`: who asks, for the audit log. Raises UsageError when it is too large for a frame."""
    document: dict[str, Any] = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    if client is not None:
        document["client"] = client
    frame = json.dumps(document, separators=(",", ":")).encode()
    if len(frame) > MAX_BYTES:
        raise UsageError(f"the command has {len(frame)} bytes, more than the {MAX_BYTES} of one request")
    return frame


def decode_response(frame: bytes) -> Response:
    """Raises ReplyError when `frame` is no JSON-RPC 2.0 answer."""
    if len(frame) > MAX_ANSWER_BYTES:
        raise ReplyError(f"the daemon's answer has {len(frame)} bytes, more than the {MAX_ANSWER_BYTES} that are read")
    try:
        document: Any = json.loads(frame)
    except (ValueError, RecursionError) as error:
        # UnicodeDecodeError is a ValueError as well.
        raise ReplyError("the daemon's answer is not JSON") from error
    if not isinstance(document, dict) or document.get("jsonrpc") != "2.0":
        raise _malformed()
    if ("result" in document) == ("error" in document):
        raise _malformed()
    request_id = document.get("id")
    if request_id is not None and (isinstance(request_id, bool) or not isinstance(request_id, int)):
        raise _malformed()
    if "error" in document:
        return _decode_error(request_id, document["error"])
    if not isinstance(document["result"], dict):
        raise _malformed()
    return Response(request_id, document["result"])


def _decode_error(request_id: int | None, error: Any) -> Response:
    if not isinstance(error, dict):
        raise _malformed()
    code, message = error.get("code"), error.get("message")
    if isinstance(code, bool) or not isinstance(code, int) or not isinstance(message, str):
        raise _malformed()
    return Response(request_id, {}, code, message)


def _malformed() -> ReplyError:
    return ReplyError("the daemon's answer is not a JSON-RPC 2.0 response: does --socket name limetaskd's socket?")
