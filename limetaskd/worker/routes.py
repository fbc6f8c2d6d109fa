"""`limefu tasks routes` in the application's interpreter, where the tasks are: the configured routing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limetaskd.core.routing import decide
from limetaskd.core.settings import Settings
from limetaskd.version import __version__
from limetaskd.worker import application
from limetaskd.worker.application import ImportFailedError

EXIT_FAILED, EXIT_USAGE = 1, 2
_BUILT_IN = "celery."


def parser() -> argparse.ArgumentParser:
    """The command line of limefu."""
    top = argparse.ArgumentParser(prog="limefu", description="Looks into Lime Task.")
    top.add_argument("--version", action="version", version=f"limefu {__version__}")
    top.add_argument("--config", metavar="FILE", help="configuration file")
    groups = top.add_subparsers(dest="group", required=True, metavar="tasks")
    tasks = groups.add_parser("tasks", help="tasks and their routing")
    commands = tasks.add_subparsers(dest="command", required=True, metavar="routes")
    routes = commands.add_parser("routes", help="QoS categories, task names and registered tasks with their queues")
    routes.add_argument("--json", action="store_true", help="one JSON document")
    return top


def main(settings_path: str | None, arguments: list[str]) -> int:
    """Exit code 0; 1 when a task module cannot be imported; 2 for bad usage."""
    options = parser().parse_args(arguments)
    if settings_path is None:
        sys.stderr.write("limefu: no configuration was read\n")
        return EXIT_USAGE
    settings = Settings.from_json(Path(settings_path).read_text())
    try:
        app = application.build(settings)
    except ImportFailedError as error:
        sys.stderr.write(f"limefu: {error}\n")
        return EXIT_FAILED
    document = routes_of(settings, app)
    sys.stdout.write(json.dumps(document, indent=1) + "\n" if options.json else as_text(document))
    return 0


def routes_of(settings: Settings, app: Any) -> dict[str, Any]:
    """{"default", "qos", "tasks", "registered"}: what the configuration says, before any header of a sender."""

    def destination(name: str) -> dict[str, str]:
        return {"queue": name, "actual": settings.queue(name).actual}

    registered = []
    for name in sorted(app.tasks):
        if name.startswith(_BUILT_IN):
            continue
        qos = getattr(app.tasks[name], "qos", None)
        decision = decide(settings, name, task_qos=qos)
        registered.append(
            {
                "task": name,
                "type": decision.type,
                "queue": decision.queue.name,
                "actual": decision.queue.actual,
                "qos": qos,
            }
        )
    return {
        "default": destination(settings.routing.default),
        "qos": [{"category": key, **destination(name)} for key, name in settings.routing.qos.items()],
        "tasks": [{"task": key, **destination(name)} for key, name in settings.routing.tasks.items()],
        "registered": registered,
    }


def as_text(document: dict[str, Any]) -> str:
    """Tables for people."""
    qos = [(row["category"], row["queue"], row["actual"]) for row in document["qos"]]
    tasks = [(row["task"], row["queue"], row["actual"]) for row in document["tasks"]]
    registered = [
        (row["task"], row["type"], row["queue"], row["actual"], row["qos"] or "-") for row in document["registered"]
    ]
    return "\n".join(
        [
            f"Default queue: {_both(document['default'])}",
            "",
            "QoS Category Routes",
            *_table(("CATEGORY", "QUEUE", "ACTUAL"), qos),
            "",
            "Specific Task Name Routes",
            *_table(("TASK", "QUEUE", "ACTUAL"), tasks),
            "",
            "Registered Tasks",
            *_table(("TASK", "TYPE", "QUEUE", "ACTUAL", "QOS"), registered),
            "",
        ]
    )


def _both(row: dict[str, str]) -> str:
    return row["queue"] if row["queue"] == row["actual"] else f"{row['queue']} ({row['actual']})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["  (none)"]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]]  # fmt: skip
