"""The command with which a daemon replaces itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SHOW = "import json, sys; from limetaskd.daemon.upgrade import command_line; print(json.dumps(command_line()))"


@pytest.mark.parametrize("flags", [[], ["-I"]])
def test_an_isolated_interpreter_stays_so(flags: list[str]) -> None:
    words = [sys.executable, *flags, "-c", SHOW, "--embedded"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [sys.executable, *flags, "-m", "limetaskd.daemon.main", "--embedded"]
