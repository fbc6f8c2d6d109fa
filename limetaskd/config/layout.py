"""Which queues there are and which pool consumes which, by the strategy (pure). Errors are reported, not raised."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from limetaskd.config.models import DaemonConfig, PoolConfig, TasksConfig
from limetaskd.config.report import Report, did_you_mean

ALL_IN_ONE = "all"
DEFAULT = "default"
SCHEDULED = "scheduled"
_POOLS = ("limetaskd", "pools")


def queue_names(tasks: TasksConfig) -> tuple[str, ...]:
    """Every configured queue once: the default one, those of categories, those of tasks."""
    return tuple(dict.fromkeys([tasks.task_queue_name, *tasks.routing.qos.values(), *tasks.routing.tasks.values()]))


@dataclass
class Layout:
    """`pools`: name -> (queues, its entry in limetaskd.pools or an empty one). `beat`: the owner of the schedule."""

    pools: dict[str, tuple[tuple[str, ...], PoolConfig]] = field(default_factory=dict)
    beat: str | None = None


def pool_name(queue: str, tasks: TasksConfig) -> str:
    """The name of the pool of one queue: its first category, `default` for the default queue, else the queue."""
    category = next((name for name, target in tasks.routing.qos.items() if target == queue), None)
    name = category or (DEFAULT if queue == tasks.task_queue_name else queue)
    # Pools name processes, files and Celery nodes.
    return re.sub(r"[^A-Za-z0-9_.-]|^[^A-Za-z0-9]", "_", name)


def lay_out(tasks: TasksConfig, daemon: DaemonConfig, report: Report) -> Layout:
    """The pools in the order of their queues; problems go to `report`."""
    layout = Layout()
    claimed = _claims(tasks, daemon, report)
    if report.touches("limetaskd", "strategy") or _uncertain(report):
        return layout  # what is said about pools would follow from other errors only
    if daemon.strategy == "all-in-one":
        for name, pool in daemon.pools.items():
            if pool.queues is not None:
                report.error(
                    (*_POOLS, name, "queues"),
                    "with the strategy all-in-one the pool all consumes every queue:"
                    " leave queues out, or set strategy: dedicated",
                )
        layout.pools[ALL_IN_ONE] = (queue_names(tasks), PoolConfig())
    else:
        _dedicated(tasks, daemon, claimed, layout, report)
    _overrides(daemon, layout, report)
    layout.beat = _beat(tasks, daemon, layout, report)
    return layout


def _uncertain(report: Report) -> bool:
    """Whether the configured queues are not known, for errors in their keys."""
    return report.touches("tasks", "task_queue_name") or report.touches("tasks", "routing")


def _claims(tasks: TasksConfig, daemon: DaemonConfig, report: Report) -> dict[str, str]:
    """Queue -> the entry of limetaskd.pools that takes it."""
    known = queue_names(tasks)
    uncertain = _uncertain(report)
    claimed: dict[str, str] = {}
    for name, pool in daemon.pools.items():
        for index, queue in enumerate(pool.queues or ()):
            path = (*_POOLS, name, "queues", index)
            if queue in claimed:
                other = "it is listed twice" if claimed[queue] == name else f"the pool {claimed[queue]} claims it too"
                report.error(path, f"{other}: a queue belongs to one pool", queue)
                continue
            claimed[queue] = name
            if queue not in known and not uncertain:
                hint = did_you_mean(queue, list(known))
                report.error(path, f"not a configured queue. Configured are: {', '.join(known)}.{hint}", queue)
    return claimed


def _dedicated(
    tasks: TasksConfig, daemon: DaemonConfig, claimed: Mapping[str, str], layout: Layout, report: Report
) -> None:
    for queue in queue_names(tasks):
        own = claimed.get(queue)
        name = own or pool_name(queue, tasks)
        if name in layout.pools and own is None:
            others = ", ".join(layout.pools[name][0])
            report.error(
                ("limetaskd", "strategy"),
                f"the queues {others} and {queue} would both get a pool named {name}:"
                f" name one of them, as in limetaskd.pools: {{my_name: {{queues: [{queue}]}}}}",
            )
            continue
        if own is None and name in daemon.pools and daemon.pools[name].queues is not None:
            report.error(
                (*_POOLS, name),
                f"this is also the name of the pool of the queue {queue}: add that queue here, or choose another name",
            )
            continue
        before = layout.pools.get(name, ((), PoolConfig()))[0]
        layout.pools[name] = ((*before, queue), PoolConfig())


def _overrides(daemon: DaemonConfig, layout: Layout, report: Report) -> None:
    for name, pool in daemon.pools.items():
        if name in layout.pools:
            layout.pools[name] = (layout.pools[name][0], pool)
        elif pool.queues is None and not report.touches(*_POOLS, name):
            hint = did_you_mean(name, list(layout.pools))
            more = "; to make a pool of your own, give it queues" if daemon.strategy == "dedicated" else ""
            report.error(
                (*_POOLS, name),
                f"no such pool with the strategy {daemon.strategy}."
                f" The pools are: {', '.join(layout.pools)}{more}.{hint}",
            )


def _beat(tasks: TasksConfig, daemon: DaemonConfig, layout: Layout, report: Report) -> str | None:
    wanted = daemon.beat.pool
    if wanted is not None and wanted not in layout.pools:
        hint = did_you_mean(wanted, list(layout.pools))
        report.error(
            ("limetaskd", "beat", "pool"), f"no such pool. The pools are: {', '.join(layout.pools)}.{hint}", wanted
        )
        return None
    if not tasks.enable_scheduled_tasks:
        return None
    if wanted is not None:
        return wanted
    queue = tasks.routing.qos.get(SCHEDULED, tasks.task_queue_name)
    return next((name for name, (queues, _) in layout.pools.items() if queue in queues), None)
