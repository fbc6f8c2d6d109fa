"""Where a worker, its pool children and the schedule write their log records: one line, one write() each.

Everything goes through the root logger, once: Celery's loggers, task loggers, warnings, the application's own. What
tasks print goes to descriptors 1 and 2, which are the same file under the daemon.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from billiard.util import get_logger as billiard_logger

from limetaskd.core.jsonlog import JsonFormatter, as_text

EXECUTION_LOGGER = "limetaskd.execution"
ROUTING_LOGGER = "limetaskd.routing"
# The execution record says what these say at INFO, in fields; DEBUG shows them again.
_REPLACED = ("celery.worker.strategy", "celery.app.trace")
_STORE_LOGGER = "celery.backends.base"
_TAIL_BYTES = 256 * 1024
_OWN_HANDLER = "limetaskd"


class _Sink:
    """A descriptor with the little of a stream that Celery looks for.

    Celery's embedded schedule closes all descriptors but those of `handler.stream`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        rest = memoryview(data)
        while rest:  # a regular file takes all at once; a pipe may not
            rest = rest[os.write(self._descriptor, rest) :]
        return len(text)

    def flush(self) -> None:
        """Nothing is buffered."""


def _celery_fields(record: logging.LogRecord) -> bool:
    """Celery puts arguments, result and the traceback once more into `data`; who it is about is all that we keep."""
    data = record.__dict__.pop("data", None) if record.name.startswith("celery") else None
    if isinstance(data, dict):
        record.__dict__.setdefault("task_id", data.get("id"))
        record.__dict__.setdefault("task_name", data.get("name"))
    return True


def _not_acknowledged(record: logging.LogRecord) -> bool:
    """kombu cries over each message whose connection has broken; it is in its queue again, and nothing is lost."""
    if record.name == "celery.worker.request" and str(record.msg).startswith(("Couldn't ack", "Couldn't reject")):
        record.exc_info, record.levelno, record.levelname = None, logging.WARNING, "WARNING"
    return True


class _StoreIsAway(logging.Filter):
    """A task that waits for its result store warns with a traceback at every try: one line, an error, now and then."""

    EVERY_S = 10.0
    _quiet_until = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name != _STORE_LOGGER or not record.exc_info or not str(record.msg).startswith("Failed op"):
            return True
        now, error = time.monotonic(), record.exc_info[1]
        record.msg = "the result store cannot be used, trying again until it can: %s: %s"
        record.args, record.exc_info = (type(error).__name__, error), None
        record.levelno, record.levelname = logging.ERROR, "ERROR"
        if now < self._quiet_until:
            return False
        self._quiet_until = now + self.EVERY_S
        return True


