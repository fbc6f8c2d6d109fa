"""What travels between processes as JSON: settings, accepted routing, process specs, channel messages."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limetaskd.core.accepted import Accepted
from limetaskd.core.channel import (
    MAX_BYTES,
    Command,
    Event,
    Reply,
    State,
    decode,
    encode,
)
from limetaskd.core.settings import Queue, Routing, Settings
from limetaskd.core.spec import ProcessSpec
from limetaskd.errors import ChannelError

QUEUE = Queue("q", "prod_q", "x", "direct", "prod_key")
SETTINGS = Settings(
    application="crm",
    broker_url="amqp://u:hunter2@h//",
    backend_url="redis://:hunter2@h/0",
    prefix="prod",
    suffix="",
    exchange="x",
    queues=[QUEUE],
    routing=Routing("q", {"asap": "q"}, {"a.b": "q"}),
    celery={"broker_transport_options": {"a": [1, None, "x"]}},
    config_path="/etc/limetaskd/limetaskd.yaml",
)
SPEC = ProcessSpec("worker", "asap:0", "asap", 3, "/s", "/c", "/l", queues=("q", "r"), state=None)


def test_settings_survive_the_trip() -> None:
    assert Settings.from_json(SETTINGS.to_json()) == SETTINGS


def test_a_spec_survives_the_trip() -> None:
    assert ProcessSpec.from_json(SPEC.to_json()) == SPEC


def damaged(text: str) -> list[str]:
    """The document, damaged in several ways."""
    document = json.loads(text)
    first = next(key for key in document if key != "version")
    return [
        "", "null", "[]", "5", "{", json.dumps({**document, "version": 99}),
        json.dumps({key: value for key, value in document.items() if key != "version"}),
        json.dumps({key: value for key, value in document.items() if key != "queues"}),
        json.dumps({key: value for key, value in document.items() if key != first}),
        json.dumps({**document, "queues": 5}), json.dumps({**document, "new_key": 5}),
    ]  # fmt: skip


ACCEPTED = Accepted.of(SETTINGS, 7)


@pytest.mark.parametrize(("kind", "text"), [
    *((Settings, text) for text in damaged(SETTINGS.to_json())),
    *((ProcessSpec, text) for text in damaged(SPEC.to_json())),
    *((Accepted, text) for text in damaged(ACCEPTED.to_json())),
])  # fmt: skip
def test_a_damaged_document_is_a_value_error(kind: Any, text: str) -> None:
    with pytest.raises(ValueError):
        kind.from_json(text)


def test_repr_shows_no_password() -> None:
    assert "hunter2" not in repr(SETTINGS)


def test_an_unknown_queue_is_treated_like_a_known_one() -> None:
    assert SETTINGS.queue("q") is QUEUE
    assert SETTINGS.queue("r") == Queue("r", "prod_r", "x", "direct", "prod_r")
    quorum = dataclasses.replace(SETTINGS, queue_type="quorum")
    assert (quorum.queue("r").exchange_type, quorum.queue("r").queue_type) == ("topic", "quorum")


def test_accepted_holds_no_secret_and_changes_the_routing_only() -> None:
    assert "hunter2" not in ACCEPTED.to_json()
    accepted = Accepted.from_json(ACCEPTED.to_json())
    assert accepted == ACCEPTED
    other = dataclasses.replace(SETTINGS, queues=[], routing=Routing("z"), exchange="y", queue_type="quorum")
    assert accepted.follows(other)
    assert accepted.apply(other) == SETTINGS


@pytest.mark.parametrize(
    "change", [{"config_path": "/other"}, {"config_path": None}, {"prefix": "stage"}, {"suffix": "eu"}]
)
def test_accepted_is_not_for_others(change: dict[str, Any]) -> None:
    assert not ACCEPTED.follows(dataclasses.replace(SETTINGS, **change))


def test_accepted_of_a_mapping_is_for_nobody() -> None:
    nowhere = dataclasses.replace(SETTINGS, config_path=None)
    assert not Accepted.of(nowhere, 1).follows(nowhere)


def test_accepted_of_an_embedded_server() -> None:
    embedded = dataclasses.replace(
        SETTINGS,
        embedded=True,
        broker_url="redis+socket:///s?virtual_host=0",
        backend_url="redis+socket:///s?virtual_host=1",
    )
    accepted = Accepted.from_json(Accepted.of(embedded, 1).to_json())
    assert accepted.apply(SETTINGS) == embedded


WORDS = st.text(max_size=20)
MESSAGES = st.one_of(
    st.builds(State, name=WORDS, generation=st.integers(), pid=st.integers(), phase=WORDS, queues=st.lists(WORDS)),
    st.builds(Command, id=st.integers(), command=WORDS, params=st.dictionaries(WORDS, st.integers())),
    st.builds(Reply, id=st.integers(), error=st.one_of(st.none(), WORDS)),
    st.builds(Event, event=WORDS, fields=st.dictionaries(WORDS, WORDS)),
)


@given(MESSAGES)
def test_channel_messages_survive_the_trip(message: Any) -> None:
    assert decode(encode(message)) == message


@given(st.one_of(st.binary(), st.text().map(str.encode)))
def test_anything_else_is_a_channel_error(packet: bytes) -> None:
    with pytest.raises(ChannelError):
        decode(packet)


@pytest.mark.parametrize(
    "packet",
    [
        b"[" * 100_000, b"{}", b"[]", b'{"v": 2, "type": "state"}', b'{"v": 1, "type": "nothing"}',
        b'{"v": 1, "type": []}',
        b'{"v": 1, "type": "command"}', b'{"v": 1, "type": "command", "id": 1, "command": "x", "more": 1}',
    ],
)  # fmt: skip
def test_wrong_packets(packet: bytes) -> None:
    with pytest.raises(ChannelError):
        decode(packet)


def test_too_large_a_message_is_not_sent() -> None:
    with pytest.raises(ChannelError, match="too large"):
        encode(Event("x", {"a": "b" * MAX_BYTES}))
