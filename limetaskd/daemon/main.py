"""The command `limetaskd`: read, check, become the right user, detach if asked, then run the loop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from limetaskd.config.load import LoadedConfig, load
from limetaskd.core.process import name_process
from limetaskd.daemon import privileges
from limetaskd.daemon.audit import Operator
from limetaskd.daemon.control.server import ControlServer
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.guard import Guard
from limetaskd.daemon.launch import paths_of
from limetaskd.daemon.lock import LOCK_VARIABLE, RuntimeLock
from limetaskd.daemon.logpump import LogPump, PumpHandler
from limetaskd.daemon.notify import Notifier
from limetaskd.daemon.orphans import folders_left
from limetaskd.daemon.reload import reload_on_request
from limetaskd.daemon.service import ServiceReporter
from limetaskd.daemon.upgrade import (
    REASON,
    rehearse_processes,
    rehearse_start,
    rehearse_state,
    replace_process,
    upgrade_on_request,
)
from limetaskd.errors import AlreadyRunningError, ConfigError, LimetaskError
from limetaskd.plan.build import build
from limetaskd.plan.held import HELD_VARIABLE, build_held, detach, values_of
from limetaskd.plan.model import Plan
from limetaskd.plan.render import as_document, render, render_held_back
from limetaskd.version import __version__

log = logging.getLogger("limetaskd")

HANDLED_SIGNALS = {
    signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
}  # fmt: skip
EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2
DESCRIPTORS = 8192
EXIT_REPLACE = -1  # never leaves this process: it becomes the newer code


def parser() -> argparse.ArgumentParser:
    """The command line of limetaskd."""
    result = argparse.ArgumentParser(
        prog="limetaskd",
        description="Supervise Celery workers: pools by queue, restarts, limits, live control with limetaskctl.",
        epilog="Signals: HUP reload; TERM, INT graceful stop (twice: at once); QUIT stop at once; USR1 reopen logs; "
        "USR2 upgrade in place. "
        "Exit codes: 0 clean stop, 2 bad usage or configuration, 1 anything else.",
    )
    add = result.add_argument
    add("--config", metavar="FILE", help="default: $LIMETASK_CONFIG, else /etc/limetaskd/limetaskd.yaml")
    add("--check", action="store_true", help="start nothing: print the resolved plan, or all errors")
    add("--daemon", action="store_true", help="detach; the pid is in <runtime_dir>/limetaskd.pid")
    add("--embedded", action="store_true", help="run and supervise a private broker and result store in state_dir")
    add("--json", action="store_true", help="with --check: the plan or the errors as one JSON document")
    add("--rehearse", action="store_true", help=argparse.SUPPRESS)  # of the installed code, before an upgrade
    add("--version", action="version", version=f"limetaskd {__version__}")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    _keep_stdio_taken()
    # A reader of `--check` that has seen enough (head, less) is no error; asyncio and sockets do not need the signal.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    arguments = parser().parse_args(argv)
    running = os.environ.pop(HELD_VARIABLE, None)  # of the daemon whose newer code we are
    try:
        loaded = load(arguments.config, os.environ)
        plan = make_plan(loaded, arguments.embedded, None if running is None else json.loads(running))
    except ConfigError as error:
        if arguments.json:
            print(json.dumps({"errors": error.problems}, indent=2))
        else:
            for problem in error.problems:
                print(f"limetaskd: {problem}", file=sys.stderr)
        return EXIT_CONFIG
    problems = privileges.host_problems(plan)
    if problems:
        for problem in problems:
            print(f"limetaskd: {problem}", file=sys.stderr)
        if arguments.json:
            print(json.dumps({"errors": problems}, indent=2))
        return EXIT_CONFIG
    if arguments.rehearse:
        problems = [*rehearse_start(plan), *rehearse_state(paths_of(plan))]
        for problem in problems:
            print(f"{REASON}{problem}", file=sys.stderr)
        return EXIT_OK if not problems and rehearse_processes(plan) else EXIT_FAILED
    if arguments.check:
        print(json.dumps(as_document(plan), indent=2) if arguments.json else render(plan))
        return EXIT_OK
    try:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        return start(detach(plan) if arguments.daemon else plan, loaded)
    except LimetaskError as error:
        print(f"limetaskd: {error}", file=sys.stderr)
    except OSError as error:
        print(f"limetaskd: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
    return EXIT_FAILED


def make_plan(loaded: LoadedConfig, embedded: bool, held: Mapping[str, Any] | None) -> Plan:
    """The plan of the file; of a daemon that runs, or whose processes do, with what it `held`. Raises ConfigError."""
    if held is None:
        return build(loaded, os.environ, embedded=embedded)
    plan, waits = build_held(loaded, os.environ, held, embedded=embedded)
    return dataclasses.replace(plan, warnings=(*plan.warnings, *render_held_back(waits)))


def start(plan: Plan, loaded: LoadedConfig) -> int:
    """Everything that comes before the loop. Raises LimetaskError or OSError, for a human to read."""
    # From here on a signal waits until there is somebody to handle it, also over an upgrade's exec.
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
    _allow_descriptors()
    name_process("limetaskd")  # an upgrade's exec would leave that of the interpreter
    replaced = LOCK_VARIABLE in os.environ  # we are the newer code of a daemon that runs already
    privileges.prepare_folders(plan)
    if plan.user is not None:
        privileges.drop(plan.user)
    if not replaced:
        plan = in_the_folders_left(plan, loaded)
    lock = RuntimeLock(plan.runtime_dir)
    up = None
    if plan.detached and not replaced:
        print(f"limetaskd: detached; all logs go to {plan.logging.destination}", file=sys.stderr)
        lock.release()  # a record lock does not survive a fork; taken again below
        up = detach_process()
        lock = RuntimeLock(plan.runtime_dir)
    pidfile = Path(paths_of(plan).pidfile)
    logs = LogPump(
        paths_of(plan).logs, plan.logging, max_message_bytes=plan.settings.log_message_max_bytes
    )
    try:
        if plan.detached:
            pidfile.write_text(f"{os.getpid()}\n")
        _log_to(logs, plan)
        code = asyncio.run(serve(plan, logs, replaced=replaced, up=up))
        if code == EXIT_REPLACE:
            logs.close()
            signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
            replace_process(plan, lock.descriptor)
        return code
    except (LimetaskError, OSError) as error:
        if plan.logging.destination != "stderr":  # there it is printed
            log.error("limetaskd ends: %s", error, extra={"action": "failed"})
        raise
    finally:
        logs.close()
        pidfile.unlink(missing_ok=True)
        lock.release()


def in_the_folders_left(plan: Plan, loaded: LoadedConfig) -> Plan:
    """The plan in the folders where our processes run on after a crash, if the file names others by now."""
    folders = folders_left(paths_of(plan))
    if folders is None:
        return plan
    if folders["config_file"] != str(plan.config_file):
        raise AlreadyRunningError(
            f"processes of another limetaskd ({folders['config_file']}) run in {folders['runtime_dir']} and "
            f"{folders['state_dir']}: give this one a limetaskd.runtime_dir and a limetaskd.state_dir of its own"
        )
    known = values_of(plan)
    plan = make_plan(loaded, plan.embedded, {**folders, "host": known["host"], "detached": plan.detached})
    privileges.prepare_folders(plan)
    return plan


def detach_process() -> Callable[[], None]:
    """Go on in a process without a terminal. Returns what to call once it is up: then who started it goes on, too.

    So he finds the pid file; else he has read the reason, and the exit code says that there is none.
    """
    from daemon import DaemonContext  # only here: who does not detach need not pay for it

    ended, waiting = os.pipe()
    if os.fork() != 0:
        os.close(waiting)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)  # nobody has to wait for what hangs
        os._exit(EXIT_OK if os.read(ended, 1) else EXIT_FAILED)
    os.close(ended)
    # It closes all other descriptors. The folder stays: task modules are found there, detached or not.
    DaemonContext(
        working_directory=str(Path.cwd()), umask=0o027, files_preserve=[waiting], stderr=sys.stderr
    ).open()

    def up() -> None:
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)
        with contextlib.suppress(BrokenPipeError):  # who started it has been interrupted: it is up all the same
            os.write(waiting, b"\n")
        os.close(waiting)

    return up


def _allow_descriptors() -> None:
    """A few for each process: more than the usual 1024 of hundreds of workers. What we start gets as many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _keep_stdio_taken() -> None:
    """Descriptors 0 to 2 that we were started without must not become somebody's log, lock or socket."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _log_to(logs: LogPump, plan: Plan) -> None:
    logs.start()
    handler = PumpHandler(logs)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(plan.logging.level)
    for noisy in ("asyncio",):
        logging.getLogger(noisy).setLevel(max(logging.INFO, logging.getLevelName(plan.logging.level)))


async def serve(
    plan: Plan, logs: LogPump, *, replaced: bool = False, up: Callable[[], None] | None = None
) -> int:
    """The daemon's life: start, serve, stop. `replaced`: after an upgrade, by the code that is installed now.

    `up` is called when the start has succeeded.
    """
    log.info(
        "limetaskd %s starts (pid %d), configuration %s", __version__, os.getpid(), plan.settings.config_path,
        extra={"action": "starts"},
    )  # fmt: skip
    for warning in plan.warnings:
        log.warning("%s", warning)
    daemon = Daemon(plan, logs)
    daemon.upgraded = replaced
    handle_signals(daemon)
    control = ControlServer(daemon, plan.control)
    notifier = Notifier(os.environ)
    served = replace = False
    try:
        control.start()
        guard = Guard(daemon)
        await daemon.start()
        guard.start()
        ServiceReporter(daemon, notifier).start()
        daemon.background(reload_on_request(daemon))
        daemon.background(upgrade_on_request(daemon))
        served = True
        if up is not None:
            up()
        await daemon.stop_requested.wait()
        replace = daemon.replacing  # decided once: a stop that has begun is never turned into a replacement
        if not replace:
            log.info("stopping", extra={"action": "stopping"})
            notifier.send("STOPPING=1")
    finally:
        # Also after a start that failed half-way: what was started is stopped, what was taken over runs on.
        if not replace:
            await daemon.stop(complete=served)
        await control.close()
        await daemon.close()
    # For newer code they wait; and a loop that closes has no use for one more.
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
    if replace:
        return EXIT_REPLACE
    log.info("stopped", extra={"action": "stopped"})
    return EXIT_OK


def handle_signals(daemon: Daemon) -> None:
    """Handlers only record and wake; the work happens in the loop."""
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        daemon.audit.record("shutdown", {"signal": number.name}, "done", by=Operator("signal"))
        if daemon.stop_requested.is_set() and not daemon.replacing:
            log.warning("a second signal: stopping at once", extra={"action": "stop_now"})
            number = signal.SIGQUIT
        daemon.request_stop(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, daemon.reload_requested.set)
    loop.add_signal_handler(signal.SIGUSR1, daemon.logs.reopen)
    loop.add_signal_handler(signal.SIGUSR2, daemon.upgrade_requested.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)


if __name__ == "__main__":
    sys.exit(main())
