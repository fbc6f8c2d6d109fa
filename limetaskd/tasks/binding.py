"""What ties one Celery app to the settings: the settings in force, and the switch to another broker."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from typing import Any

from limetaskd.core.settings import Settings
from limetaskd.tasks.conf import broker_settings
from limetaskd.tasks.follow import Follower, Source

_ATTRIBUTE = "_limetaskd_binding"
bound_apps: weakref.WeakSet[Any] = weakref.WeakSet()


class Binding:
    """One app's settings. `settings()` is called at each send."""

    def __init__(self, app: Any, settings: Settings, source: Source | None = None) -> None:
        self._app = weakref.ref(app)
        self._follower = Follower(settings, source)
        self._lock = threading.Lock()
        self.configured = settings  # what `app.conf` was made of, with the addresses that it has now

    def settings(self) -> Settings:
        """The settings in force now. Points the app to another broker when they name one."""
        settings = self._follower.settings()
        if self._moved(settings):
            with self._lock:
                self._switch(settings)
        return settings

    def forget_locks(self) -> None:
        """In a forked child: a thread that is no more may have held a lock."""
        self._lock = threading.Lock()
        self._follower.forget_locks()

    def _switch(self, settings: Settings) -> None:
        app = self._app()
        if not self._moved(settings) or app is None:
            return
        app.conf.update(broker_settings(settings))
        forget_connections(app)
        self.configured = dataclasses.replace(
            self.configured, broker_url=settings.broker_url, backend_url=settings.backend_url
        )

    def _moved(self, settings: Settings) -> bool:
        known = self.configured
        return (settings.broker_url, settings.backend_url) != (known.broker_url, known.backend_url)


def binding_of(app: Any) -> Binding | None:
    """The binding of an app that create_app or configure_app has seen, else None."""
    return getattr(app, _ATTRIBUTE, None)


def bind(app: Any, binding: Binding) -> None:
    setattr(app, _ATTRIBUTE, binding)
    bound_apps.add(app)


def forget_connections(app: Any) -> None:
    """The next use of broker and result store connects anew, by what `app.conf` says then.

    Connections that another thread uses right now stay open until it is done with them.
    """
    app._pool = None
    amqp = app.__dict__.get("amqp")
    if amqp is not None:
        amqp._producer_pool = None
    app._backend_cache = None
    # Backends that are not thread-safe are kept for each thread.
    app._local = threading.local()
