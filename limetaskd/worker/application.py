"""The Celery app of a worker or schedule: the built-in one or the application's own, with its task modules."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from typing import Any

from limetaskd.core.settings import Settings
from limetaskd.core.spec import ProcessSpec
from limetaskd.errors import LimetaskError

logger = logging.getLogger(__name__)

# What a worker of ours needs of Celery; `settings.celery` (limetaskd.celery of the configuration) wins.
_WORKER_CONF = {
    "worker_redirect_stdouts": False,
    "worker_hijack_root_logger": False,
    # A closed channel (a delivery that was held too long) is repaired by connecting again, not by ending.
    "broker_channel_error_retry": True,
    # On a busy host a child may need long for its start; it is not hung.
    "worker_proc_alive_timeout": 60.0,
    "worker_enable_remote_control": True,
}


_app: Any = None  # what `build` has built in this process, or in the image that forked it


class ImportFailedError(LimetaskError):
    """A task module cannot be imported."""


def for_pool(settings: Settings, spec: ProcessSpec) -> Settings:
    """The settings with the limits of the process's pool. A task's own limits still win."""
    return dataclasses.replace(
        settings, time_limit_s=spec.time_limit_s, soft_time_limit_s=spec.soft_time_limit_s
    )


def build(settings: Settings) -> Any:
    """The app, configured, with every task module imported.

    Called again, in a process that an image has forked, it is the same app: what task modules keep of it stays true,
    and what they said to its configuration stands, as when they are imported after this.
    Raises ImportFailedError (its cause is the module's own error) when a module, an entry point or `settings.app`
    cannot be imported.
    """
    from limetaskd.tasks.app import build_app, take_over_app, task_modules

    global _app
    if _app is None:
        app = _guarded(settings.app or "the app", lambda: build_app(settings))
        app.conf.update({key: value for key, value in _WORKER_CONF.items() if key not in settings.celery})
        _app = app
    else:
        app = take_over_app(_app, settings)
    app.set_default()
    app.set_current()
    for module in task_modules(settings):
        _guarded(module, lambda name=module: importlib.import_module(name))
    _guarded("a module of the app's own", app.loader.import_default_modules)
    app.finalize()
    return app


def _guarded(what: str, load: Any) -> Any:
    try:
        return load()
    except (Exception, SystemExit) as error:
        logger.exception("cannot import %s", what)
        raise ImportFailedError(f"cannot import {what}: {type(error).__name__}: {error}") from error
