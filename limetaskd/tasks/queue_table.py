"""Celery's table of queues, which knows configured and actual names."""

from __future__ import annotations

from typing import Any

import celery.app.amqp
import kombu

from limetaskd.core.routing import find_queue
from limetaskd.core.settings import Queue, Settings
from limetaskd.tasks.queues import kombu_queue


def meant_queue(settings: Settings, name: str) -> Queue:
    """The queue that a configured or actual name means; an unknown one is made of this cluster."""
    return find_queue(settings, name) or settings.unknown_queue(name)


class Queues(celery.app.amqp.Queues):  # type: ignore[misc]
    """`app.amqp.queues`: keys are actual names; a lookup also takes configured ones (`celery worker -Q`, control)."""

    binding: Any = None  # limetaskd.tasks.binding.Binding; set right after construction

    def _actual(self, name: str) -> str:
        if self.binding is None or dict.__contains__(self, name):
            return name
        queue = find_queue(self.binding.settings(), name)
        return name if queue is None else queue.actual

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return dict.__contains__(self, name) or dict.__contains__(self, self._actual(name))

    def __missing__(self, name: str) -> kombu.Queue:
        if self.binding is None:
            return super().__missing__(name)
        queue = kombu_queue(meant_queue(self.binding.settings(), name))
        if dict.__contains__(self, queue.name):
            return dict.__getitem__(self, queue.name)
        return self.add(queue)

    def add_compat(self, name: str, **options: Any) -> kombu.Queue:
        # By name alone (control.add_consumer): never a raw queue of another cluster, whatever the options say.
        return super().add_compat(name, **options) if self.binding is None else self[name]

    def deselect(self, exclude: Any) -> None:
        names = [exclude] if isinstance(exclude, str) else list(exclude or ())
        super().deselect([self._actual(name) for name in names])
