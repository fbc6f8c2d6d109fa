"""The wire of the control socket: what is a request, and what error everything else gets."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limetaskd.daemon.control import protocol
from limetaskd.daemon.control.protocol import RpcError, parse, take


def test_a_request_is_read() -> None:
    request = parse(b'{"jsonrpc": "2.0", "id": 7, "method": "status", "params": {"pool": "asap"}}')
    assert (request.id, request.method, request.params, request.wants_answer) == (7, "status", {"pool": "asap"}, True)


def test_a_notification_wants_no_answer() -> None:
    assert parse(b'{"jsonrpc": "2.0", "method": "status"}').wants_answer is False


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"", protocol.PARSE_ERROR),
        (b"\xff\xfe", protocol.PARSE_ERROR),
        (b"[" * 100_000, protocol.PARSE_ERROR),
        (b"[]", protocol.INVALID_REQUEST),
        (b"3", protocol.INVALID_REQUEST),
        (b"{}", protocol.INVALID_REQUEST),
        (b'{"jsonrpc": "1.0", "id": 1, "method": "status"}', protocol.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": {}, "method": "status"}', protocol.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "protocol": 2, "id": 1, "method": "status"}', protocol.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": true, "method": "status"}', protocol.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": 1, "method": 5}', protocol.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "status", "params": [1]}', protocol.INVALID_PARAMS),
        (b" " * (protocol.MAX_BYTES + 1), protocol.INVALID_REQUEST),
    ],
)
def test_what_is_no_request_gets_its_code(frame: bytes, code: int) -> None:
    with pytest.raises(RpcError) as caught:
        parse(frame)
    assert caught.value.code == code


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_an_rpc_error(frame: bytes) -> None:
    try:
        parse(frame)
    except RpcError as error:
        assert json.loads(protocol.error(error.request_id, error.code, str(error)))["error"]["message"]


def test_parameters_are_checked_by_name_and_type() -> None:
    assert take({"pool": "a"}, {"pool": (str,), "n": (int,)}) == {"pool": "a", "n": None}
    with pytest.raises(RpcError, match="unknown parameter 'pol'"):
        take({"pol": "a"}, {"pool": (str,)})
    with pytest.raises(RpcError, match="n must be int, not bool"):
        take({"n": True}, {"n": (int,)})
