"""What a child inherits of the daemon's protection from the kernel's OOM killer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from limetaskd.daemon.spawner import expose_to_oom_killer, spawn


@pytest.mark.parametrize(("inherited", "left"), [("-500\n", "0"), ("-1\n", "0"), ("0\n", "0"), ("300\n", "300")])
def test_only_a_protection_is_taken_away(inherited: str, left: str, tmp_path: Path) -> None:
    score = tmp_path / "oom_score_adj"
    score.write_text(inherited)
    expose_to_oom_killer(score)
    assert score.read_text().strip() == left


def test_a_process_that_has_gone_is_no_error(tmp_path: Path) -> None:
    expose_to_oom_killer(tmp_path / "gone")


@pytest.mark.parametrize("protected", [True, False])
def test_a_child_starts_either_way(protected: bool, tmp_path: Path) -> None:
    child = spawn(["/bin/sleep", "60"], os.environ, str(tmp_path / "log"), protected=protected)
    own = int(Path("/proc/self/oom_score_adj").read_text())
    found = int(Path(f"/proc/{child.pid}/oom_score_adj").read_text())
    child.kill_tree()
    child.reap()
    child.close()
    assert found == (own if protected else max(own, 0))
