"""Celery's pools, with what graceful ends and resizing need."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.concurrency.base import apply_target
from celery.concurrency.solo import TaskPool as CelerySolo
from celery.concurrency.thread import ApplyResult
from celery.concurrency.thread import TaskPool as CeleryThreads

from limetaskd.errors import LimetaskError


class TaskExitError(LimetaskError):
    """The task tried to end its process (sys.exit), which it shares with others."""


def _settled(callback: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    """`callback`, which also understands what Celery's in-process pools pass for SystemExit and its like."""
    request = getattr(callback, "__self__", None)
    if callback is None or request is None:
        return callback

    def settle(result: Any) -> Any:
        if not isinstance(result, ExceptionInfo):
            return callback(result)
        try:
            raise TaskExitError(f"the task tried to end its process: {result.exception}")
        except TaskExitError:
            return request.on_failure(ExceptionInfo())

    return settle


class Threads(CeleryThreads):  # type: ignore[misc]
    """The thread pool; a task that no thread has started can be taken back."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: dict[Future[Any], Any] = {}

    def on_apply(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> ApplyResult:
        request = getattr(options.get("callback"), "__self__", None)
        options["callback"] = _settled(options.get("callback"))
        result = super().on_apply(target, args, kwargs, **options)
        if request is not None:
            self._waiting[result.f] = request
            result.f.add_done_callback(lambda future: self._waiting.pop(future, None))
        return result

    def take_back(self) -> list[Any]:
        """The requests that had not started; they never will."""
        return [request for future, request in list(self._waiting.items()) if future.cancel()]


class Solo(CelerySolo):  # type: ignore[misc]
    """The pool without a pool: tasks run in the event loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_apply = self._apply

    @staticmethod
    def _apply(target: Any, args: Any = (), kwargs: Any = None, **options: Any) -> Any:
        options["callback"] = _settled(options.get("callback"))
        return apply_target(target, args, kwargs, **options)


def grow_semaphore(semaphore: Any, count: int = 1) -> None:
    """Admit `count` tasks more. kombu's own counts the waiting tasks that it starts as free places."""
    semaphore.initial_value += count
    for _ in range(count):
        semaphore.release()
