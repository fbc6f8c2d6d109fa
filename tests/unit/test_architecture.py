"""What an import may pull in, seen in a fresh interpreter; import-linter checks the written imports (`make check`)."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import limetaskd.core
import limetaskd.policy

ROOT = Path(__file__).parents[2]
_PROGRAM = """
import importlib, json, sys
for name in sys.argv[1].split():
    sys.modules[name] = None
before = set(sys.modules)
for name in sys.argv[2:]:
    importlib.import_module(name)
print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))
"""
_HEAVY = {"celery", "kombu", "amqp", "billiard", "vine", "redis", "pydantic", "yaml", "zmq", "psutil", "supervisor"}


def imported_by(*modules: str, without: Sequence[str] = ()) -> set[str]:
    """Top-level packages that come with importing `modules`, in an interpreter where those of `without` are missing."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, " ".join(without), *modules],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def modules_of(package: str, path: list[str]) -> list[str]:
    return [package, *(item.name for item in pkgutil.walk_packages(path, f"{package}."))]


def foreign(packages: set[str]) -> set[str]:
    """Those that are neither of the standard library nor ours."""
    return packages - set(sys.stdlib_module_names) - {"limetaskd"}


def test_import_limetaskd_is_lazy() -> None:
    """A web application pays for what it uses only."""
    assert not imported_by("limetaskd") & _HEAVY


def test_core_needs_the_standard_library_only() -> None:
    assert foreign(imported_by(*modules_of("limetaskd.core", list(limetaskd.core.__path__)))) == set()


def test_policy_needs_the_standard_library_only() -> None:
    assert foreign(imported_by(*modules_of("limetaskd.policy", list(limetaskd.policy.__path__)))) == set()


def test_the_daemon_imports_no_celery_and_no_broker_client() -> None:
    assert not imported_by("limetaskd.daemon.main") & {"celery", "kombu", "amqp", "billiard", "vine", "redis"}


def test_the_agent_imports_what_it_needs_when_it_needs_it() -> None:
    """It runs everywhere and all the time; Celery and the client of Redis are 12 MiB."""
    agent = imported_by("limetaskd.boot", "limetaskd.agent.main", "kombu.transport.pyamqp")
    assert not agent & {"celery", "redis", "asyncio"}


def test_the_client_imports_little() -> None:
    """limetaskctl starts fast because of what it does not import."""
    assert imported_by("limetaskctl.main") & (_HEAVY - {"zmq"}) == set()


def test_senders_and_workers_need_neither_pydantic_nor_yaml() -> None:
    """The application's interpreter may hold other versions of them, or none: here it has none.

    Celery and kombu import yaml and psutil when they are there, so what is loaded otherwise proves nothing.
    """
    packages = ("tasks", "worker", "beat", "agent")
    modules = [name for part in packages for name in modules_of(f"limetaskd.{part}", [str(ROOT / "limetaskd" / part)])]
    imported_by("limetaskd.boot", *modules, without=("pydantic", "yaml", "zmq", "psutil", "supervisor", "daemon"))


def test_every_layer_of_the_picture_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for name in ("core", "config", "plan", "policy", "tasks", "worker", "beat", "agent", "daemon", "cli"):
        assert f"`limetaskd.{name}`" in text
        assert (ROOT / "limetaskd" / name / "__init__.py").exists()
