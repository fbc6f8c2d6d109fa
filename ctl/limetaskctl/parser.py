"""The command line: global options before or after the command."""

from __future__ import annotations

import argparse
from typing import NoReturn

from limetaskctl.commands import LATER, SUMMARIES, load
from limetaskctl.endpoint import VARIABLE
from limetaskctl.errors import UsageError
from limetaskd.version import __version__

PROG = "limetaskctl"
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_TIMEOUT_S = 7 * 86400.0  # poll(2) counts milliseconds in 31 bits


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of printing and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see: {self.prog} --help)")


def seconds(text: str) -> float:
    """`5`, `0.5`, `500ms`, `30s`, `5m`, `2h` in seconds. Raises ArgumentTypeError."""
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    try:
        value = float(text.removesuffix(unit)) * _UNITS.get(unit, 1.0)
    except ValueError:
        value = -1.0
    if not 0 < value <= _MAX_TIMEOUT_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds (5, 0.5, 500ms, 2m)")
    return value


def global_options(*, after_command: bool = False) -> Parser:
    """A parent parser. After the command an option that is not given must not undo one that stood before it."""
    parser = Parser(add_help=False, allow_abbrev=False)
    absent = argparse.SUPPRESS if after_command else None
    parser.add_argument(
        "--socket", metavar="ENDPOINT", default=absent,
        help=f"ipc://PATH or a path; else ${VARIABLE}, else the usual place",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS if after_command else False, help="output for programs"
    )
    parser.add_argument(
        "--timeout", metavar="S", type=seconds, default=absent,
        help="wait at most so long for the daemon (10s; commands that wait until it is done: without limit)",
    )  # fmt: skip
    return parser


def build(command: str | None) -> Parser:
    """The whole parser; of the commands only `command` gets its arguments, so that no other is imported."""
    parser = Parser(
        prog=PROG,
        description="The operator's client of the limetaskd daemon.",
        epilog="Exit codes: 0 done, 1 refused or failed, 2 usage, 3 the daemon cannot be reached, 130 Ctrl-C, "
        "141 the reader of a pipe has gone.",
        parents=[global_options()],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    # Without `prog` argparse would format a usage to find it, and import shutil for its width.
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True, prog=PROG)
    for name, summary in SUMMARIES.items():
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            parents=[global_options(after_command=True)],
            allow_abbrev=False,
        )
        if name == command:
            load(name).add_arguments(sub)
    return parser


def find_command(argv: list[str]) -> str | None:
    """The first word that is no global option: the command, known or not; None when there is none."""
    words = iter(argv)
    for word in words:
        if word in {"--socket", "--timeout"}:
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, `command` among them. Raises UsageError; SystemExit after --help and --version."""
    command = find_command(argv)
    if command in LATER:
        raise UsageError(f"{command!r} is not available in this version")
    if command is not None and command not in SUMMARIES:
        raise UsageError(f"unknown command {command!r}{_suggestion(command)} (see: {PROG} --help)")
    if not argv:
        raise UsageError(f"a command is missing (see: {PROG} --help)")
    return build(command).parse_args(argv)


def _suggestion(command: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(command, SUMMARIES, n=1)
    return f": did you mean {close[0]!r}?" if close else ""
