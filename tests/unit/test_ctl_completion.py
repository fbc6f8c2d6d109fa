"""What the shells offer."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest

from limetaskctl.commands import SUMMARIES
from limetaskctl.completion import candidates
from limetaskctl.errors import UnreachableError
from limetaskctl.parser import global_options
from tests.support.ctl_server import examples


def offered(line: str, asked: list[tuple[str, str | None]] | None = None) -> list[str]:
    """The words that are offered for the last word of `line` (after `limetaskctl `)."""

    def ask(method: str, endpoint: str | None) -> dict[str, Any]:
        if asked is not None:
            asked.append((method, endpoint))
        result: dict[str, Any] = examples()[method]["result"]
        return result

    return [word for word, _ in candidates(line.split(" "), global_options(), ask)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sta", ["status", "start"]),
        ("re", ["restart", "reload", "resume", "revoke"]),
        ("hea", []),
        ("--j", ["--json"]),
        ("--json sta", ["status", "start"]),
        ("--json --", ["--socket", "--timeout"]),
        ("--timeout ", []),
        ("--timeout 5 q", ["queues", "quarantine"]),
        ("logs --fo", ["--follow"]),
        ("logs -f --fo", []),
        ("logs --follow --fo", []),
        ("status ", ["asap", "background", "scheduled"]),
        ("status a", ["asap"]),
        ("status asap ", []),
        ("restart background", ["background", "background:0", "background:1"]),
        ("restart background ba", ["background:0", "background:1"]),
        ("stop asap:", ["asap:0"]),
        ("scale a", ["asap="]),
        ("scale asap=4 --p", ["--persist"]),
        ("tasks --pool s", ["scheduled"]),
        ("logs sch", ["scheduled:0"]),
        ("logs -n 5 sch", ["scheduled:0"]),
        ("purge prod_lime_task_queue_b", ["prod_lime_task_queue_background"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("routes ", []),
        ("routes --t", ["--timeout"]),
        ("nonsense ", list(SUMMARIES)),
    ],
)
def test_words(line: str, words: list[str]) -> None:
    assert offered(line) == words


def test_nothing_typed_yet_offers_the_commands() -> None:
    assert offered("") == list(SUMMARIES)


@pytest.mark.parametrize(
    "line", ["--socket /x.sock status ", "status --socket=/x.sock ", "--json --socket /x.sock status "]
)
def test_names_come_from_the_socket_on_the_line(line: str) -> None:
    asked: list[tuple[str, str | None]] = []
    offered(line, asked)
    assert asked == [("status", "/x.sock")]


def test_without_a_daemon_nothing_is_offered() -> None:
    def ask(method: str, endpoint: str | None) -> dict[str, Any]:
        raise UnreachableError("nobody")

    assert candidates(["status", ""], global_options(), ask) == []


def test_sockets_and_directories_are_offered_for_socket() -> None:
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX) as server:
        folder = Path(name)
        server.bind(str(folder / "control.sock"))
        (folder / "cont").mkdir()
        (folder / "control.txt").touch()
        assert offered(f"--socket {folder}/co") == [f"{folder}/cont/", f"{folder}/control.sock"]
        assert offered(f"--socket {folder}/missing/") == []
