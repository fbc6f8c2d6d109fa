"""Text for people: tables, figures with units, colours of states (pure). None is shown as `-`, never as 0."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

NONE = "-"
_MIN_LAST_COLUMN = 8
# 12, 1/2, 0.4s, 2h 3m, 12.5%, 150.0 MiB
_FIGURE = re.compile(r"[0-9][0-9./]*(%|[smhd]|[smhd] [0-9]+[smhd]| [KMGT]i?B| B)?")
_RESET = "\x1b[0m"
_COLOURS = {
    "RUNNING": "\x1b[32m",
    "STARTING": "\x1b[33m",
    "STOPPING": "\x1b[33m",
    "BACKOFF": "\x1b[33m",
    "STOPPED": "\x1b[2m",
    "EXITED": "\x1b[31m",
    "FATAL": "\x1b[31m",
    "UNKNOWN": "\x1b[31m",
}
# Whatever comes from tasks or logs may hold escape sequences that would drive the operator's terminal.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_CONTROL_IN_TEXT = {code: text for code, text in _CONTROL.items() if chr(code) not in "\n\t"}


class View(NamedTuple):
    """What the output can show. `width`: columns of the terminal; None: no terminal, nothing is ever cut."""

    colour: bool = False
    width: int | None = None


def clean(value: Any) -> str:
    """`value` in one line without control characters; None as `-`."""
    return NONE if value is None else str(value).translate(_CONTROL)


def clean_text(text: str) -> str:
    """`text` without control characters but newline and tabulator."""
    return text.translate(_CONTROL_IN_TEXT)


def state(value: Any, view: View) -> str:
    """A state such as `RUNNING` or `RUNNING draining`, in its colour."""
    text = clean(value)
    colour = _COLOURS.get(text.split(" ", 1)[0]) if view.colour else None
    return f"{colour}{text}{_RESET}" if colour else text


def yes_no(value: bool | None) -> str:
    return NONE if value is None else "yes" if value else "no"


def duration(seconds: float | None) -> str:
    """`0.4s`, `12s`, `3m 12s`, `2h 5m`, `4d 1h`."""
    if seconds is None:
        return NONE
    if seconds < 0.95:  # 0.95 and more would read 1.0s
        return f"{max(0.0, seconds):.1f}s"
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m {rest}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h {minutes}m"
    days, hours = divmod(hours, 24)
    return f"{days}d {hours}h"


def size(count: float | None) -> str:
    """Bytes as `512 B`, `30.5 MiB`, `1.2 GiB`."""
    if count is None:
        return NONE
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"


def percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}%"


def total(values: Sequence[float | None]) -> float | None:
    """The sum of what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], view: View, states: Sequence[int] = ()) -> str:
    """Columns aligned under `head`; figures to the right. `states`: indexes of the columns that hold a state.

    Only on a terminal, and only in the last column, is a text cut (it ends with `…` then).
    """
    cells = [[clean(value) for value in row] for row in rows]
    columns = range(len(head))
    right = [bool(cells) and all(_is_figure(row[index]) for row in cells) for index in columns]
    widths = [max(len(row[index]) for row in [head, *cells]) for index in columns]
    last = _last_width(widths, view)
    lines = []
    for number, row in enumerate([list(head), *cells]):
        texts = []
        for index in columns:
            text = row[index]
            is_last = index == len(head) - 1
            if is_last and last is not None and len(text) > last:
                text = text[: last - 1] + "…"
            padded = text.rjust(widths[index]) if right[index] else text if is_last else text.ljust(widths[index])
            if number and index in states:
                padded = padded.replace(text, state(text, view), 1)
            texts.append(padded)
        lines.append("  ".join(texts).rstrip())
    return "\n".join(lines)


def _last_width(widths: Sequence[int], view: View) -> int | None:
    """How wide the last column may be; None: as wide as it is."""
    if view.width is None or not widths:
        return None
    room = view.width - sum(widths[:-1]) - 2 * (len(widths) - 1)
    return max(_MIN_LAST_COLUMN, room) if room < widths[-1] else None


def _is_figure(text: str) -> bool:
    return text == NONE or _FIGURE.fullmatch(text) is not None


def log_line(line: str) -> str:
    """A line of a log for people: time, level, process, message, then the other fields as key=value.

    A line that is no JSON record (what a task printed) comes back as it is.
    """
    import json

    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError):
        return clean_text(line)
    if not isinstance(record, dict) or "message" not in record:
        return clean_text(line)
    return clean_text(_record_text(record))


_HEAD = {"@timestamp", "level", "logger", "message", "host", "pid", "process", "exception"}


def _record_text(record: dict[str, Any]) -> str:
    """The same text as limetaskd.core.jsonlog.as_text, which the client does not import (a test compares them)."""
    text = (
        f"{record.get('@timestamp', NONE)} {record.get('level', NONE):<8}"
        f" {record.get('process', NONE)}[{record.get('pid', NONE)}] {record['message']}"
    )
    rest = " ".join(f"{key}={value}" for key, value in record.items() if key not in _HEAD)
    if rest:
        text = f"{text} {rest}"
    return f"{text}\n{record['exception']}" if record.get("exception") else text
