"""The client starts fast: what it imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = "celery kombu pydantic yaml psutil supervisor asyncio zmq.asyncio logging tempfile limetaskd.core"


def imported(*words: str) -> set[str]:
    """The modules that a run of `limetaskctl WORDS` has imported at its end."""
    program = (
        "import sys\nfrom limetaskctl.main import main\n"
        f"try: main({list(words)!r})\nexcept SystemExit: pass\n"
        "print('\\n' + ' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("words", [["status", "--socket", "/nowhere.sock"], ["version", "--socket", "/nowhere.sock"]])
def test_a_command_imports_zmq_and_nothing_heavy(words: list[str]) -> None:
    modules = imported(*words)
    assert "zmq" in modules
    assert not modules & set(SLOW.split())


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["completion", "bash"], ["statsu"], ["health"]])
def test_what_needs_no_daemon_imports_no_zmq(words: list[str]) -> None:
    modules = imported(*words)
    assert not modules & {*SLOW.split(), "zmq"}


def test_only_the_command_that_runs_is_imported() -> None:
    modules = imported("status", "--socket", "/nowhere.sock")
    assert {name for name in modules if name.startswith("limetaskctl.commands.")} == {"limetaskctl.commands.status"}
