"""What changes from one plan to the next, and how it takes effect (pure data, no secrets)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from limetaskd.plan.model import Plan, PoolPlan
from limetaskd.plan.secrets import masked

IN_PLACE = "in_place"  # the processes that run take it over
ROLLED = "rolled"  # needs new processes, one after the other

# Of a pool: what running workers, or the daemon for them, can take over.
_LIVE_POOL = frozenset({"queues", "concurrency", "workers", "shutdown_timeout_s", "limits", "autoscale", "shared"})
# Of the daemon: needs a stop and a start.
_RESTART = ("runtime_dir", "state_dir", "control", "user", "supervisor_socket", "embedded")
_DAEMON = ("logging", "restart")
# Of the settings: followed by running processes, or told elsewhere in the difference.
FOLLOWED_SETTINGS = frozenset({
    "queues", "routing", "config_path", "runtime_dir", "state_dir", "embedded", "shutdown_timeout_s",
    "time_limit_s", "soft_time_limit_s", "log_level",
})  # fmt: skip
_SECRET = "(its secret part differs)"


@dataclass(frozen=True)
class Change:
    """One key: values as plain data, secrets masked."""

    key: str
    old: Any
    new: Any


@dataclass(frozen=True)
class PoolChange:
    """`how`: IN_PLACE or ROLLED."""

    name: str
    how: str
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class PlanDiff:
    """`settings`: changes that roll every pool. `daemon`: the daemon takes them over by itself.

    `restart`: changes that have no effect until the daemon is stopped and started. `beat`: owner before and after.
    Queue names are the configured ones.
    """

    pools_added: tuple[str, ...] = ()
    pools_removed: tuple[str, ...] = ()
    pools_changed: tuple[PoolChange, ...] = ()
    queues_added: tuple[str, ...] = ()
    queues_removed: tuple[str, ...] = ()
    queues_changed: tuple[Change, ...] = ()
    routing: tuple[Change, ...] = ()
    settings: tuple[Change, ...] = ()
    daemon: tuple[Change, ...] = ()
    restart: tuple[Change, ...] = ()
    beat: tuple[str | None, str | None] | None = None

    @property
    def empty(self) -> bool:
        return self == PlanDiff()

    @property
    def rolled(self) -> tuple[str, ...]:
        """The changed pools that need new processes."""
        return tuple(change.name for change in self.pools_changed if change.how == ROLLED)

    @property
    def in_place(self) -> tuple[str, ...]:
        """The changed pools whose processes stay."""
        return tuple(change.name for change in self.pools_changed if change.how == IN_PLACE)

    @property
    def schedule_changed(self) -> bool:
        """Whether the schedule process needs a new start: it reads the settings once."""
        return bool(self.settings or self.queues_changed)

    def pool(self, name: str) -> PoolChange | None:
        return next((change for change in self.pools_changed if change.name == name), None)

    def as_document(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def diff(old: Plan, new: Plan) -> PlanDiff:
    """What turns `old` into `new`."""
    old_pools = {pool.name: pool for pool in old.pools}
    new_pools = {pool.name: pool for pool in new.pools}
    old_queues = {queue.name: queue for queue in old.settings.queues}
    new_queues = {queue.name: queue for queue in new.settings.queues}
    queues_changed = tuple(
        Change(name, dataclasses.asdict(old_queues[name]), dataclasses.asdict(queue))
        for name, queue in new_queues.items()
        if name in old_queues and old_queues[name] != queue
    )
    settings = _settings(old, new)
    changed = [
        _pool(old_pools[name], pool, settings, {change.key for change in queues_changed})
        for name, pool in new_pools.items()
        if name in old_pools
    ]
    return PlanDiff(
        pools_added=_only(new_pools, old_pools),
        pools_removed=_only(old_pools, new_pools),
        pools_changed=tuple(change for change in changed if change is not None),
        queues_added=_only(new_queues, old_queues),
        queues_removed=_only(old_queues, new_queues),
        queues_changed=queues_changed,
        routing=_routing(old, new),
        settings=settings,
        daemon=_keys(old, new, _DAEMON),
        restart=held_back(old, new),
        beat=(old.beat_pool, new.beat_pool) if old.beat_pool != new.beat_pool else None,
    )


def held_back(running: Plan, wanted: Plan) -> tuple[Change, ...]:
    """What of `wanted` has no effect on a daemon that runs `running` until it is stopped and started."""
    return _keys(running, wanted, _RESTART)


def _only(these: Mapping[str, Any], those: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in these if name not in those)


def _change(key: str, old: Any, new: Any) -> Change:
    before, after = masked(_plain(old), key), masked(_plain(new), key)
    return Change(key, before, f"{after} {_SECRET}" if before == after else after)


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _keys(old: Any, new: Any, keys: Iterable[str]) -> tuple[Change, ...]:
    return tuple(
        _change(key, getattr(old, key), getattr(new, key)) for key in keys if getattr(old, key) != getattr(new, key)
    )


def _settings(old: Plan, new: Plan) -> tuple[Change, ...]:
    keys = (field.name for field in dataclasses.fields(new.settings) if field.name not in FOLLOWED_SETTINGS)
    return _keys(old.settings, new.settings, keys) + _keys(old, new, ("python", "preload"))


def _routing(old: Plan, new: Plan) -> tuple[Change, ...]:
    before, after = old.settings.routing, new.settings.routing
    changes = list(_keys(before, after, ("default",)))
    for kind in ("qos", "tasks"):
        was, will = getattr(before, kind), getattr(after, kind)
        for key in dict.fromkeys([*was, *will]):
            if was.get(key) != will.get(key):
                changes.append(Change(f"{kind}.{key}", was.get(key), will.get(key)))
    return tuple(changes)


def _pool(old: PoolPlan, new: PoolPlan, settings: tuple[Change, ...], queues: set[str]) -> PoolChange | None:
    changes = []
    for field in dataclasses.fields(PoolPlan):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        if field.name == "limits":
            changes += [
                Change(f"limits.{change.key}", change.old, change.new)
                for change in _keys(before, after, (limit.name for limit in dataclasses.fields(before)))
            ]
        elif field.name == "env":
            # Values of variables may be secrets: names only.
            names = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
            changes.append(Change("env", sorted(before), f"{', '.join(names)} changed"))
        else:
            changes.append(_change(field.name, before, after))
    if not changes and not settings and not queues.intersection(new.queues):
        return None
    live = all(change.key.partition(".")[0] in _LIVE_POOL for change in changes)
    rolled = bool(settings) or bool(queues.intersection(new.queues)) or not live or not _slots_live(old, new)
    return PoolChange(new.name, ROLLED if rolled else IN_PLACE, tuple(changes))


def _slots_live(old: PoolPlan, new: PoolPlan) -> bool:
    """Whether the workers that stay can get their new slots without a new process: prefork grows and shrinks."""
    if new.kind == "prefork":
        return True
    return all(old.slots(index) == new.slots(index) for index in range(min(old.workers, new.workers)))
