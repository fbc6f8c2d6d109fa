"""`status [POOL]`: the daemon, its pools and workers, what runs, and how much waits."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from limetaskctl.render import View, clean, duration, percent, size, state, table, total, yes_no

WAITS = False


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("pool", nargs="?", metavar="POOL", help="only this pool")


def params(args: Namespace) -> dict[str, Any]:
    return {} if args.pool is None else {"pool": args.pool}


def render(result: dict[str, Any], view: View) -> str:
    """The document of `status --json` (docs/control-protocol.md) in four parts."""
    pools = result["pools"]
    others = [*filter(None, [result["daemon"].get("beat")]), *result["daemon"].get("helpers", [])]
    parts = [_daemon(result["daemon"], view), _processes(pools, others, view)]
    if reasons := _reasons([*(worker for pool in pools for worker in pool["workers"]), *others]):
        parts.append(reasons)
    if pauses := [_pause(pause) for pool in pools for pause in pool.get("pauses") or []]:
        parts.append("\n".join(pauses))
    parts.append(_tasks(pools, view))
    if result["queues"]:
        rows = [[queue["name"], queue["depth"], queue["consumers"]] for queue in result["queues"]]
        parts.append(table(["QUEUE", "DEPTH", "CONSUMERS"], rows, view))
    return "\n\n".join(parts)


def _pause(pause: dict[str, Any]) -> str:
    by = pause.get("by") or {}
    words = [f"{clean(pause['queue'])}: paused since {clean(pause['since'])}"]
    if pause["until"] is not None:
        words.append(f"until {clean(pause['until'])}")
    if by.get("user") is not None or by.get("uid") is not None:
        words.append(f"by {clean(by['user'] if by.get('user') is not None else by['uid'])}")
    text = " ".join(words)
    return text if pause["reason"] is None else f"{text}: {clean(pause['reason'])}"


def _daemon(daemon: dict[str, Any], view: View) -> str:
    facts = [
        f"limetaskd {clean(daemon['version'])} {state(clean(daemon['state']).upper(), view)}",
        f"pid {clean(daemon['pid'])}",
        f"up {duration(daemon['uptime_s'])}",
        f"generation {clean(daemon['generation'])}",
        f"strategy {clean(daemon['strategy'])}",
        f"application {clean(daemon['application'])}",
        f"host {clean(daemon['host'])}",
    ]
    lines = ["  ".join(facts), f"config: {clean(daemon['config'])}", f"beat:   {_owner(daemon['beat_owner'])}"]
    if daemon.get("status"):
        lines.append(f"status: {clean(daemon['status'])}")
    for what in ("reload", "upgrade"):
        error = str(daemon.get(f"last_{what}_error") or "")
        lines += [f"the last {what} failed: {clean(line)}" for line in error.splitlines()]
    lines += [f"warning: {clean(text)}" for text in daemon.get("warnings") or []]
    return "\n".join(lines)


def _owner(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return "no owner"
    return f"{clean(owner['pool'])} on {'this host' if owner['here'] else clean(owner['host'])}"


def _processes(pools: list[dict[str, Any]], others: list[dict[str, Any]], view: View) -> str:
    """One row for each pool, with its sums, and below it one for each worker; then the other processes."""
    head = ["NAME", "STATE", "READY", "PID", "UPTIME", "RESTARTS", "SLOTS", "ACTIVE", "MEMORY", "CPU", "QUEUES"]
    rows: list[list[Any]] = []
    for pool in pools:
        workers = pool["workers"]
        ready = [worker["ready"] for worker in workers]
        rows.append([
            pool["name"],
            f"{pool['state']} paused" if pool["paused"] else pool["state"],
            f"{sum(1 for value in ready if value)}/{len(ready)}",
            None,
            None,
            _whole(total([worker["restarts"] for worker in workers])),
            pool["concurrency"],
            _whole(total([worker["active"] for worker in workers])),
            size(total([worker["memory_bytes"] for worker in workers])),
            percent(total([worker["cpu_percent"] for worker in workers])),
            " ".join(pool["queues"]),
        ])  # fmt: skip
        for worker in workers:
            rows.append(_worker(worker))
            # Those that a rolling restart has replaced, while they finish what they run.
            for pid in worker.get("draining") or []:
                rows.append([f"  {worker['name']}", "draining", "no", pid, *[None] * 6, ""])
    for other in others:
        rows.append([other["name"], other["state"], None, other["pid"], None, other["restarts"], *[None] * 4, ""])
    return table(head, rows, view, states=[1])


def _worker(worker: dict[str, Any]) -> list[Any]:
    return [
        f"  {worker['name']}",
        worker["state"],
        yes_no(worker["ready"]),
        worker["pid"],
        duration(worker["uptime_s"]),
        worker["restarts"],
        worker["concurrency"],
        worker["active"],
        size(worker["memory_bytes"]),
        percent(worker["cpu_percent"]),
        "",
    ]


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _reasons(processes: list[dict[str, Any]]) -> str:
    """Why processes are not as they should be, where they say so."""
    return "\n".join(f"{clean(one['name'])}: {clean(one['reason'])}" for one in processes if one.get("reason"))


def _tasks(pools: list[dict[str, Any]], view: View) -> str:
    running = [
        (task, worker["name"], child["pid"])
        for pool in pools
        for worker in pool["workers"]
        for child in worker["children"]
        if (task := child["task"]) is not None
    ]
    if not running:
        return "no task is running"
    rows = [[task["id"], task["name"], name, pid, duration(task["running_s"])] for task, name, pid in running]
    text = table(["TASK", "NAME", "WORKER", "PID", "RUNNING"], rows, view)
    if waiting := sum(1 for task, _, _ in running if task.get("waits")):
        text += f"\n{waiting} of these wait for the result store, which is away: see the workers' logs"
    return text
