"""`completion SHELL`: the script that makes a shell complete limetaskctl."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from limetaskctl.session import Session

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def run(session: Session, args: Namespace) -> None:
    from limetaskctl.completion import script

    session.line(script(args.shell))
