"""Identities of processes: pidfd and start time never name another one; strangers are reaped, ours are not."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
from pathlib import Path

import pytest

from limetaskd.core.process import process_start_ticks
from limetaskd.daemon.spawner import ProcessRef, find, held, reap_strangers, spawn
from tests.support.waiting import wait_until


def wait_dead(ref: ProcessRef) -> None:
    assert select.select([ref.pidfd], [], [], 30)[0]


def start(tmp_path: Path, program: str) -> ProcessRef:
    return spawn([sys.executable, "-c", program], dict(os.environ), str(tmp_path / "log"))


def test_a_spawned_process_has_its_own_session_and_writes_to_its_log(tmp_path: Path) -> None:
    ref = start(tmp_path, "import os, sys; print(os.getsid(0)); print(sys.stdin.read(), file=sys.stderr); sys.exit(7)")
    wait_dead(ref)
    assert str(ref.reap()) == "exit status 7"
    assert (tmp_path / "log").read_text().split() == [str(ref.pid)]
    assert ref.signal(signal.SIGTERM) is False
    ref.close()


def test_a_program_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        spawn(["/nonexistent/program"], {}, str(tmp_path / "log"))


def test_a_log_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    log = str(tmp_path / "gone" / "log")
    with pytest.raises(FileNotFoundError) as caught:
        spawn([sys.executable, "-c", ""], dict(os.environ), log)
    assert caught.value.filename == log


def test_a_child_that_cannot_be_held_does_not_live_on() -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            held(child)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_dead_process_that_nobody_has_collected_is_not_found() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    ticks = process_start_ticks(child)
    assert ticks is not None
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert process_start_ticks(child) == ticks
    assert find(child, ticks) is None
    os.waitpid(child, 0)


def test_a_pid_that_was_used_again_is_another_process(tmp_path: Path) -> None:
    ref = start(tmp_path, "import time; time.sleep(60)")
    found = find(ref.pid, ref.start_ticks)
    assert found is not None
    assert found.child is True
    found.close()
    # The same pid with another start time is what a record of a dead process looks like after reuse.
    assert find(ref.pid, ref.start_ticks + 1) is None
    assert ref.kill_tree() == [ref.pid]
    wait_dead(ref)
    assert str(ref.reap()) == "killed by SIGKILL"
    assert find(ref.pid, ref.start_ticks) is None
    # Even a handle that outlives the process signals nobody else.
    assert ref.signal(signal.SIGKILL) is False
    ref.close()


def test_a_tree_is_killed_with_all_its_branches(tmp_path: Path) -> None:
    program = (
        "import os, time\n"
        "for _ in range(2):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        os.fork()\n"
        "        time.sleep(60)\n"
        "print('grown', flush=True)\n"
        "time.sleep(60)\n"
    )
    ref = start(tmp_path, program)
    wait_until(lambda: "grown" in (tmp_path / "log").read_text())
    wait_until(lambda: len(list(Path(f"/proc/{ref.pid}/task/{ref.pid}").joinpath("children").read_text().split())) == 2)
    killed = ref.kill_tree()
    assert len(killed) >= 3
    wait_until(lambda: all(process_start_ticks(pid) is None or pid == ref.pid for pid in killed[1:]) or reap(killed))
    wait_dead(ref)
    ref.reap()
    ref.close()


def reap(pids: list[int]) -> bool:
    """As pid 1 or a subreaper would."""
    reap_strangers({pids[0]})
    return all(process_start_ticks(pid) is None for pid in pids[1:])


def test_strangers_are_reaped_and_ours_are_left_for_their_owner() -> None:
    ours = os.fork()
    if ours == 0:
        os._exit(5)
    ref = held(ours)
    wait_dead(ref)
    reap_strangers({ours})
    assert str(ref.reap()) == "exit status 5"
    ref.close()
    stranger = os.fork()
    if stranger == 0:
        os._exit(0)
    wait_until(lambda: reap_strangers(set()) or process_start_ticks(stranger) is None)
