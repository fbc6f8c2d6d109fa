"""`pause QUEUE... [--until T] [--reason TEXT]`: stop consuming queues on this host; what runs finishes."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from datetime import datetime, time, timedelta
from typing import Any

from limetaskctl.commands._paused import add_queues, render
from limetaskctl.moments import duration_s

__all__ = ["WAITS", "add_arguments", "params", "render"]

WAITS = True


def _moment(text: str) -> datetime:
    """`18:00` (the next one), `2026-11-24T18:00` (local time unless it has an offset), `30m` from now."""
    now = datetime.now().astimezone()
    seconds = duration_s(text)
    if seconds is not None:
        return now + timedelta(seconds=seconds)
    try:
        if len(text) <= len("18:00:00"):
            clock = time.fromisoformat(text)
            today = datetime.combine(now.date(), clock).astimezone()
            return today if today > now else datetime.combine(now.date() + timedelta(days=1), clock).astimezone()
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not a time: 18:00, 2026-11-24T18:00, or a duration: 30m") from error
    return moment.astimezone()


def add_arguments(parser: ArgumentParser) -> None:
    add_queues(parser)
    parser.add_argument("--until", type=_moment, metavar="T", help="resume by itself: 18:00, 2026-11-24T18:00, 30m")
    parser.add_argument("--reason", metavar="TEXT", help="shown in status and in the audit log")


def params(args: Namespace) -> dict[str, Any]:
    given: dict[str, Any] = {"queues": args.queues}
    if args.until is not None:
        given["until"] = args.until.isoformat(timespec="milliseconds")
    if args.reason is not None:
        given["reason"] = args.reason
    return given
