"""How a process comes into being, and its one identity: (pid, start time, pidfd).

By exec, by a fork from the image, or found alive after the death of its daemon. The states above do not know the
difference. A pidfd never names another process after the pid is used again, and it tells a death to
the loop at once, without polling and without `waitpid(-1)`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from ctypes import CDLL
from dataclasses import dataclass
from pathlib import Path

import psutil

from limetaskd.core.process import process_lives, process_parent, process_start_ticks

log = logging.getLogger("limetaskd.spawner")


def signal_name(number: int) -> str:
    """`SIGKILL`; real-time signals but the first and the last have no name: `signal 40`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@dataclass(frozen=True)
class Exit:
    """How a process ended. Both None: it was not our child (adopted), so nobody told us."""

    status: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by {signal_name(self.signal)}"
        if self.status is not None:
            return f"exit status {self.status}"
        return "gone (status unknown)"


class ProcessRef:
    """One process, held by a pidfd until `close`."""

    def __init__(self, pid: int, start_ticks: int, pidfd: int, *, child: bool) -> None:
        self.pid = pid
        self.start_ticks = start_ticks
        self.pidfd = pidfd
        self.child = child
        self._exit: Exit | None = None

    def signal(self, number: int) -> bool:
        """Send a signal; False when the process is gone."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except (ProcessLookupError, OSError):
            return False
        return True

    def reap(self) -> Exit:
        """Collect the exit status once the pidfd is readable."""
        if self._exit is None:
            self._exit = self._wait() if self.child else Exit()
        return self._exit

    def _wait(self) -> Exit:
        try:
            result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return Exit()
        if result is None:
            # A debugger has not let go of it. It is dead all the same; `reap_strangers` collects it one day.
            return Exit()
        if result.si_code == os.CLD_EXITED:
            return Exit(status=result.si_status)
        return Exit(signal=result.si_status)

    def kill_tree(self) -> list[int]:
        """SIGKILL the process and all that descends from it; returns the pids. Reads /proc: call it in a thread.

        The main process is frozen first, so that it can neither fork a new child nor be reaped in between.
        """
        if not self.signal(signal.SIGSTOP):
            return []
        victims: list[psutil.Process] = []
        try:
            victims = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            pass
        except (psutil.Error, OSError) as error:
            log.error("what descends from pid %d is not known and may live on: %s", self.pid, error)
        self.signal(signal.SIGKILL)
        killed = [self.pid]
        for victim in victims:
            try:
                victim.kill()  # psutil compares the creation time first
            except psutil.NoSuchProcess:
                continue
            except (psutil.Error, OSError) as error:  # of another user (sudo, say)
                log.warning("pid %d, below pid %d, lives on: %s", victim.pid, self.pid, error)
                continue
            killed.append(victim.pid)
        return killed

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def spawn(
    argv: Sequence[str], environ: Mapping[str, str], log_path: str, *, protected: bool = True
) -> ProcessRef:
    """Start `argv` in a session of its own, with descriptors 1 and 2 appended to `log_path` and 0 on /dev/null.

    No pipe ties the process to us: it writes on when we are gone. `protected` False: a protection of ours from the
    kernel's OOM killer (OOMScoreAdjust= of the unit) is not for it. Raises OSError when it cannot be started.
    """
    # Opened here, so that an error names the log and not the program.
    output = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        pid = os.posix_spawnp(
            argv[0],
            list(argv),
            dict(environ),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1],
        )
    finally:
        os.close(output)
    if not protected:
        expose_to_oom_killer(Path(f"/proc/{pid}/oom_score_adj"))
    return held(pid)


def expose_to_oom_killer(path: Path) -> None:
    """Raise the negative `oom_score_adj` of a child to 0: task code that eats the memory is to die, not its host."""
    try:
        if int(path.read_text()) < 0:
            path.write_text("0")
    except (OSError, ValueError) as error:
        # It has ended already, or /proc is closed to us: nothing else depends on it.
        log.debug("%s stays as it is: %s", path, error)


def kill_stopped_children(name: str) -> None:
    """SIGKILL children of that name that somebody has stopped: they cannot end by themselves. Call it in a thread."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == name and child.status() == psutil.STATUS_STOPPED:
                child.kill()


_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """What our descendants leave behind becomes our child: a worker whose go-between has exited, too."""
    CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_strangers(known: set[int]) -> None:
    """Collect dead children that nobody holds a ProcessRef of: what a killed worker left behind.

    Looks before it takes (WNOWAIT), so that the death of a process in `known` stays for its own ProcessRef.
    """
    while True:
        try:
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if dead is None or dead.si_pid in known:
            return  # the next call, after the death in `known` was handled, goes on
        with contextlib.suppress(ChildProcessError):
            os.waitpid(dead.si_pid, os.WNOHANG)


def held(pid: int) -> ProcessRef:
    """Our own unreaped child: its pid cannot have been used again.

    Raises OSError, without descriptors above all; then it does not live on unknown.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # collected by `reap_strangers`
        raise
    return ProcessRef(pid, process_start_ticks(pid) or 0, pidfd, child=True)


# Also of a pid that has become the number of a thread; which of the two depends on the kernel.
_NO_PROCESS = frozenset({errno.ESRCH, errno.EINVAL, errno.ENOENT})


def find(pid: int, start_ticks: int) -> ProcessRef | None:
    """The living process with this identity; None when it is gone, or dead and not collected by its parent.

    It may be our child: `exec` keeps children. Raises OSError when nobody can tell (no descriptors left, say).
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in _NO_PROCESS:
            return None
        raise
    ref = None
    try:
        # Compared after the pidfd is held: from here on the pid cannot change hands unnoticed.
        if process_lives(pid, start_ticks):
            ref = ProcessRef(pid, start_ticks, pidfd, child=process_parent(pid) == os.getpid())
    finally:
        if ref is None:
            os.close(pidfd)
    return ref
