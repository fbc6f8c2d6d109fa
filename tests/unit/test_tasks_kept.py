"""The file of a message that was acknowledged before its task ended."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from limetaskd.agent.kept import KeptMessages
from limetaskd.tasks.kept import Kept, folder_of, new_path, write

MESSAGE = SimpleNamespace(
    body=b"\x00[1]\xff",
    content_type="application/json",
    content_encoding="binary",
    headers={
        "id": "1", "task": "t", "when": datetime(2026, 1, 2, tzinfo=UTC), "x-delivery-count": 3, "redelivered": True,
    },
    properties={"correlation_id": "1", "reply_to": None, "delivery_tag": "7", "priority": 0},
)


def test_a_message_comes_back_whole_without_what_belongs_to_one_delivery(tmp_path: Path) -> None:
    kept = Kept.of_message(MESSAGE, "1", "t", "asap")
    path = new_path(folder_of(str(tmp_path)))
    write(path, kept)
    read = Kept.from_json(path.read_text())
    assert read == kept
    assert read.body == MESSAGE.body
    assert set(read.headers) == {"id", "task", "when"}
    assert read.properties == {"correlation_id": "1", "priority": 0}
    assert read.owner is not None
    assert read.owner[1] == os.getpid()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1}', '{"version": 1, "owner": []}'])
def test_damage_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Kept.from_json(text)


def test_what_is_due_is_what_nobody_holds(tmp_path: Path) -> None:
    folder = folder_of(str(tmp_path))
    messages = KeptMessages(str(tmp_path))
    assert messages.due() == []
    mine = Kept.of_message(MESSAGE, "1", "t", "asap")
    write(folder / "1.json", mine)
    write(folder / "2.json", Kept.of_message(MESSAGE, "2", "t", "asap", due=4e9))
    write(folder / "3.json", Kept.of_message(MESSAGE, "3", "t", "asap", due=1.0))
    assert messages.due() == [folder / "3.json"]
    assert messages.waiting("asap") == 2
    assert messages.waiting("other") == 0
    assert messages.next_due() < float("inf")
    # The same pid, another process.
    assert mine.owner is not None
    (folder / "1.json").write_text(mine.to_json().replace(str(mine.owner[2]), str(mine.owner[2] + 1)))
    assert messages.due() == [folder / "1.json", folder / "3.json"]
    (folder / "1.json").write_text("{")
    assert messages.due() == [folder / "3.json"]
    assert (folder / "1.damaged").exists()
