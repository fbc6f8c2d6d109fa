"""A web application in miniature: a process of its own that imports no task module and sends by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Self

from tests.support.daemon import Daemon

_PROGRAM = """
import json, sys
from celery.result import AsyncResult
from limetaskd import create_app, send_task

app = create_app(sys.argv[1])
for line in sys.stdin:
    request = json.loads(line)
    try:
        if request["do"] == "send":
            answer = [send_task(name, args, **options).id for name, args, options in request["tasks"]]
        else:
            answer = [AsyncResult(i, app=app).get(timeout=request["timeout"], propagate=False) for i in request["ids"]]
            answer = [value if not isinstance(value, BaseException) else f"{type(value).__name__}: {value}"
                      for value in answer]
        print(json.dumps({"ok": answer}), flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
"""


class SenderError(Exception):
    """The sender's process answered with an exception."""


class Sender:
    """Sends to the daemon's configuration and reads results; use it as a context manager."""

    def __init__(self, daemon: Daemon, env: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(daemon.config_path)],
            env={**daemon.environment, **(env or {})},
            cwd="/tmp",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(daemon.folder / "sender.log").open("ab"),
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, request: Mapping[str, Any]) -> list[Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SenderError("the sender's process ended")
        answer = json.loads(line)
        if "error" in answer:
            raise SenderError(answer["error"])
        return list(answer["ok"])

    def send(self, task: str, *args: Any, **options: Any) -> str:
        """Send one task; its id."""
        return str(self._ask({"do": "send", "tasks": [[task, args, options]]})[0])

    def send_many(self, task: str, arguments: Sequence[Sequence[Any]], **options: Any) -> list[str]:
        """Send one task for each list of arguments; the ids."""
        return self._ask({"do": "send", "tasks": [[task, list(args), options] for args in arguments]})

    def results(self, ids: Sequence[str], timeout: float = 60) -> list[Any]:
        """What each task returned (or `Type: message` of what it raised)."""
        return self._ask({"do": "results", "ids": list(ids), "timeout": timeout})

    def result(self, task_id: str, timeout: float = 60) -> Any:
        return self.results([task_id], timeout)[0]
