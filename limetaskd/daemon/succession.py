"""What a daemon remembers for its successor when it dies or is replaced: `<runtime_dir>/memory.json` (pure).

Restart history, what an operator stopped and scaled. A clean stop removes it: the next start begins afresh. Times are
monotonic seconds of one boot, which `boot_id` names; of another boot they mean nothing.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from limetaskd.core.documents import loads
from limetaskd.daemon.pools import Scale

MEMORY_VERSION = 1


@dataclass(frozen=True)
class UnitMemory:
    restarts: int = 0
    deaths: tuple[float, ...] = ()
    stopped: bool = False  # by an operator
    given_up: bool = False  # FATAL, or tried out of it and not at work yet


@dataclass(frozen=True)
class Memory:
    boot_id: str
    generation: int = 1  # of the accepted configuration
    units: dict[str, UnitMemory] = field(default_factory=dict)
    scales: dict[str, Scale] = field(default_factory=dict)
    automatic: dict[str, int] = field(default_factory=dict)  # slots that autoscale had found

    def to_json(self) -> str:
        return json.dumps({"version": MEMORY_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Memory:
        """Raises ValueError for another version or a damaged document."""
        document = loads(text)
        if not isinstance(document, dict) or document.get("version") != MEMORY_VERSION:
            raise ValueError(f"not a memory.json of version {MEMORY_VERSION}")
        try:
            units = {
                str(name): UnitMemory(
                    int(unit["restarts"]), tuple(map(float, unit["deaths"])), bool(unit["stopped"]),
                    bool(unit.get("given_up")),
                )
                for name, unit in document["units"].items()
            }
            scales = {str(name): Scale.checked(scale) for name, scale in document["scales"].items()}
            automatic = {str(name): int(slots) for name, slots in document.get("automatic", {}).items()}
            return cls(str(document["boot_id"]), int(document["generation"]), units, scales, automatic)
        except (AttributeError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"damaged memory.json: {error}") from error
