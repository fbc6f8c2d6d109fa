"""What only a new daemon can take: over reloads and upgrades it stays as the daemon has begun with it (pure).

Its folders and sockets are where its processes and `limetaskctl` find it, and its user is who it has become.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limetaskd.config.host import Host
from limetaskd.config.load import LoadedConfig
from limetaskd.plan.build import build
from limetaskd.plan.diff import Change, held_back
from limetaskd.plan.model import Plan

HELD_VARIABLE = "LIMETASKD_HELD"  # set for the code that replaces us, and for its rehearsal


def values_of(plan: Plan) -> dict[str, Any]:
    """What a running daemon holds, as plain data, and the facts of the host that it came from."""
    return {
        "runtime_dir": plan.runtime_dir,
        "state_dir": plan.state_dir,
        "user": plan.user,
        "supervisor_socket": plan.supervisor_socket,
        "control": dataclasses.asdict(plan.control),
        "detached": plan.detached,
        "host": dataclasses.asdict(plan.host) if plan.host is not None else {},
    }


def build_held(
    loaded: LoadedConfig, environ: Mapping[str, str], held: Mapping[str, Any], *, embedded: bool
) -> tuple[Plan, tuple[Change, ...]]:
    """The plan of a configuration for a daemon that holds these values, and what of it waits for a start without them.

    `held`: from `values_of`, maybe of another version, or some of it. Raises ConfigError with every problem.
    """
    known = {field.name for field in dataclasses.fields(Host)}
    facts = {key: value for key, value in held.get("host", {}).items() if key in known}
    host = dataclasses.replace(Host.read(), **facts)
    wanted = build(loaded, environ, embedded=embedded, host=host)
    values = {key: held[key] for key in ("runtime_dir", "state_dir", "user", "supervisor_socket") if key in held}
    if "control" in held:
        endpoint, mode, group = (held["control"][key] for key in ("endpoint", "mode", "group"))
        control = {"endpoint": endpoint, "mode": f"{mode:04o}", "group": group}
        values["control"] = loaded.limetaskd.control.model_copy(update=control)
    section = loaded.limetaskd.model_copy(update=values)
    plan = build(dataclasses.replace(loaded, limetaskd=section), environ, embedded=embedded, host=host)
    return detach(plan) if held.get("detached") else plan, held_back(plan, wanted)


def detach(plan: Plan) -> Plan:
    """The plan of a daemon without a terminal: what would go to its standard error goes into a file."""
    logging = plan.logging
    if logging.destination == "stderr":
        logging = dataclasses.replace(logging, destination=str(Path(plan.state_dir) / "log" / "limetaskd.jsonl"))
    return dataclasses.replace(plan, logging=logging, detached=True)
