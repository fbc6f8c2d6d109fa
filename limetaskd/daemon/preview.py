"""What a reload means for the workers and for the messages that still wait: for `reload` and `reload --plan`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from limetaskd.daemon import departing
from limetaskd.daemon.status import queue_figures

if TYPE_CHECKING:
    from limetaskd.daemon.daemon import Daemon
    from limetaskd.plan.diff import PlanDiff
    from limetaskd.plan.model import Plan


def workers(daemon: Daemon, new: Plan, difference: PlanDiff) -> dict[str, list[str]]:
    """Names of the workers by what happens to them: started, kept, in_place, rolled, drained."""
    scales = copy.deepcopy(daemon.scales)
    scales.after_reload(daemon.plan, new)
    present = [unit.name for pool in daemon.plan.pools for unit in daemon.pool_units(pool.name)]
    found: dict[str, list[str]] = {"started": [], "kept": [], "in_place": [], "rolled": [], "drained": []}
    wanted = set()
    for pool in map(scales.apply, new.pools):
        how = "kept"
        if pool.name in difference.rolled:
            how = "rolled"
        elif pool.name in difference.in_place:
            how = "in_place"
        for index in range(pool.workers):
            name = f"{pool.name}:{index}"
            wanted.add(name)
            found[how if name in present else "started"].append(name)
    found["drained"] = [name for name in present if name not in wanted]
    return found


def waiting(daemon: Daemon, new: Plan, difference: PlanDiff) -> list[dict[str, Any]]:
    """Of each queue that goes: how many messages wait in it (null: unknown), and which pool consumes it until then."""
    depths = {figure["name"]: figure["depth"] for figure in queue_figures(daemon)}
    found = departing.after_reload(daemon.steering.departing, daemon.plan, new)
    return [
        {"queue": found[name].queue.actual, "depth": depths.get(found[name].queue.actual), "pool": found[name].pool}
        for name in difference.queues_removed
    ]


def lines(by_fate: dict[str, list[str]], left: list[dict[str, Any]]) -> list[str]:
    """For people."""
    words = {"in_place": "changed in place"}
    text = [
        f"queue {one['queue']}: {'?' if one['depth'] is None else one['depth']} messages wait in it, the pool "
        f"{one['pool']} consumes it until it is empty"
        for one in left
    ]
    return text + [f"workers {words.get(fate, fate)}: {', '.join(names)}" for fate, names in by_fate.items() if names]
