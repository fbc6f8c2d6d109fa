"""No password survives redaction."""

from __future__ import annotations

import time
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from limetaskd.config.urls import shown_url
from limetaskd.core.redact import redact_text, redact_url

SECRET = "Hunter2Secret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://", "amqp://"),
        ("amqp://guest@localhost//", "amqp://guest@localhost//"),
        (f"amqp://u:{SECRET}@h//", "amqp://u:***@h//"),
        (f"redis://:{SECRET}@h:6379/0", "redis://:***@h:6379/0"),
        (f"amqp://u:{SECRET}@x@h", "amqp://u:***@h"),
        (f"amqp://u@corp:{SECRET}@h", "amqp://u@corp:***@h"),
        ("amqp://u@h:5672//", "amqp://u@h:5672//"),
        ("redis+socket:///run/x.sock?virtual_host=0", "redis+socket:///run/x.sock?virtual_host=0"),
        (f"rediss://h/0?password={SECRET}&ssl=1", "rediss://h/0?password=***&ssl=1"),
        (f"amqp://a:{SECRET}@h1;amqp://b:{SECRET}@h2", "amqp://a:***@h1;amqp://b:***@h2"),
        ("", ""),
    ],
)
def test_url(url: str, shown: str) -> None:
    assert redact_url(url) == shown_url(url) == shown


def test_none_and_text() -> None:
    assert redact_url(None) is None
    text = f"cannot reach amqp://u:{SECRET}@h// (redis://:{SECRET}@r/0): refused"
    assert redact_text(text) == "cannot reach amqp://u:***@h// (redis://:***@r/0): refused"
    assert redact_text("a: b@c, 12:30 and user:name@host") == "a: b@c, 12:30 and user:name@host"


@given(
    st.sampled_from(["amqp", "amqps", "redis", "rediss", "redis+socket", "sentinel", "elasticsearch"]),
    st.text(max_size=8).map(lambda text: quote(text, safe="")),
    st.text(max_size=8).map(lambda text: quote(text, safe="")),
    st.sampled_from(["", "h", "h:5672", "h:5672/vhost", "h//", "[::1]:6379/0"]),
)
def test_a_password_never_shows(scheme: str, user: str, around: str, host: str) -> None:
    url = f"{scheme}://{user}:{around}{SECRET}{around}@{host}"
    assert SECRET not in redact_text(f"before {url} after")
    assert SECRET not in shown_url(url)


@given(st.text("ab:/@;?# ", max_size=6), st.text("ab:/@;?# ", max_size=6))
@example(";", "://")
def test_a_wrongly_written_password_does_not_show_in_configuration_errors(before: str, after: str) -> None:
    """Whatever an operator forgot to escape: what stands before the last @ of an alternative may be a password."""
    url = f"amqp://user:{before}{SECRET}{after}@host//"
    assert SECRET not in shown_url(url)


@pytest.mark.parametrize("url", [f"amqp:/u:{SECRET}@h", f"u:{SECRET}@h", f"amqp//u:{SECRET}@h"])
def test_what_is_no_url_is_hidden_when_it_may_hold_a_password(url: str) -> None:
    assert SECRET not in shown_url(url)


def test_schemes_are_shown_as_people_configured_them() -> None:
    assert redact_text("Connected to limeredis+socket:///run/x.sock") == "Connected to redis+socket:///run/x.sock"
    assert redact_text("limerediss://:secret@h/0 limesentinel://h") == "rediss://:***@h/0 sentinel://h"


def test_the_time_for_a_long_line_grows_with_its_length_alone() -> None:
    """Not with its square: a task may print a megabyte without a space."""

    def needs(length: int) -> float:
        begun = time.perf_counter()
        redact_text("f" * length)
        return time.perf_counter() - begun

    short = min(needs(20_000) for _ in range(5))
    assert min(needs(400_000) for _ in range(5)) < 150 * short  # 20 times as long; its square is 400 times


@pytest.mark.parametrize("before", ["", "1", "a" * 50, "x=", "\u00e9"])
def test_whatever_stands_before_the_scheme(before: str) -> None:
    assert redact_text(f"{before}amqp://u:secret@h") == f"{before}amqp://u:***@h"
