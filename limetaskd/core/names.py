"""Names on the broker: configured name -> actual name, by prefix and suffix (pure).

Two clusters that share one RabbitMQ virtual host or Redis database are told apart by nothing else, so every
queue, routing key and control exchange goes through `Cluster`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PREFIX_VARIABLE = "LIME_TASK_QUEUE_PREFIX"
SUFFIX_VARIABLE = "LIME_TASK_QUEUE_SUFFIX"
_JOINTS = ("_", "-", ".")


@dataclass(frozen=True)
class Cluster:
    """The prefix and suffix of this cluster, as the operator wrote them (may be empty)."""

    prefix: str = ""
    suffix: str = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Cluster:
        return cls(environ.get(PREFIX_VARIABLE, "").strip(), environ.get(SUFFIX_VARIABLE, "").strip())

    @property
    def head(self) -> str:
        """What stands before every name: `prod` and `prod_` are both `prod_`."""
        return self.prefix if not self.prefix or self.prefix.endswith(_JOINTS) else f"{self.prefix}_"

    @property
    def tail(self) -> str:
        """What stands behind every name: `eu` and `_eu` are both `_eu`."""
        return self.suffix if not self.suffix or self.suffix.startswith(_JOINTS) else f"_{self.suffix}"

    def actual(self, name: str) -> str:
        """The name on the broker of the configured `name`."""
        return f"{self.head}{name}{self.tail}"

    def routing_key(self, name: str) -> str:
        """The routing key of the configured key `name`: transformed like a queue, and without a dot.

        A dot separates words on a topic exchange, where `#.lime_x` would also match `prod.lime_x` of another
        cluster. The escape is reversible, so that two different keys never become one.
        """
        return self.actual(name).replace("%", "%25").replace(".", "%2E").replace("*", "%2A").replace("#", "%23")

    @property
    def key_prefix(self) -> str:
        """What stands before every key on Redis; empty without prefix and suffix."""
        # The suffix belongs to the identity too; on Redis a prefix is the only place that covers every key. The colons
        # keep (prod, a_b) apart from (prod_a, b).
        return f"{self.head}:{self.tail}:" if self.suffix else self.head
