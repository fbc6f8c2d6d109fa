"""limetaskd: the supervisor daemon for Celery workers, and the library that task modules and senders import.

Lazy on purpose: the daemon imports this package and must not import Celery; a sender must not import the daemon.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from limetaskd.version import __version__

if TYPE_CHECKING:
    from limetaskd.tasks.app import configure_app, create_app
    from limetaskd.tasks.decorators import task
    from limetaskd.tasks.schedule import CronTab, ScheduledTask
    from limetaskd.tasks.send import send_task
    from limetaskd.tasks.user import task_user

_HOMES = {
    "configure_app": "limetaskd.tasks.app",
    "create_app": "limetaskd.tasks.app",
    "task": "limetaskd.tasks.decorators",
    "CronTab": "limetaskd.tasks.schedule",
    "ScheduledTask": "limetaskd.tasks.schedule",
    "send_task": "limetaskd.tasks.send",
    "task_user": "limetaskd.tasks.user",
}

__all__ = [
    "CronTab",
    "ScheduledTask",
    "__version__",
    "configure_app",
    "create_app",
    "send_task",
    "task",
    "task_user",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'limetaskd' has no attribute {name!r}")
    return getattr(import_module(home), name)
