"""The resolved settings: what workers and senders need of the configuration, as plain data.

The daemon (or a command) reads and validates the configuration with pydantic, and hands this on as JSON. The
application's interpreter needs neither pydantic nor YAML to read it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from limetaskd.core.names import Cluster
from limetaskd.core.redact import redact_url

SETTINGS_VERSION = 1


@dataclass(frozen=True)
class Queue:
    """One queue as it is declared on the broker. `name` is the configured one, `actual` the broker's."""

    name: str
    actual: str
    exchange: str
    exchange_type: str  # "direct", or "topic" for quorum queues (native delayed delivery needs it)
    routing_key: str  # transformed, see Cluster.routing_key
    queue_type: str = "classic"  # "classic" | "quorum"


@dataclass(frozen=True)
class Routing:
    """Configured names: the default queue, QoS category -> queue, task name -> queue."""

    default: str
    qos: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """Everything that a worker or a sender needs. Times in seconds. Holds secrets: broker_url, backend_url, celery."""

    application: str
    broker_url: str
    backend_url: str | None
    prefix: str
    suffix: str
    exchange: str
    queues: list[Queue]
    routing: Routing
    queue_type: str = "classic"
    time_limit_s: float | None = None
    soft_time_limit_s: float | None = None
    result_expires_s: float | None = 2592000
    log_message_max_bytes: int = 0  # 0: no limit
    timezone: str = "UTC"
    scheduled_tasks: bool = True
    delivery: str = "at-least-once"  # | "at-most-once"
    publish_confirm: bool = True
    publish_timeout_s: float = 30.0
    max_deliveries: int = 3
    imports: list[str] = field(default_factory=list)
    app: str | None = None  # "package.module:attribute"
    celery: dict[str, Any] = field(default_factory=dict)  # passed through, wins
    log_level: str = "INFO"
    log_format: str = "json"
    config_path: str | None = None  # real path of the file; None: a mapping was given
    runtime_dir: str | None = None
    state_dir: str | None = None
    embedded: bool = False
    shutdown_timeout_s: float = 600.0
    ack_deadline_s: float | None = None  # a message held so long is acknowledged and kept; None: the broker is patient
    orphan_timeout_s: float | None = None  # a worker whose daemon stays away this long drains; None: it goes on

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.prefix, self.suffix)

    def queue(self, name: str) -> Queue:
        """The queue of the configured `name`; one that is not configured gets the same treatment.

        Its routing key is its own name: an unknown queue is bound to nothing else.
        """
        for queue in self.queues:
            if queue.name == name:
                return queue
        return self.unknown_queue(name)

    def unknown_queue(self, name: str) -> Queue:
        cluster = self.cluster
        return Queue(
            name=name,
            actual=cluster.actual(name),
            exchange=self.exchange,
            exchange_type="topic" if self.queue_type == "quorum" else "direct",
            routing_key=cluster.routing_key(name),
            queue_type=self.queue_type,
        )

    def to_json(self) -> str:
        return json.dumps({"version": SETTINGS_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Raises ValueError for another version or a damaged document."""
        document = json.loads(text)
        if not isinstance(document, dict) or document.pop("version", None) != SETTINGS_VERSION:
            raise ValueError(f"not settings of version {SETTINGS_VERSION}")
        try:
            document["queues"] = [Queue(**item) for item in document["queues"]]
            document["routing"] = Routing(**document["routing"])
            return cls(**document)
        except (KeyError, TypeError) as error:
            raise ValueError(f"damaged settings: {error}") from error

    def __repr__(self) -> str:
        # The default repr would print passwords into tracebacks.
        return f"Settings(application={self.application!r}, broker_url={redact_url(self.broker_url)!r}, ...)"
