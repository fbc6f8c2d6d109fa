"""What stands beside a message in quarantine, and where that is (pure)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from limetaskd.core.documents import loads

HEADER = "__quarantine"
ENTRY_VERSION = 1
_SUFFIX = ".quarantine"


def quarantine_queue(actual: str) -> str:
    """The quarantine of a queue (actual names)."""
    return f"{actual}{_SUFFIX}"


@dataclass(frozen=True)
class Entry:
    """One task in quarantine: where it came from and why it is there. `queue`: actual name.

    `deaths`: of each worker that died while it ran the task `at`, `host`, `worker` and `by` (how it died).
    """

    task_id: str
    task_name: str
    queue: str
    exchange: str
    routing_key: str
    deaths: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps({"version": ENTRY_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Entry:
        """Raises ValueError for another version or a damaged document."""
        document = loads(text)
        if not isinstance(document, dict) or document.pop("version", None) != ENTRY_VERSION:
            raise ValueError(f"not an entry of quarantine of version {ENTRY_VERSION}")
        try:
            return cls(**document)
        except TypeError as error:
            raise ValueError(f"damaged entry of quarantine: {error}") from error
