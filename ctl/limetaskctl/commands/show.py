"""`show NAME`: post-mortems and history of a worker or pool."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from limetaskctl.render import View, clean, log_line

WAITS = False


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a worker (asap:0) or a pool (asap)")


def params(args: Namespace) -> dict[str, Any]:
    return {"name": args.name}


def render(result: dict[str, Any], _view: View) -> str:
    """`{"processes": [{name, state, pid, restarts, reason, history, post_mortems}]}` in paragraphs."""
    return "\n\n".join("\n".join(_process(process)) for process in result["processes"])


def _process(process: dict[str, Any]) -> list[str]:
    head = f"{process['name']}  {process['state'] or 'gone'}  pid {process['pid'] or '-'}"
    lines = [clean(f"{head}  restarts {process['restarts'] if process['restarts'] is not None else '-'}")]
    for event in process["history"]:
        rest = " ".join(
            f"{key}={value}"
            for key, value in event.items()
            if key not in {"v", "n", "@timestamp", "event", "process"} and value is not None
        )
        lines.append(clean(f"  {event['@timestamp']} {event['event']} {rest}".rstrip()))
    for item in process["post_mortems"]:
        lines += ["", *_post_mortem(item)]
    if not process["post_mortems"]:
        lines.append("  no post-mortem")
    return lines


def _post_mortem(item: dict[str, Any]) -> list[str]:
    lines = [clean(f"post-mortem {item['at']} {item['kind']} pid {item['pid']}: {item['reason']}")]
    if item["exit"]:
        lines.append(clean(f"  exit: {item['exit']}"))
    lines += [clean(f"  task: {task.get('name')} {task.get('id')} ({task.get('queue')})") for task in item["tasks"]]
    for title in ("figures", "proc_status"):
        if item[title]:
            lines.append(clean(f"  {title}: " + " ".join(f"{key}={value}" for key, value in item[title].items())))
    if item["stacks"]:
        lines += ["  stacks:", *(f"    {clean(line)}" for line in item["stacks"].splitlines())]
    lines += ["  last lines:", *(f"    {log_line(line)}" for line in item["last_lines"])]
    return lines
