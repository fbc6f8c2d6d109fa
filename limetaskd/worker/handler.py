"""`lime-task-handler` in the application's interpreter: Celery's own worker command, on our app and our worker.

Every option is Celery's, parsed by Celery; queue names are the configured ones. What the operator does not say comes
from the configuration: all configured queues, the log level, a node name of its own (several handlers may run on one
host), the scheduler.
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import celery.bin.worker
import click
from celery import Celery
from celery.bin.base import CeleryOption, CLIContext
from celery.platforms import detached, signals
from celery.signals import beat_embedded_init
from celery.utils.log import mlevel
from celery.utils.nodenames import gethostname, node_format
from click.core import ParameterSource

from limetaskd.core.routing import find_queue
from limetaskd.core.settings import Settings
from limetaskd.errors import LimetaskError
from limetaskd.version import __version__
from limetaskd.worker import application, logs
from limetaskd.worker.consumer import EX_CONFIG
from limetaskd.worker.process import Worker
from limetaskd.worker.runtime import Runtime

logger = logging.getLogger(__name__)

NAME = "lime-task-handler"
# Set for the process that -D has put into the background, which gets the same arguments again.
DETACHED_VARIABLE = "LIMETASKD_DETACHED"
SCHEDULER = "limetaskd.beat.scheduler:Scheduler"


def main(settings_path: str | None, arguments: list[str]) -> int:
    """Run the command line. `settings_path` None: only `--help` works."""
    settings: Settings | None = None
    app: Any = None
    if settings_path is None:
        app = Celery("limetask")
    else:
        settings = Settings.from_json(Path(settings_path).read_text())
        _log_to(settings, settings.log_level, None)
        try:
            app = application.build(settings)
            if _wants_beat(arguments) and settings.scheduled_tasks:
                _check_schedule(app)
        except LimetaskError as error:
            sys.stderr.write(f"{NAME}: {error}\n")
            return EX_CONFIG
    command = _command(settings, arguments)
    # Standalone: click prints usage errors and exits by itself.
    command.main(args=arguments, prog_name=NAME, obj=CLIContext(app, no_color=False, workdir=None, quiet=False))
    raise AssertionError("click exits")


def _wants_beat(arguments: list[str]) -> bool:
    return any(argument in ("-B", "--beat") for argument in arguments)


def _check_schedule(app: Any) -> None:
    """The embedded scheduler is another process: what is wrong with the schedule is said before it starts."""
    from limetaskd.beat.scheduler import modules_of
    from limetaskd.tasks.schedule import collect

    collect(app, modules_of(app))


def _log_to(settings: Settings, level: str | int, path: str | None) -> None:
    logs.set_up(
        NAME,
        level=level,
        path=path,
        text=settings.log_format == "text",
        max_message_bytes=settings.log_message_max_bytes,
    )


def _command(settings: Settings | None, arguments: list[str]) -> click.Command:
    """Celery's worker command with a few options more."""
    command: click.Command = copy.copy(celery.bin.worker.worker)
    command.params = [
        *command.params,
        CeleryOption(
            ["--config"], metavar="FILE", help_group="Lime Task Options", expose_value=False,
            help="Configuration file; default: $LIMETASK_CONFIG, else /etc/limetaskd/limetaskd.yaml.",
        ),
        CeleryOption(
            ["-q", "--quiet"], is_flag=True, help_group="Lime Task Options", expose_value=False, help="No banner.",
            callback=lambda context, _option, value: setattr(context.obj, "quiet", value),
        ),
        CeleryOption(
            ["-C", "--no-color"], is_flag=True, help_group="Lime Task Options", expose_value=False,
            help="No colours in the banner.",
            callback=lambda context, _option, value: setattr(context.obj, "no_color", value),
        ),
        click.Option(
            ["--version"], is_flag=True, expose_value=False, is_eager=True, help="Show the version and exit.",
            callback=_show_version,
        ),
    ]  # fmt: skip
    command.help = (
        "Start a Celery worker on the queues of the configuration.\n\n"
        "Without --queues it consumes all configured queues. --queues and --exclude-queues take configured names."
    )
    if settings is not None:
        command.callback = functools.partial(_run, settings, arguments, celery.bin.worker.worker.callback)
    return command


def _show_version(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"{NAME} {__version__}")
        context.exit()


