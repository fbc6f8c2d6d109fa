"""One worker under the daemon: from its spec to its exit code."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal

from celery.exceptions import ImproperlyConfigured
from celery.utils.nodenames import gethostname

from limetaskd.core.settings import Settings
from limetaskd.core.spec import ProcessSpec
from limetaskd.worker import application, logs
from limetaskd.worker.application import ImportFailedError
from limetaskd.worker.begin import begin
from limetaskd.worker.consumer import EX_CONFIG
from limetaskd.worker.process import Worker
from limetaskd.worker.runtime import Runtime, one_line

logger = logging.getLogger(__name__)


def main(spec: ProcessSpec) -> int:
    """Run until told to stop. 0: drained; 78 (EX_CONFIG): it cannot work like this; 1: stopped at once or failed."""
    settings = application.for_pool(begin(spec), spec)
    # Into the log: the stacks of a crash, and on demand those of a process that hangs, its pool children included.
    faulthandler.enable(file=2, all_threads=True)
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
    runtime = Runtime(settings, spec.name, spec)
    runtime.drain.install_signals(reopen=logs.reopen_all)
    if runtime.link is not None:
        runtime.link.start()
    logs.loudly_warn_root(logger)
    try:
        return _run(settings, spec, runtime)
    except ImportFailedError as error:
        runtime.fail(str(error))
        return EX_CONFIG
    except ImproperlyConfigured as error:
        logger.critical("this worker cannot be configured: %s", one_line(error), exc_info=True)
        runtime.fail(str(error))
        return EX_CONFIG


def _run(settings: Settings, spec: ProcessSpec, runtime: Runtime) -> int:
    app = application.build(settings)
    if runtime.drain.requested:  # told to stop before it began
        return os.EX_OK
    worker = Worker(
        app=app,
        lime=runtime,
        hostname=f"{spec.node}@{gethostname()}",
        loglevel=settings.log_level,
        pool=spec.pool_kind,
        concurrency=spec.concurrency,
        prefetch_multiplier=spec.prefetch or 1,
        queues=[settings.queue(name).actual for name in spec.queues],
        time_limit=spec.time_limit_s,
        soft_time_limit=spec.soft_time_limit_s,
        task_events=False,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        optimization="fair",
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or os.EX_OK)
