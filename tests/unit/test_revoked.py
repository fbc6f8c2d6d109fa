"""The file of revoked tasks: what is old is forgotten, and what is damaged is said to be so."""

from __future__ import annotations

import pytest

from limetaskd.core.revoked import LIFE_S, MOST, add, from_json, to_json


def test_what_is_written_is_read() -> None:
    known = add(add({}, "a", 1.0), "b", 2.0)
    assert from_json(to_json(known)) == {"a": 1.0, "b": 2.0}


def test_old_ones_and_the_oldest_of_too_many_go() -> None:
    assert add({"old": 0.0}, "new", LIFE_S) == {"new": LIFE_S}
    many = {str(number): float(number) for number in range(MOST)}
    assert "0" not in add(many, "new", float(MOST))
    assert len(add(many, "new", float(MOST))) == MOST


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 1}', '{"version": 2, "tasks": {}}', '{"version": 1, "tasks": {"x": null}}',
     '{"version": 1, "tasks": {"x": %s}}' % ("9" * 400), "[" * 100_000],
)  # fmt: skip
def test_what_is_damaged_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        from_json(text)
