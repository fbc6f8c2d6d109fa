"""What a running daemon holds while its file says something else."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from limetaskd.config.host import Host
from limetaskd.config.load import load_mapping
from limetaskd.plan.build import build
from limetaskd.plan.held import build_held, detach, values_of
from limetaskd.plan.model import Plan

AS_ROOT = Host(uid=0, home="/root", tmp="/tmp", cpus=4, run_user=None)


def document(**limetaskd: Any) -> dict[str, Any]:
    return {"tasks": {"routing": {"qos": {"asap": "q"}}}, "limetaskd": limetaskd}


def running(**limetaskd: Any) -> Plan:
    return build(load_mapping(document(**limetaskd), {}), {}, host=AS_ROOT, embedded=True)


def again(plan: Plan, held: dict[str, Any] | None = None, **limetaskd: Any) -> tuple[Plan, dict[str, Any]]:
    loaded = load_mapping(document(**limetaskd), {})
    now, waits = build_held(loaded, {}, json.loads(json.dumps(held or values_of(plan))), embedded=True)
    return now, {change.key: change.new for change in waits}


def test_the_same_file_gives_the_same_plan_whoever_reads_it() -> None:
    """Folders of root stay those of root for the user that it has become."""
    plan = running(user="crm")
    assert plan.runtime_dir == "/run/limetaskd"
    assert again(plan, user="crm") == (plan, {})


def test_folders_sockets_and_user_stay_with_all_that_follows_from_them() -> None:
    plan = running(user="crm")
    now, waits = again(
        plan, user="other", runtime_dir="/elsewhere", state_dir="/state", supervisor_socket=True,
        control={"mode": "0600"}, strategy="dedicated",
    )  # fmt: skip
    assert now.strategy == "dedicated"
    assert (now.user, now.runtime_dir, now.state_dir, now.control, now.supervisor_socket) == (
        plan.user, plan.runtime_dir, plan.state_dir, plan.control, False
    )  # fmt: skip
    assert now.settings == plan.settings  # the URL of the embedded broker, too
    assert set(waits) == {"user", "runtime_dir", "state_dir", "supervisor_socket", "control"}
    assert waits["control"] == {"endpoint": "ipc:///elsewhere/control.sock", "mode": 0o600, "group": None}


def test_a_detached_daemon_has_no_standard_error() -> None:
    plan = detach(running())
    assert plan.logging.destination == "/var/lib/limetaskd/log/limetaskd.jsonl"
    assert again(plan) == (plan, {})
    chosen = detach(running(logging={"destination": "/var/log/limetaskd.jsonl"}))
    assert chosen.logging.destination == "/var/log/limetaskd.jsonl"


def test_another_version_may_know_more_or_less_of_the_host() -> None:
    plan = running()
    now, waits = again(plan, {**values_of(plan), "host": {"uid": 0, "moon": "full"}})
    assert (now.runtime_dir, waits) == (plan.runtime_dir, {})
    assert now.host == dataclasses.replace(Host.read(), uid=0)


def test_of_a_daemon_that_died_only_the_folders_are_known() -> None:
    now, waits = again(
        running(), {"runtime_dir": "/old", "state_dir": "/old-state"}, runtime_dir="/new", user="crm",
        control={"mode": "0600"},
    )  # fmt: skip
    assert (now.runtime_dir, now.state_dir, now.user) == ("/old", "/old-state", "crm")
    assert (now.control.endpoint, now.control.mode) == ("ipc:///old/control.sock", 0o600)
    assert set(waits) == {"runtime_dir", "state_dir", "control"}
