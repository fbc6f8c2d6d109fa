"""The one entry into the application's interpreter, run as a script: `PYTHON /path/limetaskd/boot.py KIND ...`.

    boot.py worker|beat|agent|image NAME                     under the daemon; the spec is in $LIMETASKD_SPEC
    boot.py handler [--settings PATH] -- ARGS           lime-task-handler
    boot.py limefu  [--settings PATH] -- ARGS           limefu
    boot.py rehearse KIND...                            before an upgrade; the settings are on standard input

The interpreter may have nothing of ours installed, another pydantic and its own Celery: whatever it has goes before
what is bundled with limetaskd. Like `celery -A`, the current directory comes first on `sys.path`. Standard library
only, up to the dispatch.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
import sys
from pathlib import Path

PYTHON_MINIMUM = (3, 11)
CELERY_MINIMUM = (5, 7)
EXIT_USAGE = 2
EXIT_CONFIG = 78  # EX_CONFIG: trying again will not help; the daemon says FATAL at once


def arrange_path() -> None:
    """Put the current directory first and limetaskd last, unless it is importable anyway.

    The folder of this script would make `core`, `tasks` or `config` of limetaskd hide modules of the application.
    """
    own = Path(__file__).resolve().parent
    if sys.path and sys.path[0] and Path(sys.path[0]).resolve() == own:
        del sys.path[0]
    here = str(Path.cwd())
    if here not in sys.path[:1]:
        sys.path.insert(0, here)
    # `python -m celery` children and `spawn`ed pool processes of the application find their modules the same way.
    if importlib.util.find_spec("limetaskd") is None:
        sys.path.append(str(own.parent))
        importlib.invalidate_caches()


def refuse(message: str) -> None:
    """One line for the operator, exit code 2."""
    sys.stderr.write(f"{message}\n")
    sys.exit(EXIT_USAGE)


def interpreter_problem() -> str | None:
    """One clear line when this interpreter cannot run limetaskd's workers."""
    if sys.version_info < PYTHON_MINIMUM:
        found = ".".join(map(str, sys.version_info[:3]))
        return f"limetaskd needs Python >= 3.11 (found {found} at {sys.executable})"
    try:
        import celery
    except ImportError as error:
        return f"limetaskd needs celery >= 5.7 in this interpreter ({sys.executable}: {error})"
    # The version's own string, not the metadata: a stale .dist-info must not let an old Celery pass.
    version = str(celery.__version__)
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < CELERY_MINIMUM:
        where = Path(str(celery.__file__)).parent
        return f"limetaskd needs celery >= 5.7 in this interpreter (found {version} at {where})"
    return None


def tell_daemon(channel: str, state: object) -> None:
    """The one report of a process that cannot run: nothing of the worker can be imported to send it."""
    from limetaskd.core.channel import encode

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        try:
            sock.connect(channel)
            sock.send(encode(state))  # type: ignore[arg-type]
        except OSError as error:
            sys.stderr.write(f"limetaskd: the daemon could not be told: {error}\n")


def run_supervised(kind: str) -> int:
    """A process of the daemon: the exit code."""
    from limetaskd.core.record import NumberTakenError, write_own_record
    from limetaskd.core.spec import SPEC_VARIABLE, ProcessSpec

    try:
        spec = ProcessSpec.from_json(os.environ[SPEC_VARIABLE])
    except (KeyError, ValueError, TypeError) as error:
        refuse(f"limetaskd: {SPEC_VARIABLE} holds no usable process spec ({error}): {kind} is started by the daemon")
        raise AssertionError("unreachable") from error
    try:
        write_own_record(spec)
    except NumberTakenError as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_TEMPFAIL
    problem = interpreter_problem()
    if problem is not None:
        from limetaskd.core.channel import Phase, State

        sys.stderr.write(f"{problem}\n")
        tell_daemon(spec.channel, State(spec.name, spec.generation, os.getpid(), Phase.FAILED, reason=problem))
        return EXIT_CONFIG
    module = "limetaskd.worker.image" if kind == "image" else f"limetaskd.{kind}.main"
    return int(importlib.import_module(module).main(spec) or 0)


def run_command(kind: str, arguments: list[str]) -> int:
    """A command that a person started: the exit code."""
    settings_path = None
    if arguments[:1] == ["--settings"] and len(arguments) >= 2:
        settings_path, arguments = arguments[1], arguments[2:]
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    problem = interpreter_problem()
    if problem is not None:
        refuse(problem)
    module = {"handler": "limetaskd.worker.handler", "limefu": "limetaskd.worker.routes"}[kind]
    return int(importlib.import_module(module).main(settings_path, arguments) or 0)


def rehearse(kinds: list[str]) -> int:
    """Whether this interpreter could run processes of `kinds`, as an exit code; why not is the last line printed."""
    problem = interpreter_problem()
    if problem is None:
        try:
            return int(importlib.import_module("limetaskd.worker.rehearse").main(kinds, sys.stdin.read()))
        except ImportError as error:
            problem = f"limetaskd.worker.rehearse cannot be imported: {error}"
    sys.stderr.write(f"limetaskd: {problem}\n")
    return EXIT_CONFIG


def main(argv: list[str]) -> int:
    kind = argv[1] if len(argv) > 1 else ""
    arrange_path()
    if kind in ("worker", "beat", "agent", "image"):
        return run_supervised(kind)
    if kind in ("handler", "limefu"):
        return run_command(kind, argv[2:])
    if kind == "rehearse":
        return rehearse(argv[2:])
    refuse(f"usage: {argv[0]} worker|beat|agent|image NAME | handler|limefu [--settings PATH] -- ARGS | rehearse KIND")
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv))
