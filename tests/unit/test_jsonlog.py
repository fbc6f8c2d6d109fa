"""Log lines: one JSON object, cut messages, no passwords."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limetaskd.core.jsonlog import JsonFormatter, as_text, cut, timestamp


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    result = logging.makeLogRecord(
        {"name": "crm", "levelname": "INFO", "msg": message, "args": arguments, "created": 1800000000.25}
    )
    vars(result).update(extra)
    return result


def test_the_fields_of_every_line() -> None:
    line = JsonFormatter("asap:0").format(record("sent %s", "x", task_id="1", task_user_id=None, odd={1}))
    assert "\n" not in line
    document = json.loads(line)
    host = document.pop("host")
    assert host
    assert document == {
        "@timestamp": "2027-01-15T08:00:00.250Z", "level": "INFO", "logger": "crm", "message": "sent x",
        "pid": os.getpid(), "process": "asap:0", "task_id": "1", "task_user_id": None, "odd": "{1}",
    }  # fmt: skip


def test_extra_fields_never_replace_the_fixed_ones() -> None:
    document = JsonFormatter("asap:0").document(record("x", host="evil", level="evil", process="MainProcess"))
    assert "evil" not in document.values()
    assert document["process"] == "asap:0"


def test_passwords_in_messages_and_tracebacks() -> None:
    try:
        raise OSError("amqp://u:hunter2@h// refused")
    except OSError:
        line = JsonFormatter("x").format(record("at %s", "redis://:hunter2@h/0", exc_info=sys.exc_info()))
    assert "hunter2" not in line
    assert "OSError" in json.loads(line)["exception"]


def test_a_cut_message_says_so() -> None:
    document = JsonFormatter("x", 4).document(record("äöü"))
    assert (document["message"], document["truncated"]) == ("äö", True)
    assert "truncated" not in JsonFormatter("x", 6).document(record("äöü"))
    assert "truncated" not in JsonFormatter("x", 0).document(record("ä" * 10000))


@given(st.text(), st.integers(0, 40))
def test_cut_is_valid_utf8_and_no_longer_than_asked(message: str, limit: int) -> None:
    text, was_cut = cut(message, limit)
    assert was_cut == (limit > 0 and len(message.encode("utf-8", "replace")) > limit)
    if was_cut:
        assert len(text.encode()) <= limit
        assert message.startswith(text) or min(message) >= "\ud800" or "?" in text
        # As much as fits: one more character would not.
        assert len(text.encode()) > limit - 4
    else:
        assert text == message


@given(st.floats(0, 4e9))
def test_timestamp_is_the_time(seconds: float) -> None:
    text = timestamp(seconds)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    assert datetime.fromisoformat(text).timestamp() == pytest.approx(seconds, abs=0.0011)


def test_timestamp_rounds_once() -> None:
    assert timestamp(1.9999999) == "1970-01-01T00:00:02.000Z"


def test_as_text() -> None:
    document = JsonFormatter("asap:0").document(record("hello", task_id="1"))
    assert re.fullmatch(r"2027-01-15T08:00:00\.250Z INFO     asap:0\[\d+\] hello task_id=1", as_text(document))
    assert as_text({"exception": "Boom"}).endswith("\nBoom")
