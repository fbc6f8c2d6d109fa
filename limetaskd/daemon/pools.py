"""The pools that should be there now: the plan with what operators scaled (pure)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from limetaskd.core.documents import loads
from limetaskd.errors import CommandError
from limetaskd.plan.model import Plan, PoolPlan

SCALE_VERSION = 1


@dataclass(frozen=True)
class Scale:
    """What an operator set for a pool; None: as the plan says. `persist`: also after a restart of the daemon."""

    concurrency: int | None = None
    workers: int | None = None
    persist: bool = False


    @classmethod
    def checked(cls, document: dict[str, object]) -> Scale:
        """Raises TypeError for values that are none of ours."""
        scale = cls(**document)  # type: ignore[arg-type]
        for number in (scale.concurrency, scale.workers):
            if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
                raise TypeError(f"{number!r} is no number of slots or workers")
        return scale


@dataclass
class Scales:
    """Operators' scales by pool name."""

    by_pool: dict[str, Scale] = field(default_factory=dict)
    # Slots of autoscaled pools, as the autoscaler decided last; not saved.
    automatic: dict[str, int] = field(default_factory=dict)

    def fixed(self, name: str) -> bool:
        """Whether an operator has set the slots of this pool: then it does not scale by itself."""
        return self.by_pool.get(name, Scale()).concurrency is not None

    def apply(self, pool: PoolPlan) -> PoolPlan:
        scale = self.by_pool.get(pool.name, Scale())
        workers = scale.workers or pool.workers
        configured = pool.concurrency
        if pool.autoscale is not None:
            bounds = pool.autoscale
            configured = min(max(self.automatic.get(pool.name, configured), bounds.min), bounds.max)
        concurrency = scale.concurrency or configured
        return dataclasses.replace(pool, workers=workers, concurrency=max(concurrency, workers))

    def set(self, pool: PoolPlan, number: int | None, *, workers: bool, persist: bool) -> None:
        """Scale slots (or worker processes); `number` None undoes. Raises CommandError for a number out of range."""
        if number is None:
            self.by_pool.pop(pool.name, None)
            return
        if number < 1:
            raise CommandError(f"{pool.name}={number}: at least 1 (stop {pool.name} takes a pool down)")
        old = self.by_pool.get(pool.name, Scale())
        if workers:
            self.by_pool[pool.name] = dataclasses.replace(old, workers=number, persist=persist)
            return
        present = self.apply(pool).workers
        if number < present:
            raise CommandError(
                f"{pool.name}={number}: the pool has {present} worker processes, each needs at least one slot; "
                f"scale --workers first"
            )
        self.by_pool[pool.name] = dataclasses.replace(old, concurrency=number, persist=persist)

    def after_reload(self, old: Plan, new: Plan) -> None:
        """Keep what was scaled, unless the file changed that very value or the pool is gone."""
        self.automatic = {
            name: slots
            for name, slots in self.automatic.items()
            if (pool := new.pool(name)) is not None and pool.autoscale is not None
        }
        for name in list(self.by_pool):
            before, after, scale = old.pool(name), new.pool(name), self.by_pool[name]
            if before is None or after is None:
                del self.by_pool[name]
                continue
            # A share of the CPUs changes with the other pools: nobody has changed this value in the file.
            if before.concurrency != after.concurrency and not (before.shared and after.shared):
                scale = dataclasses.replace(scale, concurrency=None)
            if before.workers != after.workers:
                scale = dataclasses.replace(scale, workers=None)
            self.by_pool[name] = scale

    def to_json(self) -> str:
        kept = {name: dataclasses.asdict(scale) for name, scale in self.by_pool.items() if scale.persist}
        return json.dumps({"version": SCALE_VERSION, "pools": kept})

    @classmethod
    def from_json(cls, text: str) -> Scales:
        """Raises ValueError for another version or a damaged document."""
        document = loads(text)
        if not isinstance(document, dict) or document.get("version") != SCALE_VERSION:
            raise ValueError(f"not a scale.json of version {SCALE_VERSION}")
        try:
            return cls({name: Scale.checked(scale) for name, scale in document["pools"].items()})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"damaged scale.json: {error}") from error
