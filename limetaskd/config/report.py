"""Errors and warnings of one configuration: collected, each with its place, its key and its value, no secrets.

/etc/limetaskd/limetaskd.yaml:12: limetaskd.concurrency = "lots": must be a whole number ...
LIMETASK_TASKS__TIMEZONE: tasks.timezone = "Mars": unknown time zone ...
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from limetaskd.config.source import Path
from limetaskd.config.urls import shown_url
from limetaskd.core.redact import MASK, redact_text

_SECRET_KEY = re.compile(r"passw|secret|token|credential|api_?key|access_key|private_key", re.IGNORECASE)
_URL_KEY = re.compile(r"connection_string|url|broker|backend", re.IGNORECASE)
_MOST_SHOWN = 100
_LEAST_LIKENESS = 0.7
# What other tools call it.
_OTHER_WORDS = {
    "broker": "broker_connection_string",
    "broker_url": "broker_connection_string",
    "backend": "backend_connection_string",
    "backend_url": "backend_connection_string",
    "result_backend": "backend_connection_string",
    "default_queue": "task_queue_name",
    "time_limit": "task_time_limit",
    "soft_time_limit": "task_soft_time_limit",
}
NOTHING = object()  # "show no value"


def is_secret(path: Path) -> bool:
    """Whether the value at `path` is never shown: passwords, keys, and all variables of a pool's environment."""
    return any(isinstance(key, str) and _SECRET_KEY.search(key) for key in path) or "env" in path[3:-1]


def shown(path: Path, value: object) -> str:
    """`value` as people may read it in an error."""
    if isinstance(value, dict):
        return "(a map)"
    if isinstance(value, (list, tuple)):
        return "(a list)"
    if value is not None and is_secret(path):
        return MASK
    if isinstance(value, str):
        value = shown_url(value) if any(_URL_KEY.search(str(key)) for key in path) else redact_text(value)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def did_you_mean(word: str, known: list[str]) -> str:
    """` Did you mean x?`, or nothing."""
    if _OTHER_WORDS.get(word.lower()) in known:
        return f" Did you mean {_OTHER_WORDS[word.lower()]}?"
    lower = {item.lower(): item for item in reversed(known)}
    close = get_close_matches(word.lower(), lower, 1, _LEAST_LIKENESS)
    return f" Did you mean {lower[close[0]]}?" if close else ""


@dataclass
class Report:
    """What was found in the source `name` (a file, or words for a mapping)."""

    name: str
    lines: dict[Path, int] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)  # section -> the name that the file uses
    variables: dict[Path, str] = field(default_factory=dict)  # keys that came from the environment
    hidden: set[Path] = field(default_factory=set)  # keys whose value came from a file of its own
    warnings: list[str] = field(default_factory=list)
    found: list[tuple[float, str]] = field(default_factory=list)  # errors with their line
    wrong: set[Path] = field(default_factory=set)  # keys with an error

    def error(self, path: Path, text: str, value: object = NOTHING) -> None:
        self.wrong.add(path)
        self.found.append((self._line_number(path), self.line(path, text, value)))

    def warn(self, path: Path, text: str, value: object = NOTHING) -> None:
        self.warnings.append(self.line(path, text, value))

    @property
    def errors(self) -> list[str]:
        """In the order of the file, then those of the environment."""
        return [text for _, text in sorted(self.found, key=lambda item: item[0])]

    def fresh(self) -> Report:
        """The same places, nothing found yet."""
        return replace(self, warnings=[], found=[], wrong=set())

    def line(self, path: Path, text: str, value: object = NOTHING) -> str:
        """The line for people; `path` starts with the section's short name."""
        key = self.dotted(path)
        if value is not NOTHING:
            hidden = any(path[:length] in self.hidden for length in range(len(path) + 1))
            key = f"{key} = {MASK if hidden else shown(path, value)}"
        return f"{self.place(path)}: {key}: {text}" if key else f"{self.place(path)}: {text}"

    def dotted(self, path: Path) -> str:
        """As the operator spelled it."""
        if not path:
            return ""
        first = path[0] if self.variable(path) else self.spelled.get(str(path[0]), path[0])
        text = str(first)
        for key in path[1:]:
            text += f"[{key}]" if isinstance(key, int) else f".{key}"
        return text

    def variable(self, path: Path) -> str | None:
        """The variable of the environment that `path` came from, or what alone stands below it."""
        at_or_above: str | None = self._nearest(self.variables, path)
        if at_or_above is not None or not path or self._in_file(path) in self.lines:
            return at_or_above
        return next((name for key, name in self.variables.items() if key[: len(path)] == path), None)

    def _in_file(self, path: Path) -> Path:
        """`path` with the section's name as the file has it."""
        return (self.spelled.get(str(path[0]), path[0]), *path[1:])

    def place(self, path: Path) -> str:
        """The variable, or the file and the line of the key or of what is nearest above it."""
        variable = self.variable(path)
        if variable is not None:
            return variable
        line = self._line_number(path)
        return self.name if line == math.inf else f"{self.name}:{line:.0f}"

    def _line_number(self, path: Path) -> float:
        if not path or self.variable(path) is not None:
            return math.inf
        line = self._nearest(self.lines, self._in_file(path))
        return math.inf if line is None else float(line)

    def touches(self, *path: str | int) -> bool:
        """Whether `path`, or anything above or below it, has an error: nothing more can be said about it."""
        return any(wrong[: len(path)] == path or path[: len(wrong)] == wrong for wrong in self.wrong)

    @staticmethod
    def _nearest(table: dict[Path, Any], path: Path) -> Any | None:
        for length in range(len(path), 0, -1):
            if path[:length] in table:
                return table[path[:length]]
        return None