def _run(settings: Settings, arguments: list[str], start: Callable[..., Any], **options: Any) -> Any:
    """Fill in what the operator did not say, then let Celery's command go on."""
    context = click.get_current_context()
    app = context.obj.app

    def given(name: str) -> bool:
        return context.get_parameter_source(name) not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP, None)

    options["queues"] = _actual_names(settings, options["queues"], "--queues")
    options["exclude_queues"] = _actual_names(settings, options["exclude_queues"], "--exclude-queues")
    if not given("hostname"):
        options["hostname"] = f"{NAME}-{os.getpid()}@{gethostname()}"
    if not given("loglevel"):
        options["loglevel"] = mlevel(settings.log_level)
    if options.get("beat") and not settings.scheduled_tasks:
        options["beat"] = False
        logger.warning("enable_scheduled_tasks is false: --beat runs no schedule")
    if options.get("beat"):
        options["scheduler"] = options.get("scheduler") or SCHEDULER
        if not given("schedule_filename"):
            options["schedule_filename"] = _state_path(settings)
        beat_embedded_init.connect(_in_beat, weak=False)
    if os.environ.pop(DETACHED_VARIABLE, None):
        options.update(detach=False, uid=None, gid=None)
    elif options.get("detach"):
        celery.bin.worker.detach = functools.partial(_detach, settings, arguments)
        return start(**options)
    logfile = node_format(options.get("logfile"), options["hostname"])
    _log_to(settings, options["loglevel"], None if not logfile else str(Path(logfile).absolute()))
    logs.loudly_warn_root(logger)
    context.obj.quiet = context.obj.quiet or not sys.stdout.isatty()
    turn = _take_turn(options.get("schedule_filename")) if options.get("beat") else None
    runtime = Runtime(settings, NAME)
    app.Worker = functools.partial(Worker, app=app, lime=runtime)
    try:
        return start(**options)
    finally:
        if turn is not None:
            turn.close()


def _take_turn(path: str | None) -> TextIO | None:
    """The lock of the schedule. Raises click.UsageError when another process, the daemon's perhaps, runs it already."""
    from limetaskd.beat.scheduler import lock_schedule  # no other worker needs it

    if path is None:
        return None
    try:
        return lock_schedule(path)
    except BlockingIOError as error:
        raise click.UsageError(f"--beat: another schedule with the state {path} runs already") from error
    except OSError as error:
        logger.warning("nothing keeps another schedule from running beside this one: %s", error)
        return None


def _actual_names(settings: Settings, names: list[str] | None, option: str) -> list[str] | None:
    """Configured (or this cluster's actual) names -> actual ones. Raises click.UsageError."""
    if not names:
        return None
    found = {name: find_queue(settings, name.strip()) for name in names}
    unknown = [name for name, queue in found.items() if queue is None]
    if unknown:
        configured = ", ".join(queue.name for queue in settings.queues)
        raise click.UsageError(f"{option}: no queue {', '.join(map(repr, unknown))} is configured; known: {configured}")
    return [queue.actual for queue in found.values() if queue is not None]


def _state_path(settings: Settings) -> str | None:
    """Where the schedule of a handler started by hand keeps its state; None: it cannot be kept."""
    if settings.state_dir is None:
        return None
    folder = Path(settings.state_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.warning("the state of the schedule is not kept: %s", error)
        return None
    return str(folder / "beat.json")


def _in_beat(**_kwargs: Any) -> None:
    """In the embedded schedule's process: it must not outlive its worker, nor inherit its manners."""
    from celery.platforms import set_pdeathsig

    set_pdeathsig("SIGKILL")
    if os.getppid() == 1:
        os._exit(0)
    signals.reset("SIGTERM", "SIGHUP", "SIGQUIT", "SIGALRM")
    signals.ignore("SIGINT")


def _detach(settings: Settings, arguments: list[str], path: str, _argv: list[str], **options: Any) -> int:
    """Celery's `detach`, which would start `python -m celery`: go into the background and begin anew there."""
    executable = options.get("executable") or path
    hostname = options["hostname"]
    with detached(
        node_format(options["logfile"], hostname), node_format(options["pidfile"], hostname),
        options["uid"], options["gid"], options["umask"], options["workdir"],
        after_forkers=False,
    ):  # fmt: skip
        # Everything open was closed: the settings travel in a new file that nobody else sees.
        descriptor = os.memfd_create("limetaskd-settings", 0)
        os.write(descriptor, settings.to_json().encode())
        os.environ[DETACHED_VARIABLE] = "1"
        boot = str(Path(__file__).parents[1] / "boot.py")
        os.execv(
            executable,
            [executable, boot, "handler", "--settings", f"/proc/self/fd/{descriptor}", "--", *arguments],
        )
    raise AssertionError("execv does not return")
