"""Tasks that misbehave, and what the tests of limits ask of a daemon that runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.daemon import Daemon
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MODULE = "badtasks"
SOURCE = '''
    """Tasks that misbehave."""
    import ctypes
    import os
    import signal
    import subprocess
    import sys
    import time
    from pathlib import Path

    from celery.exceptions import SoftTimeLimitExceeded
    from celery.signals import task_received
    from limetaskd import task


    def note(folder, word):
        """One file for each run."""
        Path(folder, f"{word}.{time.time_ns()}.{os.getpid()}").write_text(str(os.getpid()))


    @task(name="bad.sleep")
    def sleep(folder, seconds=120):
        """Ignores the soft limit, as bad code does."""
        note(folder, "sleep")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                time.sleep(deadline - time.monotonic())
            except SoftTimeLimitExceeded:
                pass
        return "slept"


    @task(name="bad.until")
    def until(folder, word="until"):
        """Runs until there is a file `go`."""
        note(folder, word)
        while not Path(folder, "go").exists():
            time.sleep(0.02)
        return word


    @task(name="bad.retry", bind=True, max_retries=3)
    def retry(self, folder):
        """Runs until there is a file `go`, then once more."""
        note(folder, f"retry{self.request.retries}")
        while not Path(folder, "go").exists():
            time.sleep(0.02)
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return self.request.retries


    @task(name="bad.gil")
    def hold_the_gil(folder, seconds=120):
        """C code that keeps the interpreter's lock."""
        note(folder, "gil")
        ctypes.PyDLL(None).sleep(int(seconds))
        return "held"


    @task(name="bad.block")
    def block():
        """Harmless; its reception blocks the event loop of the main process, the first time."""


    @task(name="bad.deafen")
    def deafen():
        """Harmless; with its reception the main process loses its consumer without noticing, the first time."""


    @task_received.connect
    def on_received_deafen(sender=None, request=None, **_):
        mark = Path(__file__).with_name("deafened")
        if request.name == "bad.deafen" and not mark.exists():
            mark.touch()
            for tag in sender.task_consumer._active_tags.values():
                sender.task_consumer.channel.basic_cancel(tag, nowait=True)


    @task_received.connect
    def on_received(request=None, **_):
        mark = Path(__file__).with_name("blocked")
        if request.name == "bad.block" and not mark.exists():
            mark.touch()
            time.sleep(600)


    @task(name="bad.grow")
    def grow(folder, mib, step_s=0.0, hold_s=120):
        note(folder, "grow")
        kept = []
        for _ in range(mib):
            kept.append(bytearray(os.urandom(1024) * 1024))
            if step_s:
                time.sleep(step_s)
        time.sleep(hold_s)
        return len(kept)


    _leak = []


    @task(name="bad.leak")
    def leak(mib):
        """Ends by itself and keeps what it took."""
        _leak.append(bytearray(os.urandom(1024) * (mib * 1024)))
        return os.getpid()


    @task(name="bad.pid")
    def pid():
        return os.getpid()


    @task(name="bad.exit")
    def leave(folder):
        note(folder, "exit")
        os._exit(3)


    @task(name="bad.once", delivery="at-most-once")
    def leave_once(folder):
        note(folder, "once")
        os._exit(3)


    @task(name="bad.parricide", delivery="at-most-once")
    def kill_main(folder):
        """Its worker's main process dies in the moment in which it begins."""
        note(folder, "once")
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(120)


    @task(name="bad.segv")
    def segv(folder):
        note(folder, "segv")
        ctypes.string_at(0)


    @task(name="bad.fork")
    def forks(folder, seconds=120):
        """Has a process of its own."""
        child = subprocess.Popen(["sleep", "300"])
        Path(folder, "subprocess").write_text(str(child.pid))
        note(folder, "fork")
        time.sleep(seconds)
'''


def configuration(broker: str, backend: str, **limetaskd: Any) -> dict[str, Any]:
    """One pool `all`, of two slots."""
    return {
        "tasks": {
            "broker_connection_string": broker,
            "backend_connection_string": backend,
            "routing": {"qos": {}, "tasks": {}},
        },
        "limetaskd": {
            "concurrency": 2, "imports": [MODULE], "restart": {"initial": "50ms", "intensity": 50},
            **limetaskd, "limits": {"sample_interval": "200ms", "time_grace": "500ms", **limetaskd.get("limits", {})},
        },
    }  # fmt: skip


def notes(daemon: Daemon, word: str) -> list[int]:
    """The process of each run of a task that notes `word`."""
    return [int(path.read_text() or 0) for path in sorted(daemon.folder.glob(f"{word}.*"))]


def noted(daemon: Daemon, word: str, count: int = 1) -> list[int]:
    """Wait until it has run so often."""
    return wait_until(lambda: len(found := notes(daemon, word)) >= count and all(found) and found, 60, f"{word} to run")


def failed_once(daemon: Daemon, sender: Sender, task_id: str, reason: str) -> str:
    """The caller is answered, and there is exactly one record, FAILURE for `reason`; the answer."""
    answer = str(sender.result(task_id, 90))
    records = wait_until(lambda: daemon.records(task_id), 30, "the record")
    assert [(r["task_outcome"], r.get("task_failure_reason")) for r in records] == [("FAILURE", reason)]
    return answer


def start(make_daemon: Callable[..., Daemon], broker: str, backend: str, **limetaskd: Any) -> Daemon:
    """A daemon of these tasks that consumes."""
    daemon = make_daemon(configuration(broker, backend, **limetaskd))
    daemon.module(MODULE, SOURCE)
    daemon.start()
    daemon.wait_running()
    return daemon


def events(daemon: Daemon, name: str) -> list[dict[str, Any]]:
    """The records of an action."""
    return [record for record in daemon.logs() if record.get("action") == name]


def agent_pid(daemon: Daemon) -> int:
    status = daemon.status()
    assert status is not None
    return next(int(helper["pid"]) for helper in status["daemon"]["helpers"] if helper["name"] == "limetaskd:agent")
