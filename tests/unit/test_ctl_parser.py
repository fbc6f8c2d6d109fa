"""The command line of limetaskctl."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from limetaskctl.commands import LATER, SUMMARIES, load
from limetaskctl.errors import UsageError
from limetaskctl.parser import build, find_command, parse

GLOBALS = ["--socket", "/x.sock", "--json", "--timeout", "5"]


def test_global_options_stand_before_or_after_the_command() -> None:
    for before in (GLOBALS, GLOBALS[:2], GLOBALS[:3], []):
        after = GLOBALS[len(before) :]
        args = parse([*before, "status", "asap", *after])
        assert (args.command, args.pool, args.socket, args.json, args.timeout) == ("status", "asap", "/x.sock", True, 5)
    args = parse(["status"])
    assert (args.socket, args.json, args.timeout, args.pool) == (None, False, None, None)
    assert parse(["--timeout", "5", "status", "--timeout=2m"]).timeout == 120


@pytest.mark.parametrize(
    ("words", "params"),
    [
        ("status", {}),
        ("status asap", {"pool": "asap"}),
        ("start asap:0 background", {"names": ["asap:0", "background"]}),
        ("stop a", {"names": ["a"]}),
        ("restart a", {"names": ["a"]}),
        ("scale a=3 b=default", {"pools": {"a": 3, "b": "default"}, "workers": False, "persist": False}),
        ("scale --workers a=0 --persist", {"pools": {"a": 0}, "workers": True, "persist": True}),
        ("scale a=b=3", {"pools": {"a=b": 3}, "workers": False, "persist": False}),
        ("reload", {"plan": False}),
        ("reload --plan", {"plan": True}),
        ("tasks", {}),
        ("tasks --pool a", {"pool": "a"}),
        ("routes", {}),
        ("queues", {}),
    ],
)
def test_parameters_of_plain_commands(words: str, params: dict[str, Any]) -> None:
    args = parse(words.split())
    command: Any = load(args.command)
    assert command.params(args) == params


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "a command is missing"),
        ("--json", "required: COMMAND"),
        ("statsu", "unknown command 'statsu': did you mean 'status'?"),
        ("frobnicate", "unknown command 'frobnicate' (see"),
        ("status a b", "unrecognized arguments: b"),
        ("status --frob", "unrecognized arguments: --frob"),
        ("--frob status", "unrecognized arguments: --frob"),
        ("stat", "unknown command 'stat'"),
        ("start", "required: NAME"),
        ("scale", "required: POOL=N"),
        ("scale asap", "'asap' is not POOL=N"),
        ("scale =3", "'=3' is not POOL=N"),
        ("scale asap=-1", "'asap=-1': N is a number"),
        ("scale asap=1.5", "N is a number"),
        ("scale asap=", "N is a number"),
        ("scale asap=٣", "N is a number"),
        ("scale asap=100001", "N is a number"),
        ("logs -n x", "'x' is not a number of lines"),
        ("logs -n -1", "'-1' is not a number of lines"),
        ("logs -n 2001", "from 0 to 2000"),
        ("--timeout 0 status", "'0' is not a time"),
        ("--timeout nan status", "'nan' is not a time"),
        ("--timeout 5x status", "'5x' is not a time"),
        ("status --timeout 8000h", "'8000h' is not a time"),
        ("status --js", "unrecognized arguments: --js"),
        ("completion tcsh", "invalid choice: 'tcsh'"),
        ("purge", "required: QUEUE"),
    ],
)
def test_usage_errors_say_what_is_wrong_in_one_line(words: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        args = parse(words.split())
        load(args.command).params(args)  # type: ignore[union-attr]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_scale_refuses_one_pool_twice() -> None:
    command: Any = load("scale")
    with pytest.raises(UsageError, match="twice"):
        command.params(parse(["scale", "a=1", "a=2"]))


@pytest.mark.parametrize("name", LATER)
def test_commands_of_later_versions_say_so(name: str) -> None:
    for words in ([name], [name, "x", "--frob"], ["--json", "--socket", "status", name, "--help"]):
        with pytest.raises(UsageError, match=f"^'{name}' is not available in this version$"):
            parse(words)


def test_help_lists_what_is_there_and_nothing_else() -> None:
    text = build(None).format_help()
    listed = {line.split()[0] for line in text.splitlines() if line.startswith("    ") and line[4] != " "}
    assert set(SUMMARIES) <= listed
    assert not set(LATER) & listed


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_command_has_a_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: limetaskctl {name}" in capsys.readouterr().out


def test_the_command_is_found_behind_options() -> None:
    for count in range(3):
        for options in itertools.permutations((["--json"], ["--socket", "stop"], ["--timeout=3"]), count):
            assert find_command([*itertools.chain(*options), "status", "x"]) == "status"
    assert find_command(["--json"]) is None
    assert find_command(["--socket"]) is None
