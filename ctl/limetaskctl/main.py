"""`limetaskctl [--socket ENDPOINT] [--json] [--timeout S] COMMAND`: arguments, dispatch, exit codes.

0 done; 1 refused or failed, with the reason; 2 usage; 3 the daemon cannot be reached. 130 after Ctrl-C, 141 when
the reader of a pipe has gone.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

from limetaskctl import commands, endpoint, parser
from limetaskctl.errors import CLOSED_PIPE, DONE, FAILED, INTERRUPTED, CtlError
from limetaskctl.render import View, clean
from limetaskctl.session import Session

_COMPLETE = "__complete"
# These print a stream, not one document: an error among its lines would be taken for a record.
_STREAMS = {"logs", "events"}


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    words = sys.argv[1:] if argv is None else argv
    try:
        return _complete(words[1:]) if words[:1] == [_COMPLETE] else _run(words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return CLOSED_PIPE
    except OSError as error:
        _silence_stdout()
        _complain(f"cannot write the output: {error.strerror or error}")
        return FAILED


def _run(words: list[str]) -> int:
    try:
        args = parser.parse(words)
    except CtlError as error:
        _complain(str(error))
        return error.exit_code
    session = Session(
        lambda: _endpoint(args.socket),
        timeout_s=args.timeout,
        as_json=args.json,
        view=_view(),
        out=_stdout(args.json),
    )
    try:
        commands.run(args.command, session, args)
    except CtlError as error:
        if args.json and args.command not in _STREAMS:
            session.document({**error.document, "error": {"code": error.code, "message": str(error)}})
        _complain(str(error))
        return error.exit_code
    finally:
        session.close()
    return DONE


def _complete(words: list[str]) -> int:
    """Candidates for the last of `words`, `word TAB description` a line (see completion.py)."""
    from limetaskctl import completion

    def ask(method: str, given: str | None) -> dict[str, Any]:
        session = Session(lambda: _endpoint(given), completion.ASK_S, True, View(), sys.stdout)
        try:
            return session.call(method, {})
        finally:
            session.close()

    for word, about in completion.candidates(words, parser.global_options(), ask):
        sys.stdout.write(f"{clean(word)}\t{clean(about)}\n")
    sys.stdout.flush()
    return DONE


def _endpoint(given: str | None) -> str:
    return endpoint.parse(given) if given is not None else endpoint.default(os.environ, os.getuid())


def _view() -> View:
    """What stdout can show: colours and a width on a terminal only."""
    if sys.stdout is None or not sys.stdout.isatty():
        return View()
    colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    try:
        width: int | None = os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        width = None
    return View(colour, width)


def _stdout(as_json: bool) -> TextIO:
    """stdout, set so that no character is an error. JSON is UTF-8 whatever the locale says."""
    if sys.stdout is None:  # started with stdout closed
        return io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8" if as_json else None, errors="backslashreplace")
    return sys.stdout


def _silence_stdout() -> None:
    """Python flushes stdout once more when it ends, and would complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _complain(message: str) -> None:
    """The message on stderr, each of its lines with our name in front."""
    if sys.stderr is not None:
        for line in message.splitlines() or [""]:
            sys.stderr.write(f"{parser.PROG}: {clean(line)}\n")
