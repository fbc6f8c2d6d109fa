"""What a rehearsal imports, and what it says when that cannot be done: in the processes that it starts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from limetaskd.config.host import Host
from limetaskd.config.load import load_mapping
from limetaskd.core.settings import Queue, Routing, Settings
from limetaskd.daemon import launch, upgrade
from limetaskd.plan.build import build
from tests.support.waiting import wait_until

Rehearse = Callable[..., str | None]


@pytest.fixture
def rehearse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Rehearse:
    """Rehearse with this source as the one task module; the reason of the failure, None when there was none."""
    paths = [str(tmp_path), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    def run(source: str, **limetaskd: Any) -> str | None:
        (tmp_path / "rehearsed.py").write_text(source)
        document = {"tasks": {"routing": {"qos": {"asap": "q_asap"}}}, "limetaskd": {"imports": ["rehearsed"]}}
        document["limetaskd"].update(limetaskd)
        host = Host(uid=1000, home=str(tmp_path), tmp=str(tmp_path), cpus=2, run_user=None)
        done = upgrade.rehearse_processes(build(load_mapping(document, {}), {}, host=host))
        reasons = upgrade.reasons(capfd.readouterr().err)
        return None if done else " | ".join(reasons)

    return run


def test_what_a_module_starts_or_prints_does_no_harm(rehearse: Rehearse, tmp_path: Path) -> None:
    child = tmp_path / "child"
    source = f"""
import subprocess, sys, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
with open({str(child)!r}, "w") as file:
    file.write(str(subprocess.Popen(["sleep", "600"]).pid))
print("limetaskd: nothing is wrong", b"\\xff", file=sys.stderr)
"""
    assert rehearse(source) is None
    wait_until(lambda: not lives(int(child.read_text())))


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "cannot import rehearsed: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit('bye')", "cannot import rehearsed: SystemExit: bye"),
        ("import os; os._exit(3)", "the processes cannot be imported: exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", "the processes cannot be imported: killed by SIGKILL"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_in_one_line(rehearse: Rehearse, source: str, reason: str) -> None:
    said, _, where = str(rehearse(source)).partition("; what they printed is in ")
    assert said == reason
    assert where.endswith("/rehearsal.log") == ("the processes" in reason)


def test_modules_are_imported_in_the_environment_of_the_pools(rehearse: Rehearse) -> None:
    source = "import os; os.environ['TOKEN']"
    given = {"env": {"TOKEN": "mine"}}
    assert rehearse(source, strategy="dedicated", pools={"asap": given, "default": given}) is None
    assert "cannot import rehearsed: KeyError" in str(rehearse(source, strategy="dedicated", pools={"asap": given}))


def test_an_interpreter_that_cannot_be_used_is_named(rehearse: Rehearse, tmp_path: Path) -> None:
    assert f"{tmp_path}/python" in str(rehearse("", python=f"{tmp_path}/python"))


def test_without_a_line_for_the_operator_the_last_lines_are_the_reason() -> None:
    text = "\n".join(["Traceback", *map(str, range(9)), "", "ImportError: no"])
    assert upgrade.reasons(text)[-1] == "ImportError: no"
    assert upgrade.reasons(f"limetaskd: one\n{text}\nlimetaskd: two\n") == ["one", "two"]


def settings(**more: Any) -> Settings:
    queue = Queue("q", "q", "e", "direct", "q")
    return Settings("app", "amqp://", None, "", "", "e", [queue], Routing("q"), **more)


def test_a_setting_that_is_new_and_not_used_looks_like_none_to_running_workers() -> None:
    @dataclasses.dataclass(frozen=True, repr=False)
    class Newer(Settings):
        one_more: dict[str, str] = dataclasses.field(default_factory=dict)

    old = settings(imports=["mine"])
    new = Newer(**{field.name: getattr(old, field.name) for field in dataclasses.fields(old)})
    assert launch.said(new) == launch.said(old)
    assert launch.said(dataclasses.replace(new, one_more={"a": "b"})) != launch.said(old)
    assert launch.said(settings()) != launch.said(old)
