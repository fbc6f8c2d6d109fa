"""What only a new daemon can take: over reloads and upgrades it stays as the daemon has begun with it (pure).

Its folders and sockets are where its processes and `limetaskctl` find it, and its user is who it has become.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limetaskd.config.host import Host
from limetaskd.config.load import LoadedConfig
from limetaskd.core.documents import loads
from limetaskd.plan.build import build
from limetaskd.plan.diff import Change, held_back
from limetaskd.plan.model import Plan

HELD_VARIABLE = "LIMETASKD_HELD"  # set for the code that replaces us, and for its rehearsal


def to_json(plan: Plan) -> str:
    """The values of a running plan, and the facts of the host that they came from."""
    return json.dumps({
        "runtime_dir": plan.runtime_dir,
        "state_dir": plan.state_dir,
        "user": plan.user,
        "supervisor_socket": plan.supervisor_socket,
        "control": dataclasses.asdict(plan.control),
        "detached": plan.detached,
        "host": dataclasses.asdict(plan.host) if plan.host is not None else {},
    })  # fmt: skip


def build_held(
    loaded: LoadedConfig, environ: Mapping[str, str], held: str, *, embedded: bool
) -> tuple[Plan, tuple[Change, ...]]:
    """The plan of a configuration for a daemon that runs, and what of it waits for its next start.

    `held`: from `to_json`, maybe of another version. Raises ConfigError with every problem.
    """
    values: dict[str, Any] = loads(held)
    facts = Host.read()
    known = {field.name for field in dataclasses.fields(Host)}
    host = dataclasses.replace(facts, **{key: value for key, value in values["host"].items() if key in known})
    wanted = build(loaded, environ, embedded=embedded, host=host)
    control = {"endpoint": values["control"]["endpoint"], "group": values["control"]["group"]}
    daemon = loaded.limetaskd
    section = daemon.model_copy(update={
        "runtime_dir": values["runtime_dir"],
        "state_dir": values["state_dir"],
        "user": values["user"],
        "supervisor_socket": values["supervisor_socket"],
        "control": daemon.control.model_copy(update={**control, "mode": f"{values['control']['mode']:04o}"}),
    })  # fmt: skip
    plan = build(dataclasses.replace(loaded, limetaskd=section), environ, embedded=embedded, host=host)
    return detach(plan) if values.get("detached") else plan, held_back(plan, wanted)


def detach(plan: Plan) -> Plan:
    """The plan of a daemon without a terminal: what would go to its standard error goes into a file."""
    logging = plan.logging
    if logging.destination == "stderr":
        logging = dataclasses.replace(logging, destination=str(Path(plan.state_dir) / "log" / "limetaskd.jsonl"))
    return dataclasses.replace(plan, logging=logging, detached=True)
