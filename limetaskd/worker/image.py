"""The image: a process that has imported Celery and the task modules, and forks workers and schedules on request.

    image   --fork-->  go-between  --fork-->  spare      waits (spare.py); its parent is the daemon
    daemon  --fork {spec, nice}-->  image  --the same-->  spare, which becomes that process
    daemon  <------- {pid} -------  image                and forks the next spare

One spare is always forked ahead, so that nobody waits for a fork. One thread, the sockets to the daemon and to the
spare, no broker connection. What the imports left behind that a fork would share or lose (`leftovers.py`) makes the
image refuse to fork; the daemon then starts workers by exec. It ends with its daemon: the next daemon makes a new one
from the code as it is then. It leaves without what modules registered for the exit: that is for the workers.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import gc
import importlib
import logging
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from limetaskd.core.channel import MAX_BYTES, Command, Phase, Reply, State, decode, encode
from limetaskd.core.peer import peer_pid
from limetaskd.core.process import name_arguments, name_process
from limetaskd.core.settings import Settings
from limetaskd.core.spec import SPARE, SPEC_VARIABLE, ProcessSpec
from limetaskd.errors import ChannelError
from limetaskd.tasks.conf import is_redis, transport_module
from limetaskd.tasks.follow import Signature
from limetaskd.worker import application, file_pages, logs, sources
from limetaskd.worker.application import ImportFailedError
from limetaskd.worker.begin import begin
from limetaskd.worker.leftovers import Leftovers
from limetaskd.worker.runtime import one_line
from limetaskd.worker.spare import CannotForkError, Spare, fork_ahead

logger = logging.getLogger(__name__)

EX_CONFIG = 78
CONNECT_TIMEOUT_S = 10.0
HEARING_TIMEOUT_S = 1.0
# A spare is made when nothing was asked for so long: longer than a worker needs to its first task.
QUIET_S = 0.25
_PR_SET_PDEATHSIG = 1
# What a worker and a schedule import later, and would each import for themselves: one that another Celery has not is
# no loss but of time.
_PRELOAD = (
    "billiard.popen_fork",
    "billiard.sharedctypes",
    "billiard.synchronize",
    "celery.app.control",
    "celery.app.events",
    "celery.app.log",
    "celery.apps.worker",
    "celery.concurrency.prefork",
    "celery.concurrency.thread",
    "celery.concurrency.solo",
    "celery.events.dispatcher",
    "celery.events.receiver",
    "celery.fixups.django",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.consumer.delayed_delivery",
    "celery.worker.loops",
    "celery.worker.strategy",
    "encodings.ascii",
    "encodings.idna",  # of every name of a host
    "hmac",
    "kombu.asynchronous.hub",
    "kombu.asynchronous.timer",
    "kombu.utils.eventio",
    "limetaskd.agent.main",
    "limetaskd.beat.main",
    "limetaskd.core.record",
    "limetaskd.worker.main",
    "secrets",
)


def end_with_daemon() -> None:
    """The kernel kills this process when its daemon dies, also within imports that hang. What it forks lives on."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def flush() -> None:
    """Write what modules have printed: a fork would copy it, and each process write it once more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError) as error:  # the disk is full, or a module has closed it
            logger.warning("what modules have printed cannot be written: %s", error)


def _warn(spec: ProcessSpec, message: str, action: str) -> None:
    logs.set_up(spec.name, level=logging.WARNING)  # into descriptor 2, until its own settings are read
    logger.warning("%s", message, extra={"action": action})


class Image:
    """`run` returns None at the end, or, in a forked child, the spec of the process that it is to become."""

    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self.phase = Phase.STARTING
        self.reason: str | None = None
        self.files: dict[str, Signature] = {}
        self.imported_s = 0.0
        self._socket: socket.socket | None = None
        self._spare: Spare | None = None
        self._leftovers: Leftovers | None = None

    def preload(self, settings: Settings) -> None:
        """Import all, then look at what that left behind. Raises ImportFailedError."""
        begun = time.monotonic()
        self._leftovers = Leftovers()
        with self._leftovers:
            app = application.build(settings)
            for name in (*_PRELOAD, transport_module(settings.broker_url)):
                try:
                    importlib.import_module(name)
                except ImportError as error:
                    logger.info("%s is not imported ahead: %s", name, error)
            if is_redis(app.conf.result_backend):
                _ = app.backend  # it opens no connection yet, and is forgotten when a worker configures the app
        gc.collect()
        problems = self._leftovers.problems()
        if problems:
            raise ImportFailedError("; ".join(problems))
        self._leftovers.find_numpy_generators()
        self.files = sources.imported()
        flush()
        file_pages.give_back()
        gc.freeze()
        self.imported_s = time.monotonic() - begun

    def state(self) -> State:
        return State(
            name=self.spec.name,
            generation=self.spec.generation,
            pid=os.getpid(),
            phase=self.phase,
            reason=self.reason,
            data={"modules": len(self.files), "imported_s": round(self.imported_s, 3)},
        )

    def connect(self) -> None:
        """Raises OSError: without the daemon that has started it there is nothing to do here."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(CONNECT_TIMEOUT_S)
        self._socket.connect(self.spec.channel)
        self._socket.settimeout(None)
        listener = peer_pid(self._socket)
        if listener != os.getppid():
            raise OSError(errno.ESRCH, f"pid {listener} listens, which has not started this process")
        self.report()

    def report(self) -> None:
        self._send(encode(self.state()))

    def _send(self, packet: bytes) -> None:
        try:
            if self._socket is not None:
                self._socket.send(packet)
        except OSError as error:
            logger.info("the daemon does not hear any more: %s", error)  # the next look at the socket ends this

    def await_hearing(self) -> None:
        """Until the daemon has read all and hung up: it may notice the end of a process before its last words."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError):  # it is gone, or too slow
            self._socket.settimeout(HEARING_TIMEOUT_S)
            self._socket.shutdown(socket.SHUT_WR)
            while self._socket.recv(MAX_BYTES):
                pass

    def run(self) -> ProcessSpec | None:
        """Serve until the daemon goes or says `drain`."""
        try:
            return self._serve()
        finally:
            self._dismiss_spare()

    def _serve(self) -> ProcessSpec | None:
        assert self._socket is not None
        while True:
            if self._spare is None and self._quiet():
                child = self._keep_spare()
                if child is not None:
                    return child
            try:
                packet = self._socket.recv(MAX_BYTES)
            except OSError as error:
                logger.info("the daemon is gone (%s), so is its image", error)
                return None
            if not packet:
                return None
            try:
                command = decode(packet)
            except ChannelError as error:
                logger.warning("the daemon sent something that is not a command: %s", error)
                continue
            if not isinstance(command, Command):
                continue
            if command.command == "fork":
                child = self._fork(command, packet)
                if child is not None:
                    return child
            elif command.command == "drain":
                self._reply(Reply(command.id))
                return None
            else:
                self._reply(self._obey(command))

    def _reply(self, reply: Reply) -> None:
        self._send(encode(reply))

    def _obey(self, command: Command) -> Reply:
        if command.command == "stale":
            return Reply(command.id, result={"changed": sources.changed(self.files)[:20]})
        if command.command == "reopen":
            try:
                logs.reopen_all()
            except OSError as error:
                return Reply(command.id, f"cannot open the log file: {error}")
            self._dismiss_spare()  # it has the old file open
            return Reply(command.id)
        return Reply(command.id, f"unknown command {command.command!r}")

    def _fork(self, command: Command, packet: bytes) -> ProcessSpec | None:
        """Let the spare become what is wanted; when there is none, or it was killed, fork another one for it.

        `packet`: the command as it came, which is handed on.
        """
        try:
            ProcessSpec.from_json(command.params["spec"])
        except (KeyError, TypeError, ValueError) as error:
            self._reply(Reply(command.id, f"not a spec: {error}"))
            return None
        pid = self._call_spare(packet)
        if pid is None:
            try:
                child = self._fork_ahead()
            except CannotForkError as error:
                self._reply(Reply(command.id, str(error)))
                return None
            if child is not None:
                return child
            pid = self._call_spare(packet)
        if pid is None:
            self._reply(Reply(command.id, "the new process was killed at once"))
        else:
            self._reply(Reply(command.id, result={"pid": pid}))
        return None

    def _call_spare(self, packet: bytes) -> int | None:
        """The pid of the spare, which is one no longer; None when there was none alive."""
        spare, self._spare = self._spare, None
        return spare.pid if spare is not None and spare.call(packet) else None

    def _dismiss_spare(self) -> None:
        if self._spare is not None:
            self._spare.dismiss()
            self._spare = None

    def _quiet(self) -> bool:
        """Whether nothing is asked for a moment: what was just forked gets the processor first."""
        assert self._socket is not None
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return not poller.poll(QUIET_S * 1000)

    def _keep_spare(self) -> ProcessSpec | None:
        """Try to make a spare. Returns the spec in the new process only, once it is called."""
        try:
            return self._fork_ahead()
        except CannotForkError as error:
            # Tried again when a process is needed: then the daemon hears of it.
            logger.warning("no process is forked ahead: %s", error)
            return None

    def _fork_ahead(self) -> ProcessSpec | None:
        """Make a spare. Returns the spec in the new process only, once it is called. Raises CannotForkError."""
        made = fork_ahead(self._leave)
        if isinstance(made, Spare):
            self._spare = made
            return None
        command = decode(made)
        assert isinstance(command, Command)
        spec = ProcessSpec.from_json(command.params["spec"])
        self._become(spec, command.params.get("nice"))
        return spec

    def _leave(self) -> None:
        """In the new process: nothing of the image stays but memory: no session, signals, descriptors, log handlers.

        Only descriptors 1 and 2 stay the image's log until it becomes something: what goes wrong before is said there.
        """
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        root = logging.getLogger()
        for handler in list(root.handlers):
            root.removeHandler(handler)
            if isinstance(handler, logs.WatchedFile):
                os.close(handler.stream.fileno())
        name_process(SPARE)
        name_arguments("spare", SPARE)

    def _become(self, spec: ProcessSpec, nice: Any) -> None:
        """From now on this process is that of `spec`: its log, environment, niceness, randomness and name.

        The rest of the environment is that of the daemon, with what the imports made of it.
        """
        log = os.open(spec.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.environ[SPEC_VARIABLE] = spec.to_json()
        if isinstance(nice, int):
            try:
                os.nice(nice)
            except OSError as error:  # nice(1), by which a worker is started by exec, goes on as well
                _warn(spec, f"the niceness stays {os.nice(0)}: {error}", "not_niced")
        if self._leftovers is not None:
            for shared in self._leftovers.open_again():
                _warn(spec, f"a file that the imports opened is shared with other workers: {shared}", "file_shared")
            self._leftovers.seed()
        name_process(spec.name)
        name_arguments(spec.kind, spec.name)


def main(spec: ProcessSpec) -> int:
    """In a forked process: its life, and its exit code. The image itself does not return, but without a daemon (0)."""
    end_with_daemon()
    settings = begin(spec)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    image = Image(spec)
    try:
        image.connect()
    except OSError as error:
        logger.info("the daemon is gone (%s), so is its image", error)
        return os.EX_OK
    try:
        image.preload(settings)
    except ImportFailedError as error:
        image.phase, image.reason = Phase.FAILED, one_line(error)
        logger.error(
            "workers are not forked from an image, but start by exec, which takes more memory and time (if that is "
            "meant: limetaskd.preload: false): %s", image.reason, extra={"action": "preload_failed"},
        )  # fmt: skip
        image.report()
        image.await_hearing()
        try:
            atexit._run_exitfuncs()  # nobody shares what the imports made: it is cleaned up here
        finally:
            flush()
            os._exit(EX_CONFIG)  # the interpreter's own exit waits for threads, and workers wait for this
    image.phase = Phase.CONSUMING
    image.report()
    logger.info(
        "%d modules imported in %.2f s", len(image.files), image.imported_s, extra={"action": "preloaded"}
    )
    child = _run(image)
    from limetaskd.core.record import NumberTakenError, write_own_record

    try:
        write_own_record(child)
    except NumberTakenError as error:
        logger.error("%s", error)
        flush()
        os._exit(os.EX_TEMPFAIL)
    status = int(importlib.import_module(f"limetaskd.{child.kind}.main").main(child) or 0)
    if child.kind == "agent":
        flush()
        os._exit(status)  # the application's functions for the exit are not for it either
    return status


def _run(image: Image) -> ProcessSpec:
    """Returns in a forked process alone, with what it is to be; the image ends here.

    Not by the interpreter's exit: what modules registered for it would take from the workers what belongs to them.
    """
    status = os.EX_OK
    try:
        child = image.run()
        if child is not None:
            return child
    except SystemExit:  # SIGTERM
        pass
    except Exception:
        logger.exception("the image, or a process that it has just forked, cannot go on")
        status = os.EX_SOFTWARE
    os._exit(status)
