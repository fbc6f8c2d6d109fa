"""Tasks that an operator revoked before they ran: `<state_dir>/revoked.json`, task id -> when (unix seconds).

The daemon writes it; a worker reads it at its start, so that a restart does not forget. Celery itself keeps revoked
ids in the memory of its workers, for three hours.
"""

from __future__ import annotations

import json
from pathlib import Path

from limetaskd.core.documents import loads

REVOKED_VERSION = 1
LIFE_S = 7 * 86400
MOST = 10_000


def path_of(state_dir: str) -> str:
    return str(Path(state_dir, "revoked.json"))


def add(known: dict[str, float], task_id: str, now: float) -> dict[str, float]:
    """`known` with one more; the old ones, and the oldest of too many, are left out."""
    fresh = {**{key: at for key, at in known.items() if now - at < LIFE_S}, task_id: now}
    return dict(sorted(fresh.items(), key=lambda item: item[1])[-MOST:])


def to_json(known: dict[str, float]) -> str:
    return json.dumps({"version": REVOKED_VERSION, "tasks": known})


def from_json(text: str) -> dict[str, float]:
    """Raises ValueError for another version or a damaged document."""
    document = loads(text)
    if not isinstance(document, dict) or document.get("version") != REVOKED_VERSION:
        raise ValueError(f"not a revoked.json of version {REVOKED_VERSION}")
    tasks = document.get("tasks")
    if not isinstance(tasks, dict):
        raise ValueError("damaged revoked.json")
    try:
        return {str(key): float(at) for key, at in tasks.items()}
    except (TypeError, OverflowError) as error:
        raise ValueError(f"damaged revoked.json: {error}") from error


def read(state_dir: str | None) -> dict[str, float]:
    """What is revoked; nothing when there is no such file. Raises ValueError, OSError."""
    if state_dir is None:
        return {}
    try:
        return from_json(Path(path_of(state_dir)).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
