"""The Celery app: built from settings, from a configuration, or the application's own one with ours put onto it."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from celery import Celery, _state

from limetaskd.core.settings import Settings
from limetaskd.errors import ConfigError
from limetaskd.tasks import logs
from limetaskd.tasks.amqp import AMQP
from limetaskd.tasks.binding import Binding, bind, binding_of, forget_connections
from limetaskd.tasks.conf import celery_settings, is_redis
from limetaskd.tasks.decorators import LimeTask
from limetaskd.tasks.follow import Source

ENTRY_POINT_GROUP = "limetaskd.tasks"
Config = Settings | str | os.PathLike[str] | Mapping[str, Any] | None

_lock = threading.RLock()
_default: Any = None  # the app that was created or configured last


def build_app(settings: Settings) -> Any:
    """The configured app of `settings`: the application's own one (`settings.app`), else a new one.

    What a worker, a beat or a sender uses; imports no task module. Raises ConfigError for an app that cannot be found.
    """
    app = load_app(settings.app) if settings.app else _new_app(settings)
    return _configure(app, *read_settings(settings))


def take_over_app(app: Any, settings: Settings) -> Any:
    """Put onto a configured app what `settings` say otherwise than those that it has; what task modules said stays.

    For a forked process: it has the app with the task modules imported already, which otherwise comes before them.
    """
    binding = binding_of(app)
    assert binding is not None
    with _lock:
        had = celery_settings(binding.configured)
        changes = {
            key: value
            for key, value in celery_settings(settings).items()
            if key not in had or (value != had[key] and app.conf.get(key) == had[key])
        }
        _put_on(app, *read_settings(settings), changes)
    return _in_force(app, settings)


def create_app(config: Config = None) -> Any:
    """A new Celery app for task modules and senders, made the current one.

    `config`: the path of a configuration file, a mapping with its content, Settings, or None = the file that the
    commands would take. Raises ConfigError.
    """
    settings, source = read_settings(config)
    return _configure(_new_app(settings), settings, source)


def configure_app(app: Any, config: Config = None) -> Any:
    """Put routing, queues, limits and delivery onto an existing app, used already or not; returns it.

    Its other settings stay, and so does the application's logging. Its `task_routes` have no say any more.
    `config` as for create_app. Raises ConfigError.
    """
    settings, source = read_settings(config)
    return _configure(app, settings, source)


def current_configured_app() -> Any:
    """The app that `send_task` uses: the current one if it is configured, else the last configured, else a new one."""
    current = _state._tls.current_app or _state.default_app
    if current is not None and binding_of(current) is not None:
        return current
    with _lock:
        return _default if _default is not None else create_app()


def task_modules(settings: Settings) -> list[str]:
    """The modules that define tasks: `imports`, and the entry points of the group `limetaskd.tasks`."""
    return list(dict.fromkeys([*settings.imports, *_installed_task_modules()]))


@functools.cache
def _installed_task_modules() -> list[str]:
    # Looked for once in a process: it reads the metadata of everything that is installed.
    return sorted(point.value.partition(":")[0] for point in entry_points(group=ENTRY_POINT_GROUP))


def load_app(reference: str) -> Any:
    """The app of "package.module:attribute". Raises ConfigError; what its module raises comes through."""
    module_name, _, attribute = reference.partition(":")
    found: Any = import_module(module_name)
    for part in (attribute or "app").split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ConfigError([f"limetaskd.app: {module_name} has no {attribute or 'app'!r}"]) from error
    if not isinstance(found, Celery):
        raise ConfigError([f"limetaskd.app: {reference} is a {type(found).__name__}, not a Celery app"])
    return found


def read_settings(config: Config) -> tuple[Settings, Source | None]:
    """The settings of `config`, and where they came from (None: no file). Raises ConfigError."""
    if isinstance(config, Settings):
        path = config.config_path
        return config, None if path is None else Source(path, lambda: _load(path)[0])
    settings, file = _load(config)
    return settings, None if file is None else Source(file, lambda: _load(file)[0])


def _load(config: str | os.PathLike[str] | Mapping[str, Any] | None) -> tuple[Settings, str | None]:
    # Only here: it brings pydantic, which a worker's interpreter need not have.
    from limetaskd.config.load import load, load_mapping
    from limetaskd.plan.build import build

    if isinstance(config, Mapping):
        loaded = load_mapping(config, os.environ)
    else:
        loaded = load(None if config is None else os.fspath(config), os.environ)
    return build(loaded, os.environ).settings, loaded.file


def _new_app(settings: Settings) -> Any:
    app = Celery(settings.application, task_cls=LimeTask)
    # Other threads take the default app, not the current one of this thread.
    app.set_default()
    return app


def _configure(app: Any, settings: Settings, source: Source | None) -> Any:
    with _lock:
        app.conf.get("task_acks_late")  # reads the app's own configuration, which would come on top later
        ignored = app.conf.get("task_routes")
        changes = celery_settings(settings)
        changes["imports"] = tuple(dict.fromkeys([*(app.conf.get("imports") or ()), *task_modules(settings)]))
        _put_on(app, settings, source, changes)
    _in_force(app, settings)
    if ignored:
        logs.logger("limetaskd.routing").warning(
            "task_routes of app %r has no say: tasks are routed by the configuration of limetaskd", app.main
        )
    return app


def _put_on(app: Any, settings: Settings, source: Source | None, changes: Mapping[str, Any]) -> None:
    global _default
    before = {config: app.conf.get(config) for _, config in LimeTask.from_config}
    app.conf.update(changes)
    bind(app, Binding(app, settings, source))
    if any(is_redis(url) for url in (settings.backend_url, app.conf.result_backend)):
        from limetaskd.tasks.results import use_our_results  # only here: it needs the client library of Redis

        use_our_results(app)
    forget_connections(app)
    app.amqp_cls = AMQP
    for cached in ("amqp", "control", "events", "timezone"):
        app.__dict__.pop(cached, None)
    _rebind_tasks(app, before)
    if _state.default_app is None:
        app.set_default()
    _default = app


def _in_force(app: Any, settings: Settings) -> Any:
    logs.configure(settings.log_level, settings.log_message_max_bytes)
    binding = binding_of(app)
    assert binding is not None
    binding.settings()  # the embedded server's address, when its daemon runs already
    return app


def _rebind_tasks(app: Any, before: Mapping[str, Any]) -> None:
    """Tasks that exist already took what they do not say themselves from the app's former configuration.

    Celery sets these attributes when it binds a task, that is, behind `__bound__` in its class; what the task says
    itself stands before.
    """
    for task in list(app._tasks.values()):
        cls = type(task)
        names = list(vars(cls))
        if "__bound__" not in names:
            continue
        taken = names[names.index("__bound__") :]
        for attribute, config in cls.from_config:
            if attribute in taken and vars(cls)[attribute] == before.get(config):
                setattr(cls, attribute, app.conf[config])
