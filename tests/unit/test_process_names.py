"""Who is who in `ps`."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os
from pathlib import Path
from limetaskd.core.process import name_arguments
for words in {words!r}:
    name_arguments(*words)
if os.fork() == 0:
    shown = Path("/proc/self/cmdline").read_bytes().rstrip(b"\\0").split(b"\\0")
    print(shown[-2:], os.environ["MARK"], flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([("worker", "asap:0")], [b"worker", b"asap:0"]),
        ([("spare", "limetaskd:spare"), ("worker", "background:0")], [b"worker", b"background:0"]),
        ([("worker", "a_name_that_is_longer:0")], [b"worker", b"a_name_that_is"]),  # no further than there is room
    ],
)
def test_a_process_that_was_forked_has_arguments_of_its_own(words: list[tuple[str, str]], shown: list[bytes]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(words=words), "image", "limetaskd:image"],
        env={"MARK": "whole"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == f"{shown} whole"
