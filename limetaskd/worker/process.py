"""Celery's worker program with our signals, logs, pools, records and reports; everything else is Celery's own."""

from __future__ import annotations

import gc
import logging
import sys
from typing import Any

from celery import bootsteps, signals
from celery.apps.worker import Worker as CeleryWorker
from celery.apps.worker import install_cry_handler, install_rdb_handler
from celery.concurrency import get_implementation
from celery.concurrency.prefork import TaskPool as CeleryPrefork
from celery.concurrency.solo import TaskPool as CelerySolo
from celery.concurrency.thread import TaskPool as CeleryThreads
from celery.worker.control import Panel

from limetaskd.core.memory import private_bytes
from limetaskd.tasks.conf import is_redis
from limetaskd.worker import logs, pools, request
from limetaskd.worker.consumer import Consumer
from limetaskd.worker.endings import Endings
from limetaskd.worker.keeping import Keeper
from limetaskd.worker.records import Recorder, Tracer
from limetaskd.worker.runtime import Runtime

logger = logging.getLogger(__name__)

_POOLS = {CeleryPrefork: pools.Prefork, CeleryThreads: pools.Threads, CelerySolo: pools.Solo}


class Gate(bootsteps.Step):  # type: ignore[misc]
    """Between consumer and pool: what arrives after the request to drain is held, and given back."""

    requires = ("celery.worker.components:Pool",)

    def create(self, worker: Any) -> Any:
        worker.lime.pool = worker.pool
        drain, process_task = worker.lime.drain, worker.process_task

        def gated(task_request: Any) -> None:
            if drain.requested:
                drain.held.append(task_request)
            elif worker.endings.admit(task_request):
                if not task_request.task.acks_late:
                    worker.lime.permits.number(task_request)
                process_task(task_request)

        worker.process_task = gated
        semaphore = worker.semaphore
        if semaphore is not None:
            semaphore.grow = lambda count=1: pools.grow_semaphore(semaphore, count)
        return self


class Worker(CeleryWorker):  # type: ignore[misc]
    """`lime`: the Runtime. The other arguments are Celery's."""

    lime: Runtime

    def __init__(self, app: Any = None, *, lime: Runtime, **kwargs: Any) -> None:
        self.lime = lime
        pools.Children.begun = staticmethod(lime.board.begun)
        pools.Children.flushed = staticmethod(lime.permits.connection_lost)
        self.recorder = Recorder(lime.settings)
        self.keeper = Keeper(lime, self.recorder)
        self.endings = Endings(app, lime, self.recorder, self.keeper)
        app.steps["worker"].add(Gate)
        kwargs.setdefault("consumer_cls", Consumer)
        for key in ("pool", "pool_cls"):
            if kwargs.get(key):
                pool = get_implementation(kwargs[key])
                kwargs[key] = _POOLS.get(pool, pool)
        super().__init__(app=app, **kwargs)
        limits = (self.soft_time_limit, self.time_limit)
        self.tracer = Tracer(
            self.recorder, lime.board, limits, lime.permits, lime.level.follow, patient=lime.patient
        )
        signals.worker_process_init.connect(self._on_child, weak=False)

    def setup_queues(self, include: Any, exclude: Any = None) -> None:
        """Celery takes an empty list for "all queues"; here it means that all of them are paused."""
        if include is not None and not include:
            self.app.amqp.queues._consume_from = {}
        super().setup_queues(include, exclude)

    def setup_logging(self, _colorize: Any = None) -> bool:
        """The logs are ours; a file or level of the command line was applied before, see handler.py."""
        self.app.log.already_setup = True
        return True

    def install_platform_tweaks(self, _worker: Any) -> None:
        install_cry_handler()
        install_rdb_handler()
        by_terminal = self.lime.spec is None and sys.stdin is not None and sys.stdin.isatty()
        self.lime.drain.install_signals(reopen=None if by_terminal else logs.reopen_all)

        # `celery control shutdown` ends a worker like SIGTERM does.
        def shutdown(_state: Any, **_kwargs: Any) -> dict[str, str]:
            self.lime.drain.request()
            return {"ok": "draining"}

        Panel.data["shutdown"] = shutdown

    def before_strategies(self) -> None:
        """The strategy of a task takes its Request as it is then."""
        request.install(self.app, self.lime, self.recorder, self.endings)

    def on_strategies(self) -> None:
        """The consumer has (re)built what it needs of each task, also of those that were registered since."""
        if not isinstance(self.pool, CeleryPrefork):
            self.tracer.wrap_all(self.app)

    def on_start(self) -> None:
        super().on_start()
        # Pool children have the client of the result store then, which opens no connection yet, and need not make it
        # each. Others may connect as they are made (SQLAlchemy's does): in the children, as Celery does it.
        if is_redis(self.app.conf.result_backend):
            _ = self.app.backend
        # What is loaded now is shared by the pool children, and stays shared.
        gc.collect()
        gc.freeze()

    def _on_child(self, **_kwargs: Any) -> None:
        """In each new pool child."""
        self.lime.drain.forget_signals()
        slot = self.lime.board.writer()
        if slot is not None:
            slot.weigh(private_bytes("self") or 0)
        self.tracer.wrap_all(self.app)
