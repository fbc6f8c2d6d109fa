"""`<runtime_dir>/accepted.json`: the routing that the daemon has accepted, for senders on its host (pure).

Actual names and the embedded server's address; no secrets. A sender with the same configuration file and the same
prefix and suffix follows it, so a broken file on disk disturbs nobody.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from limetaskd.core.documents import loads
from limetaskd.core.settings import Queue, Routing, Settings

ACCEPTED_VERSION = 1
ACCEPTED_NAME = "accepted.json"


@dataclass(frozen=True)
class Accepted:
    config_path: str | None
    prefix: str
    suffix: str
    generation: int
    exchange: str
    queue_type: str
    queues: list[Queue]
    routing: Routing
    embedded: dict[str, str] | None = None  # {"broker_url", "backend_url"}: UNIX sockets, no secrets

    def to_json(self) -> str:
        return json.dumps({"version": ACCEPTED_VERSION, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Accepted:
        """Raises ValueError for another version or a damaged document."""
        document: Any = loads(text)
        if not isinstance(document, dict) or document.pop("version", None) != ACCEPTED_VERSION:
            raise ValueError(f"not an accepted.json of version {ACCEPTED_VERSION}")
        try:
            document["queues"] = [Queue(**item) for item in document["queues"]]
            document["routing"] = Routing(**document["routing"])
            return cls(**document)
        except (KeyError, TypeError) as error:
            raise ValueError(f"damaged accepted.json: {error}") from error

    @classmethod
    def of(cls, settings: Settings, generation: int) -> Accepted:
        embedded = None
        if settings.embedded:
            embedded = {"broker_url": settings.broker_url, "backend_url": settings.backend_url or ""}
        return cls(
            config_path=settings.config_path,
            prefix=settings.prefix,
            suffix=settings.suffix,
            generation=generation,
            exchange=settings.exchange,
            queue_type=settings.queue_type,
            queues=settings.queues,
            routing=settings.routing,
            embedded=embedded,
        )

    def follows(self, settings: Settings) -> bool:
        """Whether a sender with these settings belongs to the daemon that wrote this."""
        return (
            self.config_path is not None
            and (self.config_path, self.prefix, self.suffix)
            == (settings.config_path, settings.prefix, settings.suffix)
        )

    def apply(self, settings: Settings) -> Settings:
        """`settings` with the accepted routing (and the embedded server's addresses)."""
        changes: dict[str, Any] = {
            "exchange": self.exchange,
            "queue_type": self.queue_type,
            "queues": self.queues,
            "routing": self.routing,
        }
        if self.embedded:
            changes |= {
                "broker_url": self.embedded["broker_url"],
                "backend_url": self.embedded["backend_url"] or None,
                "embedded": True,
            }
        return dataclasses.replace(settings, **changes)
