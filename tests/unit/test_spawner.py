"""Identities of processes: pidfd and start time never name another one; strangers are reaped, ours are not."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from limetaskd.core.process import process_start_ticks
from limetaskd.daemon.spawner import Exit, ProcessRef, find, held, reap_strangers, spawn
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


def test_every_signal_has_words() -> None:
    assert str(Exit(signal=signal.SIGKILL)) == "killed by SIGKILL"
    assert str(Exit(signal=40)) == "killed by signal 40"


def test_one_that_may_not_be_killed_does_not_save_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os, time\nfor _ in range(3):\n    if os.fork() == 0: time.sleep(60)\nprint('grown', flush=True)\n"
    ref = start(tmp_path, program + "time.sleep(60)")
    wait_until(lambda: "grown" in (tmp_path / "log").read_text())
    children = psutil.Process(ref.pid).children()
    kill = psutil.Process.kill

    def deny(process: psutil.Process) -> None:
        if process == children[0]:
            raise psutil.AccessDenied(process.pid)
        kill(process)

    monkeypatch.setattr(psutil.Process, "kill", deny)
    try:
        assert set(ref.kill_tree()) == {ref.pid, children[1].pid, children[2].pid}
        wait_dead(ref)
        wait_until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children[1:]))
        assert children[0].is_running()
    finally:
        kill(children[0])
        ref.reap()
        ref.close()


def test_without_descriptors_nobody_is_said_to_be_dead() -> None:
    ticks = process_start_ticks(os.getpid())
    assert ticks is not None
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for room in (0, 1):  # for the pidfd alone, and not even for that
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + room, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                find(os.getpid(), ticks)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    ref = find(os.getpid(), ticks)
    assert ref is not None
    assert ref.pidfd == free  # none was left open
    ref.close()


def test_a_thread_is_no_process_of_its_own() -> None:
    up, down = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (up.set(), down.wait(60)))
    thread.start()
    assert up.wait(60)
    assert thread.native_id is not None
    assert find(thread.native_id, process_start_ticks(thread.native_id) or 0) is None
    down.set()
    thread.join()


TRACER = """
import ctypes, os, signal, sys
PTRACE_SEIZE = 0x4206
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
if libc.ptrace(PTRACE_SEIZE, int(sys.argv[1]), None, None) != 0:
    raise OSError(ctypes.get_errno(), "ptrace")
print("traces", flush=True)
signal.pause()
"""


def test_a_debugger_that_does_not_let_go_holds_nobody_up(tmp_path: Path) -> None:
    ref = start(tmp_path, "import time; time.sleep(60)")
    tracer = subprocess.Popen([sys.executable, "-c", TRACER, str(ref.pid)], stdout=subprocess.PIPE)
    assert tracer.stdout is not None
    assert tracer.stdout.readline() == b"traces\n"
    ref.signal(signal.SIGKILL)
    wait_dead(ref)
    assert str(ref.reap()) == "gone (status unknown)"
    ref.close()
    tracer.kill()
    tracer.wait()
    os.waitpid(ref.pid, 0)
