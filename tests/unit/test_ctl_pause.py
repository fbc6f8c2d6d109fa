"""`limetaskctl pause --until`: what an operator may write, as the moment that is sent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from limetaskctl.errors import UsageError
from limetaskctl.parser import parse


def until(text: str) -> datetime:
    from limetaskctl.commands.pause import params

    moment = datetime.fromisoformat(params(parse(["pause", "q", "--until", text]))["until"])
    assert moment.tzinfo is not None
    return moment


@pytest.mark.parametrize(
    ("text", "seconds"), [("1500ms", 1.5), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400)]
)
def test_a_duration_counts_from_now(text: str, seconds: float) -> None:
    before = datetime.now(UTC) + timedelta(seconds=seconds)
    moment = until(text)
    assert before - timedelta(milliseconds=1) <= moment <= datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["18:00", "00:00", "23:59:59"])
def test_a_time_of_day_is_the_next_one(text: str) -> None:
    now = datetime.now().astimezone()
    moment = until(text)
    assert now < moment <= now + timedelta(days=1, hours=2)  # a night may have an hour more
    assert moment.strftime("%H:%M:%S").startswith(text)


def test_a_date_is_local_unless_it_says_otherwise() -> None:
    assert until("2030-01-02T18:00") == datetime(2030, 1, 2, 18).astimezone()
    assert until("2030-01-02T18:00+05:00") == datetime(2030, 1, 2, 13, tzinfo=UTC)


@pytest.mark.parametrize("text", ["soon", "25:00", "", "-5m", "0s", "infs", "nans", "2030-13-01T00:00"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="until"):
        parse(["pause", "q", f"--until={text}"])
