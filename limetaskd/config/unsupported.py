"""Keys of the contract that this version does not carry out. Nothing may pretend: shrink this as features land."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from limetaskd.config.report import Report
from limetaskd.config.source import Path
from limetaskd.config.validate import Models


@dataclass(frozen=True)
class Unsupported:
    """`key` below a section; `when` is asked with a value that was given. `fatal`: refused, else a warning."""

    text: str
    fatal: bool = False
    when: Callable[[Any], bool] = lambda value: value is not None


_NOT_AVAILABLE = "not available in this version"

DAEMON: dict[Path, Unsupported] = {
    ("http",): Unsupported(f"{_NOT_AVAILABLE}: leave it out", fatal=True),
    ("control", "endpoint"): Unsupported(
        f"control over tcp:// is {_NOT_AVAILABLE}: use ipc:///absolute/path.sock",
        fatal=True,
        when=lambda value: value is not None and value.startswith("tcp:"),
    ),
}
POOL: dict[Path, Unsupported] = {
    ("pool",): Unsupported(
        f"swarm is {_NOT_AVAILABLE}: use prefork, threads or solo", fatal=True, when=lambda value: value == "swarm"
    ),
}


def check_unsupported(models: Models, report: Report) -> None:
    """Report what the operator asks for and this version does not do."""
    daemon = models.limetaskd
    found = [(("limetaskd",), daemon, DAEMON)]
    found += [(("limetaskd", "pools", name), pool, POOL) for name, pool in daemon.pools.items()]  # type: ignore[misc]
    for start, model, table in found:
        for path, value, entry in _given(model, table):
            shown = (value,) if isinstance(value, (str, bool)) else ()
            (report.error if entry.fatal else report.warn)((*start, *path), entry.text, *shown)


def _given(model: BaseModel, table: dict[Path, Unsupported]) -> Iterator[tuple[Path, Any, Unsupported]]:
    for path, entry in table.items():
        value: Any = model
        for key in path:
            value = getattr(value, str(key)) if str(key) in value.model_fields_set else None
            if value is None:
                break
        if entry.when(value):
            yield path, value, entry
