"""What one supervised worker or schedule process is told at its birth (pure data, no secrets).

The daemon passes it as JSON in the environment variable `SPEC_VARIABLE`; an image passes the same
document to what it forks. Secrets are in the settings file only (mode 0600).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

SPEC_VERSION = 1
SPARE = "limetaskd:spare"  # what a process is called that is forked ahead and waits
SPEC_VARIABLE = "LIMETASKD_SPEC"


@dataclass(frozen=True)
class ProcessSpec:
    """One process. Queue names are the configured ones; times in seconds."""

    kind: str  # "worker" | "beat" | "agent" | "image"
    name: str  # "asap:0", "scheduled:beat", "limetaskd:agent"
    pool: str
    generation: int  # counts the processes that have carried this name, from 1
    settings: str  # path of the settings file
    channel: str  # path of the daemon's local channel
    log: str  # path of this process's own log file
    node: str = ""  # Celery node name without @host, unique per process
    queues: tuple[str, ...] = ()
    concurrency: int = 1
    pool_kind: str = "prefork"  # "prefork" | "threads" | "solo"
    prefetch: int | None = None  # messages reserved per slot; None: 1
    time_limit_s: float | None = None
    soft_time_limit_s: float | None = None
    shutdown_timeout_s: float = 600.0
    board: str | None = None  # path of the scoreboard; None: anonymous memory
    state: str | None = None  # beat: path of its saved state
    record: str | None = None  # where the process writes who it is, as its first act (core/record.py)
    fingerprint: str = ""  # of all that only a new process can take: the next daemon compares it

    def to_json(self) -> str:
        return json.dumps({"version": SPEC_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> ProcessSpec:
        """Raises ValueError for another version or a damaged document."""
        document = json.loads(text)
        if not isinstance(document, dict) or document.pop("version", None) != SPEC_VERSION:
            raise ValueError(f"not a process spec of version {SPEC_VERSION}")
        try:
            document["queues"] = tuple(document["queues"])
            return cls(**document)
        except (KeyError, TypeError) as error:
            raise ValueError(f"damaged process spec: {error}") from error
