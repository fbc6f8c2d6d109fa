"""A plan, or the difference of two, as text for people and as a document for programs. Secrets are masked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from limetaskd.core.units import format_duration, format_size
from limetaskd.plan.diff import IN_PLACE, Change, PlanDiff
from limetaskd.plan.model import LimitsPlan, Plan, PoolPlan
from limetaskd.plan.secrets import masked

DOCUMENT_VERSION = 1


def as_document(plan: Plan) -> dict[str, Any]:
    """The plan for `--check --json`: durations in seconds (`_s`), sizes in bytes (`_bytes`), no secrets."""
    settings = masked(dataclasses.asdict(plan.settings))
    return {
        "version": DOCUMENT_VERSION,
        "config": plan.settings.config_path,
        "application": plan.settings.application,
        "strategy": plan.strategy,
        "embedded": plan.embedded,
        "queues": [
            dataclasses.asdict(queue) | {"pools": [pool.name for pool in plan.pools if queue.name in pool.queues]}
            for queue in plan.settings.queues
        ],
        "pools": [_pool_document(plan, pool) for pool in plan.pools],
        "beat_pool": plan.beat_pool,
        "python": plan.python,
        "user": plan.user,
        "runtime_dir": plan.runtime_dir,
        "state_dir": plan.state_dir,
        "control": {**dataclasses.asdict(plan.control), "mode": f"{plan.control.mode:04o}"},
        "logging": dataclasses.asdict(plan.logging),
        "restart": dataclasses.asdict(plan.restart),
        "supervisor_socket": plan.supervisor_socket,
        "settings": settings,
        "warnings": list(plan.warnings),
    }


def _pool_document(plan: Plan, pool: PoolPlan) -> dict[str, Any]:
    document = dataclasses.asdict(pool)
    return {
        **document,
        "queues": list(pool.queues),
        "actual_queues": [plan.settings.queue(name).actual for name in pool.queues],
        "slots": [pool.slots(index) for index in range(pool.workers)],
        "env": sorted(pool.env),
        "beat": pool.name == plan.beat_pool,
    }


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns that are never cut."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def render(plan: Plan) -> str:
    """The text of `--check`."""
    settings = plan.settings
    categories: dict[str, list[str]] = {}
    for category, queue in settings.routing.qos.items():
        categories.setdefault(queue, []).append(category)
    counts: dict[str, int] = {}
    for queue in settings.routing.tasks.values():
        counts[queue] = counts.get(queue, 0) + 1
    queues = table(
        ("QUEUE", "ON THE BROKER", "TYPE", "CATEGORIES", "TASKS", "POOL"),
        (
            (
                queue.name + (" (default)" if queue.name == settings.routing.default else ""),
                queue.actual,
                queue.queue_type,
                ", ".join(categories.get(queue.name, ["-"])),
                str(counts.get(queue.name, "-")),
                ", ".join(pool.name for pool in plan.pools if queue.name in pool.queues) or "-",
            )
            for queue in settings.queues
        ),
    )
    pools = table(
        ("POOL", "KIND", "WORKERS x SLOTS", "TIME LIMIT soft/hard", "MEMORY", "BEAT", "QUEUES"),
        (
            (
                pool.name,
                pool.kind,
                _slots(pool),
                f"{format_duration(pool.soft_time_limit_s)} / {format_duration(pool.time_limit_s)}",
                _limits(pool.limits),
                "owner" if pool.name == plan.beat_pool else "-",
                ", ".join(pool.queues),
            )
            for pool in plan.pools
        ),
    )
    facts = table(
        ("SETTING", "VALUE"),
        [
            ("configuration", settings.config_path or "(a mapping)"),
            ("application", settings.application),
            ("broker", masked(settings.broker_url) + (" (embedded)" if plan.embedded else "")),
            ("result backend", masked(settings.backend_url) or "none: results are not stored"),
            ("prefix, suffix", f"{settings.prefix or 'none'}, {settings.suffix or 'none'}"),
            ("strategy", plan.strategy),
            ("schedule", f"owned by the pool {plan.beat_pool}" if plan.beat_pool else "none"),
            ("time zone", settings.timezone),
            ("delivery", settings.delivery),
            ("imports", ", ".join(settings.imports) or "none (entry points are added)"),
            ("application's Celery app", settings.app or "built-in"),
            ("interpreter", plan.python or "that of the daemon"),
            ("user", plan.user or "unchanged"),
            ("runtime_dir", plan.runtime_dir),
            ("state_dir", plan.state_dir),
            ("control", f"{plan.control.endpoint} mode {plan.control.mode:04o} group {plan.control.group or '-'}"),
            ("logging", f"{plan.logging.format} {plan.logging.level} to {plan.logging.destination}"),
        ],
    )
    text = f"{facts}\n\n{queues}\n\n{pools}\n"
    if plan.warnings:
        text += "\n" + "\n".join(f"warning: {warning}" for warning in plan.warnings) + "\n"
    return text


def _slots(pool: PoolPlan) -> str:
    slots = [pool.slots(index) for index in range(pool.workers)]
    if pool.autoscale is not None:
        return f"{pool.workers} x {pool.autoscale.min} to {pool.autoscale.max} (autoscale)"
    if len(set(slots)) == 1:
        return f"{pool.workers} x {slots[0]}"
    return f"{pool.workers}: {' + '.join(map(str, slots))}"


def _limits(limits: LimitsPlan) -> str:
    parts = [
        f"{name} {format_size(value)}"
        for name, value in (
            ("soft", limits.memory_soft_bytes),
            ("hard", limits.memory_hard_bytes),
            ("worker", limits.worker_memory_bytes),
        )
        if value is not None
    ]
    return ", ".join(parts) or "-"


def render_diff(difference: PlanDiff) -> str:
    """The text of `reload` and `reload --plan`."""
    if difference.empty:
        return "nothing changes\n"
    lines = [f"+ pool {name}" for name in difference.pools_added]
    lines += [f"- pool {name}" for name in difference.pools_removed]
    for pool in difference.pools_changed:
        how = "in place" if pool.how == IN_PLACE else "new processes, one after the other"
        lines.append(f"~ pool {pool.name}: {how}")
        lines += [f"    {_text(change)}" for change in pool.changes]
    lines += [f"+ queue {name}" for name in difference.queues_added]
    lines += [f"- queue {name}" for name in difference.queues_removed]
    lines += [f"~ queue {change.key}" for change in difference.queues_changed]
    lines += [f"~ routing {_text(change)}" for change in difference.routing]
    if difference.beat is not None:
        before, after = difference.beat
        lines.append(f"~ schedule: owner {before or 'none'} -> {after or 'none'}")
    lines += [f"~ {_text(change)}" for change in (*difference.settings, *difference.daemon)]
    lines += [f"! {line}" for line in render_held_back(difference.restart)]
    return "\n".join(lines) + "\n"


def render_held_back(changes: Iterable[Change]) -> list[str]:
    """What waits for the daemon's next start, one line each."""
    return [f"{_text(change)} (takes effect when limetaskd is restarted)" for change in changes]


def _text(change: Change) -> str:
    return f"{change.key}: {_value(change.key, change.old)} -> {_value(change.key, change.new)}"


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, (int, float)) and key.endswith("_s"):
        return format_duration(value)
    if isinstance(value, (int, float)) and key.endswith("_bytes"):
        return format_size(value)
    if isinstance(value, dict):
        return json.dumps(value)
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
