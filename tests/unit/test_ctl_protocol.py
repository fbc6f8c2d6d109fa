"""Frames of the control protocol."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limetaskctl.errors import ReplyError, UsageError
from limetaskctl.protocol import MAX_ANSWER_BYTES, MAX_BYTES, Response, decode_response, encode_request

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)


def test_a_request_is_one_json_rpc_document() -> None:
    assert json.loads(encode_request(7, "status", {"pool": "åsap"})) == {
        "jsonrpc": "2.0",
        "id": 7,
        "method": "status",
        "params": {"pool": "åsap"},
    }


def test_a_request_that_no_frame_holds_is_refused() -> None:
    with pytest.raises(UsageError, match="more than"):
        encode_request(1, "start", {"names": ["x" * MAX_BYTES]})


def test_a_result_is_read() -> None:
    assert decode_response(b'{"jsonrpc": "2.0", "id": 1, "result": {"a": null}}') == Response(1, {"a": None})


def test_an_error_is_read_also_without_an_id() -> None:
    frame = b'{"jsonrpc": "2.0", "id": null, "error": {"code": -32700, "message": "not JSON", "data": [1]}}'
    assert decode_response(frame) == Response(None, {}, -32700, "not JSON")


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff\xfe",
        b"hello",
        b"[" * 100_000,
        b"[]",
        b"null",
        b"{}",
        b'{"id": 1, "result": {}}',
        b'{"jsonrpc": "1.0", "id": 1, "result": {}}',
        b'{"jsonrpc": "2.0", "id": 1}',
        b'{"jsonrpc": "2.0", "id": 1, "result": {}, "error": {"code": 1, "message": ""}}',
        b'{"jsonrpc": "2.0", "id": 1, "result": []}',
        b'{"jsonrpc": "2.0", "id": "1", "result": {}}',
        b'{"jsonrpc": "2.0", "id": true, "result": {}}',
        b'{"jsonrpc": "2.0", "id": 1, "error": null}',
        b'{"jsonrpc": "2.0", "id": 1, "error": {"code": "x", "message": ""}}',
        b'{"jsonrpc": "2.0", "id": 1, "error": {"code": true, "message": ""}}',
        b'{"jsonrpc": "2.0", "id": 1, "error": {"code": 1}}',
        b'{"jsonrpc": "2.0", "id": 1, "result": {"a": "' + b"x" * MAX_ANSWER_BYTES + b'"}}',
    ],
)
def test_anything_else_is_no_answer(frame: bytes) -> None:
    with pytest.raises(ReplyError):
        decode_response(frame)


@given(st.binary() | VALUES.map(lambda value: json.dumps(value).encode()))
def test_no_frame_is_read_by_accident_or_crashes(frame: bytes) -> None:
    with pytest.raises(ReplyError):
        decode_response(frame)


@given(st.integers(), st.dictionaries(st.text(), VALUES, max_size=5))
def test_every_result_comes_through(request_id: int, result: dict[str, Any]) -> None:
    frame = json.dumps({"jsonrpc": "2.0", "id": request_id, "result": result}).encode()
    assert decode_response(frame) == Response(request_id, result)
