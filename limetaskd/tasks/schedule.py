"""Scheduled tasks: what task modules declare, as entries of Celery's beat schedule."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

from celery.schedules import BaseSchedule, crontab, maybe_schedule

from limetaskd.errors import LimetaskError
from limetaskd.tasks.message import ENTRY_HEADER, PLANNED_HEADER, USER_HEADER

REGISTER = "register_scheduled_tasks"


class ScheduleError(LimetaskError):
    """The scheduled tasks of a module cannot be used."""


class CronTab(crontab):  # type: ignore[misc]
    """Times as in crontab(5): minute, hour, day_of_week, day_of_month, month_of_year, in `tasks.timezone`."""


@dataclass(frozen=True)
class ScheduledTask:
    """One schedule of one task. `task`: the task or its name; `schedule`: a CronTab, a timedelta, or seconds.

    `name`: of the entry, for `limetaskctl beat`; None: the name of the task, with a short digest of schedule and
    arguments behind it when the task is scheduled more than once.
    """

    task: Any
    schedule: Any
    args: Iterable[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    user_id: str | int | None = None
    name: str | None = None

    @property
    def task_name(self) -> str:
        return self.task if isinstance(self.task, str) else str(self.task.name)


def collect(app: Any, modules: Iterable[ModuleType]) -> dict[str, dict[str, Any]]:
    """The whole schedule: the app's own `beat_schedule`, and what `modules` (imported already) declare.

    Entries as Celery's: {name: {"task", "schedule", "args", "kwargs", "options"}}; `schedule` is a schedule object that
    knows the app, so it is in the app's time zone. Raises ScheduleError, which names the module.
    """
    entries: dict[str, dict[str, Any]] = {}
    for name, entry in (app.conf.beat_schedule or {}).items():
        schedule = _schedule(app, entry["schedule"])
        entries[name] = {"args": (), "kwargs": {}, "options": {}, **entry, "schedule": schedule}
    declared = [(module.__name__, item) for module in modules for item in _declared(module)]
    names = [item.task_name for _, item in declared]
    for module_name, item in declared:
        try:
            schedule = _schedule(app, item.schedule)
        except (TypeError, ValueError) as error:
            raise ScheduleError(f"module {module_name}: the schedule of {item.task_name}: {error}") from error
        name = item.name or item.task_name
        if item.name is None and names.count(name) > 1:
            name = f"{name}:{_digest(item, schedule)}"
        if name in entries:
            raise ScheduleError(
                f"module {module_name}: the schedule entry {name!r} exists twice; give ScheduledTask(..., name=...)"
            )
        headers = {} if item.user_id is None else {USER_HEADER: str(item.user_id)}
        entries[name] = {
            "task": item.task_name,
            "schedule": schedule,
            "args": tuple(item.args),
            "kwargs": dict(item.kwargs),
            "options": {"headers": headers} if headers else {},
        }
    return entries


def entry_headers(name: str, planned_at: datetime) -> dict[str, str]:
    """The headers of one run of the entry `name`; `planned_at` with its time zone."""
    return {ENTRY_HEADER: name, PLANNED_HEADER: planned_at.astimezone(UTC).isoformat().replace("+00:00", "Z")}


def _declared(module: ModuleType) -> list[ScheduledTask]:
    register = getattr(module, REGISTER, None)
    if register is None:
        return []
    try:
        declared = list(register() or ())
    except Exception as error:  # the module's own code: whatever it raises is told with its name
        raise ScheduleError(
            f"module {module.__name__}: {REGISTER}() failed: {type(error).__name__}: {error}"
        ) from error
    for item in declared:
        if not isinstance(item, ScheduledTask):
            raise ScheduleError(
                f"module {module.__name__}: {REGISTER}() must return ScheduledTask objects, not {type(item).__name__}"
            )
    return declared


def _schedule(app: Any, value: Any) -> Any:
    """Raises TypeError for what is no schedule, ValueError for a time that never comes."""
    if isinstance(value, bool) or not isinstance(value, BaseSchedule | timedelta | int | float):
        raise TypeError(f"must be a CronTab, a timedelta or seconds, not {type(value).__name__}")
    schedule = maybe_schedule(value, app=app)
    if isinstance(value, timedelta | int | float) and schedule.run_every.total_seconds() <= 0:
        raise ValueError("must be longer than 0 seconds")
    schedule.app = app
    return schedule


def _digest(item: ScheduledTask, schedule: Any) -> str:
    content = [str(schedule), list(item.args), dict(item.kwargs), item.user_id]
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