class LineHandler(logging.Handler):
    """Writes each record with one write() to a descriptor, so that lines of many processes never mix."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.name = _OWN_HANDLER
        self.addFilter(_celery_fields)
        self.addFilter(_not_acknowledged)
        self.addFilter(_StoreIsAway())
        self.stream = _Sink(descriptor)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.stream.write(self.format(record) + "\n")
        except Exception:  # noqa: BLE001  logging's own way: report on stderr, never into the caller's code
            self.handleError(record)


class WatchedFile(LineHandler):
    """A log file that is opened again when it was renamed or removed (rotation), seen at the next record.

    `own_stdio`: descriptors 1 and 2 follow, so that prints of tasks and tracebacks of the interpreter move too.
    The number of the descriptor never changes: pool children, forked at any time, go on writing.
    """

    def __init__(self, path: str, *, own_stdio: bool) -> None:
        self.path = path
        self.own_stdio = own_stdio
        super().__init__(self._open())
        self._identity = self._identify(os.fstat(self.stream.fileno()))
        self._adopt_stdio()

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    @staticmethod
    def _identify(status: os.stat_result) -> tuple[int, int]:
        return status.st_dev, status.st_ino

    def _adopt_stdio(self) -> None:
        if self.own_stdio:
            for descriptor in (1, 2):
                os.dup2(self.stream.fileno(), descriptor)

    def reopen(self) -> None:
        """Open the path again, whatever is open now."""
        self.acquire()
        try:
            fresh = self._open()
            try:
                os.dup2(fresh, self.stream.fileno(), inheritable=False)
            finally:
                os.close(fresh)
            self._identity = self._identify(os.fstat(self.stream.fileno()))
            self._adopt_stdio()
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            moved = self._identify(os.stat(self.path)) != self._identity  # noqa: PTH116  the hot path of every record
        except OSError:
            moved = True
        if moved:
            try:
                self.reopen()
            except OSError:
                # The folder is gone or the disk refuses: the old file still takes what happens.
                self.handleError(record)
        super().emit(record)


class TextFormatter(JsonFormatter):
    """The same documents as one line for people."""

    def format(self, record: logging.LogRecord) -> str:
        return as_text(self.document(record))


def set_up(
    process: str,
    *,
    level: str | int,
    path: str | None = None,
    own_stdio: bool = False,
    text: bool = False,
    max_message_bytes: int = 0,
) -> LineHandler:
    """Make one handler the only one, for `process`, and return it. `path` None: stderr.

    Called again (a command line that names another file or level), the earlier handler goes.
    """
    handler = WatchedFile(path, own_stdio=own_stdio) if path else LineHandler(2)
    formatter = TextFormatter if text else JsonFormatter
    handler.setFormatter(formatter(process, max_message_bytes))
    root = logging.getLogger()
    for other in list(root.handlers):
        root.removeHandler(other)
    root.addHandler(handler)
    billiard_logger()  # cuts itself off when it is made
    for name in ("celery", "celery.task", "celery.redirected", "multiprocessing", "kombu", "amqp"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    set_level(level)
    # Promised for every task, whatever level an operator chose for the rest.
    _limit(logging.getLogger(EXECUTION_LOGGER), logging.INFO)
    _limit(logging.getLogger(ROUTING_LOGGER), logging.INFO)
    logging.captureWarnings(True)
    # Said by us, louder; and repeated at every lost connection, though the choice is ours and documented.
    warnings.filterwarnings("ignore", message=r"[\s\S]*running the worker with superuser privileges")
    warnings.filterwarnings("ignore", message=r"[\s\S]*cancels all currently executed tasks")
    # What a task prints must be in the file when its process is killed a moment later.
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True)
    return handler


def set_level(level: str | int) -> None:
    """The level of this process; what Celery says beside our own records stays quieter, but for DEBUG."""
    root = logging.getLogger()
    _limit(root, level)
    quiet = root.level > logging.DEBUG
    for name in _REPLACED:
        _limit(logging.getLogger(name), max(root.level, logging.WARNING) if quiet else logging.NOTSET)
    _limit(logging.getLogger(_STORE_LOGGER), min(root.level, logging.WARNING))  # it becomes an error, see _StoreIsAway
    _limit(logging.getLogger("multiprocessing"), logging.WARNING if quiet else logging.INFO)


def _limit(logger: logging.Logger, level: str | int) -> None:
    # Setting a level touches every logger there is, and so unshares their memory from the image's.
    if level not in (logger.level, logging.getLevelName(logger.level)):
        logger.setLevel(level)


def reopen_all() -> None:
    """Open the log files of this process again."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, WatchedFile):
            handler.reopen()


def was_recorded(task_id: str, pid: int | None) -> bool:
    """Whether the end of this task, written by the child `pid`, stands in the last part of this worker's log file.

    For the one case that the scoreboard cannot tell: a child that died right after it wrote its record.
    """
    needle, writer = json.dumps(task_id).encode(), f'"pid": {pid},'.encode()
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, WatchedFile):
            continue
        try:
            with Path(handler.path).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
                lines = file.read().splitlines()
        except OSError:
            continue
        if any(needle in line and writer in line and b'"task_outcome"' in line for line in lines):
            return True
    return False


def loudly_warn_root(logger: logging.Logger) -> None:
    """Task code as root can do anything to this host: say it where it is read."""
    if os.geteuid() == 0:
        logger.warning(
            "RUNNING TASK CODE AS ROOT: every task can do anything on this host. Set `limetaskd.user` (the daemon), "
            "or start it as another user",
            extra={"action": "root_warning", "uid": 0, "executable": str(Path(sys.executable))},
        )
