"""The interpreter with which a daemon replaces itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SHOW = "import json; from limetaskd.daemon.upgrade import interpreter; print(json.dumps(interpreter()))"


@pytest.mark.parametrize("flags", [[], ["-I"]])
def test_an_isolated_interpreter_stays_so(flags: list[str]) -> None:
    done = subprocess.run([sys.executable, *flags, "-c", SHOW], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [sys.executable, *flags]
