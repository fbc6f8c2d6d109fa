"""The plan: what the daemon carries out, as plain data. `build.py` makes it, `diff.py` compares two.

Durations in seconds, sizes in bytes. Everything is resolved: no `auto`, no null that means "see elsewhere".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from limetaskd.config.host import Host
from limetaskd.core.settings import Settings


@dataclass(frozen=True)
class LimitsPlan:
    """Of each pool child (`memory_*`) and of a worker's process tree (`worker_memory_bytes`); None: no limit."""

    memory_soft_bytes: int | None = None
    memory_hard_bytes: int | None = None
    worker_memory_bytes: int | None = None
    time_grace_s: float = 5.0
    sample_interval_s: float = 1.0


@dataclass(frozen=True)
class AutoscalePlan:
    """Slots of the pool between `min` and `max`, so that a message waits `target_latency_s` at most."""

    min: int
    max: int
    target_latency_s: float


@dataclass(frozen=True)
class PoolPlan:
    """One pool: `workers` processes that share `concurrency` slots and consume `queues` (configured names)."""

    name: str
    queues: tuple[str, ...]
    kind: str = "prefork"  # "prefork" | "threads" | "solo"
    concurrency: int = 1  # slots of the whole pool
    workers: int = 1
    prefetch: int | None = None
    time_limit_s: float | None = None
    soft_time_limit_s: float | None = None
    shutdown_timeout_s: float = 600.0
    limits: LimitsPlan = field(default_factory=LimitsPlan)
    env: dict[str, str] = field(default_factory=dict)
    nice: int | None = None
    autoscale: AutoscalePlan | None = None
    shared: bool = False  # `concurrency: auto`: its slots are its share of the CPUs, and change with the other pools

    def slots(self, index: int) -> int:
        """Slots of worker `index`: the pool's slots shared evenly, the first workers get the rest; at least 1."""
        share, rest = divmod(self.concurrency, self.workers)
        return max(1, share + (1 if index < rest else 0))


@dataclass(frozen=True)
class RestartPlan:
    initial_s: float = 1.0
    max_s: float = 60.0
    intensity: int = 5
    period_s: float = 60.0


@dataclass(frozen=True)
class ControlPlan:
    endpoint: str  # "ipc:///run/limetaskd/control.sock"
    mode: int = 0o660
    group: str | None = None


@dataclass(frozen=True)
class LoggingPlan:
    format: str = "json"  # "json" | "text"
    level: str = "INFO"
    destination: str = "stderr"  # "stderr" or an absolute path
    max_size_bytes: int = 50 * 1024 * 1024
    keep: int = 5


@dataclass(frozen=True)
class Plan:
    """All that the daemon needs. `settings` holds secrets; `render.py` shows none."""

    settings: Settings
    strategy: str
    pools: tuple[PoolPlan, ...]
    beat_pool: str | None  # the pool that owns the schedule; None: no schedule
    python: str | None  # interpreter of the workers; None: the daemon's own
    runtime_dir: str
    state_dir: str
    control: ControlPlan
    logging: LoggingPlan = field(default_factory=LoggingPlan)
    restart: RestartPlan = field(default_factory=RestartPlan)
    user: str | None = None
    supervisor_socket: bool = False
    preload: bool = True
    embedded: bool = False
    detached: bool = False  # it has no standard error
    host: Host | None = None  # facts of the start, for the next build: directories stay when the user changes
    config_file: str | None = None  # absolute path as it was given: what a reload reads again
    warnings: tuple[str, ...] = ()

    def pool(self, name: str) -> PoolPlan | None:
        return next((pool for pool in self.pools if pool.name == name), None)
