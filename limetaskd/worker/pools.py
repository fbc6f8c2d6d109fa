"""Celery's pools, with what graceful ends and resizing need."""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import billiard
from billiard.einfo import ExceptionInfo
from billiard.pool import CLOSE, RUN
from celery.concurrency.asynpool import AsynPool
from celery.concurrency.base import apply_target
from celery.concurrency.prefork import TaskPool as CeleryPrefork
from celery.concurrency.solo import TaskPool as CelerySolo
from celery.concurrency.thread import ApplyResult
from celery.concurrency.thread import TaskPool as CeleryThreads

from limetaskd.errors import LimetaskError
from limetaskd.worker.once import NotBegunError


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


class Children(AsynPool):  # type: ignore[misc]
    """Celery's pool of processes; a task that a child had begun is never given to another one."""

    # Set by the worker: whether the process `pid` has begun (or ended) the task last.
    begun: Callable[[int, str], bool] = staticmethod(lambda _pid, _task_id: False)
    flushed: Callable[[], None] = staticmethod(lambda: None)  # the connection is lost

    @property
    def timers(self) -> dict[Callable[[], Any], float]:
        """A death whose signal was missed is noticed within a second; Celery takes five."""
        return {self.maintain_pool: 1.0}

    def flush(self) -> None:
        self.flushed()
        super().flush()

    def on_partial_read(self, job: Any, proc: Any) -> None:
        """The child died. Its word that it begins may be lost with it: then Celery runs the task once more."""
        if job._accepted or not job.correlation_id or not self.begun(proc.pid, job.correlation_id):
            super().on_partial_read(job, proc)
            return
        job._ack(None, time.monotonic(), proc.pid, None)
        super().on_partial_read(job, proc)
        if not job.ready():
            self.mark_as_worker_lost(job, proc.exitcode)


def _make_heap() -> None:
    """Let billiard make the shared memory that its pool will ask for, and leave no folder behind.

    The memory is a file that is removed at once; its folder would stay until the interpreter exits, which a process
    that is killed, or ends by _exit, never does: one more folder in /tmp for each of them.
    """
    settings: dict[str, Any] = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    before = settings.get("tempdir")
    with tempfile.TemporaryDirectory() as folder:
        settings["tempdir"] = folder
        billiard.Value("i")  # freed at once: the heap keeps its memory for what comes next
        settings["tempdir"] = before


class Prefork(CeleryPrefork):  # type: ignore[misc]
    """The process pool; when nothing runs any more it ends in milliseconds instead of seconds."""

    # How long children get for their own goodbyes (worker_process_shutdown) before Celery's way takes over.
    GOODBYE_S = 5.0
    Pool = Children
    _pool: Any

    def on_start(self) -> None:
        _make_heap()
        super().on_start()

    def on_stop(self) -> None:
        pool: Any = self._pool
        if not isinstance(pool, AsynPool) or pool._state not in (RUN, CLOSE) or pool._cache:
            super().on_stop()
            return
        pool.close()
        pool._stop_task_handler(pool._task_handler)
        deadline = time.monotonic() + self.GOODBYE_S
        for child in pool._pool:
            # A child that has said all sleeps for a second, so that its last word is read; nobody will.
            if child.outq._reader.poll(max(0.0, deadline - time.monotonic())) and child._is_alive():
                os.kill(child.pid, signal.SIGTERM)
        pool.join()
        self._pool = None


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

    def flush(self) -> None:
        """The connection is lost: what has not started has gone back with it, and comes again."""
        self.take_back(lambda _request: True)

    def take_back(self, of: Callable[[Any], bool]) -> list[Any]:
        """The requests among `of` that had not started; they never will."""
        return [request for future, request in list(self._waiting.items()) if of(request) and future.cancel()]


class Solo(CelerySolo):  # type: ignore[misc]
    """The pool without a pool: tasks run in the event loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_apply = self._apply

    @staticmethod
    def _apply(target: Any, args: Any = (), kwargs: Any = None, **options: Any) -> Any:
        options["callback"] = _settled(options.get("callback"))
        with contextlib.suppress(NotBegunError):  # its request has seen to it
            return apply_target(target, args, kwargs, **options)


def grow_semaphore(semaphore: Any, count: int = 1) -> None:
    """Admit `count` tasks more. kombu's own counts the waiting tasks that it starts as free places."""
    semaphore.initial_value += count
    for _ in range(count):
        semaphore.release()
