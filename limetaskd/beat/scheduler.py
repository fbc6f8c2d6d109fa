"""A Celery scheduler that survives its broker, its disk and its own death.

Its memory is one small JSON file, written after each run: when each entry ran last. A file that cannot be read is
set aside and the schedule begins anew. A run that cannot be sent stays due, and is sent once when the broker is back.
Works in `celery beat`'s service (`lime-task-handler --beat`) and in limetaskd's own process.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from celery.beat import Scheduler as CeleryScheduler
from celery.beat import _evaluate_entry_args, _evaluate_entry_kwargs
from celery.schedules import crontab
from celery.schedules import schedule as interval
from kombu.exceptions import OperationalError

from limetaskd.core.documents import loads
from limetaskd.core.redact import redact_text
from limetaskd.errors import PublishError
from limetaskd.tasks.app import task_modules
from limetaskd.tasks.binding import binding_of
from limetaskd.tasks.schedule import collect, entry_headers

logger = logging.getLogger(__name__)

STATE_VERSION = 1
# A step of the clock is noticed after this long.
LONGEST_WAIT_S = 30.0
RETRY_S = 1.0
_MOST_MISSED = 2000


def modules_of(app: Any) -> list[ModuleType]:
    """The imported modules that may declare a schedule."""
    binding = binding_of(app)
    names: list[str] = task_modules(binding.settings()) if binding else []
    names += [*(app.conf.imports or ()), *(app.conf.include or ())]
    return [sys.modules[name] for name in dict.fromkeys(names) if name in sys.modules]


def planned_at(entry: Any, now: datetime) -> datetime:
    """When the run that is due now was planned: the latest planned time that is not after `now`."""
    schedule, last = entry.schedule, entry.schedule.maybe_make_aware(entry.last_run_at)
    if isinstance(schedule, crontab):
        planned = now
        for _ in range(_MOST_MISSED):
            start, delta, _ = schedule.remaining_delta(last)
            upcoming = start + delta
            if upcoming > now:
                return planned
            planned = last = upcoming
        return now  # away for long: which of the missed runs it is says nothing any more
    if isinstance(schedule, interval):
        period: timedelta = schedule.run_every
        return last + max(1, (now - last) // period) * period  # type: ignore[no-any-return]
    return now


def lock_schedule(path: str) -> TextIO:
    """The lock beside the state `path`, held until it is closed or this process ends: two would send everything twice.

    Raises BlockingIOError when another schedule holds it, OSError when the disk refuses.
    """
    file = Path(f"{path}.lock").open("a")  # noqa: SIM115  it stays open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


class Scheduler(CeleryScheduler):  # type: ignore[misc]
    """`schedule_filename`: where the state is kept; None: nowhere."""

    def __init__(self, app: Any, *args: Any, schedule_filename: str | None = None, **kwargs: Any) -> None:
        self.path = Path(schedule_filename) if schedule_filename else None
        # Why the last send failed; None: it did not.
        self.trouble: str | None = None
        self._due: dict[str, float] = {}
        # The id of a run that is tried again: should an earlier try have arrived after all, they are one task.
        self._ids: dict[str, str] = {}
        super().__init__(app, *args, **kwargs)

    def setup_schedule(self) -> None:
        """Raises ScheduleError, which names the module."""
        entries = collect(self.app, modules_of(self.app))
        self.install_default_entries(self.data)
        self.update_from_dict(entries)
        saved = self._load()
        for name, entry in self.data.items():
            schedule, last_run = saved.get(name, (None, None))
            if schedule == str(entry.schedule):
                entry.last_run_at = last_run
        self.sync()
        logger.info("%d schedule entries", len(self.data), extra={"action": "schedule"})

    @property
    def info(self) -> str:
        return f"    . state -> {self.path}"

    def _load(self) -> dict[str, tuple[str, datetime]]:
        """Name -> (its schedule as text, when it ran last)."""
        if self.path is None:
            return {}
        try:
            document = loads(self.path.read_text())
            if document["version"] != STATE_VERSION:
                raise ValueError(f"version {document['version']!r}")
            return {
                name: (str(was["schedule"]), datetime.fromisoformat(was["last_run"]))
                for name, was in document["entries"].items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            try:
                self.path.replace(aside)
                where = f"set aside as {aside}"
            except OSError as failure:
                where = f"left where it is ({failure})"
            logger.warning(
                "the saved state %s cannot be read (%s: %s), %s: every entry counts from now",
                self.path, type(error).__name__, error, where,
                extra={"action": "beat_state_unreadable"},
            )  # fmt: skip
            return {}

    def sync(self) -> None:
        """Save, atomically. A disk that refuses stops no schedule."""
        if self.path is None:
            return
        entries = {
            name: {
                "schedule": str(entry.schedule),
                "last_run": entry.schedule.maybe_make_aware(entry.last_run_at).astimezone(UTC).isoformat(),
            }
            for name, entry in self.data.items()
        }
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            with temporary.open("w") as file:
                json.dump({"version": STATE_VERSION, "entries": entries}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            logger.error("the schedule's state cannot be saved in %s: %s", self.path, error)

    def tick(self, *_args: Any, **_kwargs: Any) -> float:
        """Send what is due. Returns how long to wait until the next look, in seconds."""
        now = time.time()
        soonest = now + LONGEST_WAIT_S
        for name, entry in list(self.data.items()):
            if self._due.get(name, 0.0) <= now:
                self._due[name] = now + self._look(name, entry)
                if self.trouble is not None:
                    return RETRY_S  # the others would meet the same broker
            soonest = min(soonest, self._due[name])
        return max(0.0, soonest - time.time())

    def _look(self, name: str, entry: Any) -> float:
        """Send `entry` if it is due; how long until it must be looked at again."""
        try:
            is_due, wait_s = entry.is_due()
        except Exception:  # a schedule class of the application; the others go on
            logger.exception("cannot say when %s is due; trying again later", name)
            return LONGEST_WAIT_S
        if not is_due:
            return float(min(wait_s, LONGEST_WAIT_S))
        planned = planned_at(entry, entry.schedule.maybe_make_aware(self.app.now()))
        if not self._send(name, entry, planned):
            return RETRY_S
        self.data[name] = entry._next_instance(planned)
        self.sync()
        # At once again: it is not due any more, and the schedule says how long.
        return 0.0

    def _send(self, name: str, entry: Any, planned: datetime) -> bool:
        """Whether this run is done with: sent, or impossible to send."""
        options = dict(entry.options or {})
        options["headers"] = {**(options.get("headers") or {}), **entry_headers(name, planned)}
        options["task_id"] = self._ids.setdefault(name, str(uuid.uuid4()))
        task = self.app.tasks.get(entry.task)
        args, kwargs = _evaluate_entry_args(entry.args), _evaluate_entry_kwargs(entry.kwargs)
        try:
            if task is not None:
                task.apply_async(args, kwargs, **options)
            else:
                self.app.send_task(entry.task, args, kwargs, **options)
        except (PublishError, OperationalError, OSError) as error:
            trouble = redact_text(str(error))
            if trouble != self.trouble:
                logger.warning("%s is due and cannot be sent, trying again until it is: %s", name, trouble)
            self.trouble = trouble
            return False
        except Exception:  # it would fail for ever, and keep the others waiting
            logger.exception("%s cannot be sent; this run is left out", name)
        else:
            logger.info(
                "sent %s (%s), planned at %s", name, entry.task, planned.isoformat(),
                extra={"action": "scheduled", "schedule_entry": name, "task_id": options["task_id"]},
            )  # fmt: skip
        del self._ids[name]
        self.trouble = None
        return True

