"""Durations and sizes, as people write and read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limetaskd.core.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (30, 30), (0, 0), (0.5, 0.5), ("30", 30), ("0.25", 0.25), ("500ms", 0.5), ("30s", 30), ("5m", 300),
        ("2h", 7200),
        ("1d", 86400), ("1h30m", 5400), ("1m 500ms", 60.5), (" 5 m ", 300), ("1.5h", 5400),
    ],
)  # fmt: skip
def test_duration(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "wrong",
    ["", " ", "s", "abc", "5 minutes", "-1", -1, "1e3", "5M", "30m1h", "1.2.3s", ".5s", "٣s", True, None, [], {},
     math.nan, math.inf, 10**400, "9" * 400, "4000000000"],
)  # fmt: skip
def test_no_duration(wrong: object) -> None:
    with pytest.raises(ValueError, match="500ms, 30s, 5m, 2h"):
        parse_duration(wrong)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0), (1048576, 1048576), ("1048576", 1048576), ("300MiB", 300 * 1024**2), ("2GiB", 2 * 1024**3),
        ("1GB", 10**9),
        ("64KiB", 65536), ("64kib", 65536), ("1kB", 1000), ("1.5GiB", 1610612736), ("2 TiB", 2 * 1024**4), ("7B", 7),
        ("9007199254740993", 9007199254740993),
    ],
)  # fmt: skip
def test_size(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "wrong", ["", "x", "-1", -1, 1.5, "1.5.1MB", "3 XB", "300M", True, None, [], 2**63, "9" * 5000]
)
def test_no_size(wrong: object) -> None:
    with pytest.raises(ValueError, match="300MiB, 2GiB, 1GB"):
        parse_size(wrong)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
def test_anything_parses_or_is_a_value_error(value: object) -> None:
    for parse in (parse_duration, parse_size):
        try:
            assert parse(value) >= 0
        except ValueError as error:
            assert str(error).startswith("must be")


@given(st.integers(0, 10**9))
def test_a_whole_duration_reads_back(seconds: int) -> None:
    """Two units: never more than the second one off."""
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1 / 24)


@given(st.floats(0, 10**9))
def test_every_formatted_duration_parses(seconds: float) -> None:
    text = format_duration(seconds)
    if "e" not in text:
        assert parse_duration(text) == pytest.approx(seconds, rel=0.06, abs=0.06)


@given(st.integers(0, 2**60))
def test_a_formatted_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.06)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0s"), (0.5, "500ms"), (1.5, "1.5s"), (30, "30s"), (59.97, "1m"), (300, "5m"), (90, "1m30s"),
     (5400, "1h30m"), (2592000, "30d"), (93784, "1d2h"), (-30, "-30s"), (0.9996, "1s"), (0.0001, "0.1ms")],
)  # fmt: skip
def test_format_duration(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "-"), (0, "0B"), (512, "512B"), (1023, "1023B"), (1024, "1KiB"), (314572800, "300MiB"),
     (1610612736, "1.5GiB"), (1024**2 - 1, "1MiB"), (5 * 1024**4, "5TiB")],
)  # fmt: skip
def test_format_size(size: int | None, text: str) -> None:
    assert format_size(size) == text
