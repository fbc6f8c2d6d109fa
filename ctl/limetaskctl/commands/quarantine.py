"""`quarantine list | show ID | replay ID... | drop ID...`: tasks that killed their workers."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from typing import Any

from limetaskctl.errors import CtlError, UsageError
from limetaskctl.render import clean, table
from limetaskctl.session import Session


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "show", "replay", "drop"))
    parser.add_argument("tasks", nargs="*", metavar="TASK_ID", help="for show, replay and drop")
    parser.add_argument("--all", action="store_true", help="replay or drop every task")
    parser.add_argument("--queue", metavar="QUEUE", help="only those of this queue")
    parser.add_argument("--yes", action="store_true", help="drop: do not ask")


def run(session: Session, args: Namespace) -> None:
    params: dict[str, Any] = {"action": args.action}
    if args.action != "list":
        if bool(args.tasks) == args.all:
            raise UsageError(f"quarantine {args.action} needs task ids, or --all")
        params |= {"tasks": args.tasks, "all": args.all}
    if args.queue is not None:
        params["queue"] = args.queue
    if args.action == "drop" and not args.yes:
        _ask()
    result = session.call("quarantine", params, waits=True)
    if session.as_json:
        session.document(result)
    elif args.action == "list":
        session.line(_list(session, result))
    elif args.action == "show":
        session.line("\n\n".join(_show(task) for task in result["tasks"]))
    else:
        word = "sent again" if args.action == "replay" else "dropped"
        session.line("\n".join(f"{clean(task['id'])} {clean(task['name'])}: {word}" for task in result["tasks"]))


def _list(session: Session, result: dict[str, Any]) -> str:
    if not result["tasks"]:
        return "no task is in quarantine"
    head = ["ID", "NAME", "QUEUE", "DEATHS", "SINCE", "REASON"]
    rows = [
        [task["id"], task["name"], task["queue"], task["deaths"], task["since"], task["reason"]]
        for task in result["tasks"]
    ]
    text = table(head, rows, session.view)
    more = result["count"] - len(rows)
    return f"{text}\nand {more} more" if more > 0 else text


def _show(task: dict[str, Any]) -> str:
    lines = [f"{key}: {clean(str(task[key]))}" for key in ("id", "name", "queue", "args", "kwargs", "body")]
    lines.append("deaths:")
    lines += [
        f"  {clean(str(death.get('at')))} {clean(str(death.get('worker')))} on {clean(str(death.get('host')))}:"
        f" {clean(str(death.get('by')))}"
        for death in task["history"]
    ]
    return "\n".join(lines)


def _ask() -> None:
    """Raises CtlError unless a person at a terminal says yes."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CtlError("drop loses tasks and can only ask at a terminal: say --yes")
    sys.stderr.write("Drop these tasks? They are lost. [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise CtlError("nothing dropped")
