"""A load generator: numbered tasks, sent all the time from a process of its own; what was sent against what ran."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tests.support.daemon import Daemon
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MODULE = "loadtasks"
SOURCE = '''
    """Each run leaves one line."""
    import os
    import time

    from limetaskd import task


    @task(name="load.number")
    def number(path, n, pause_s):
        time.sleep(pause_s)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, f"{n}\\n".encode())
        finally:
            os.close(descriptor)
'''
_BATCH = 6
_PAUSE_S = 0.02


class Load:
    """Sends to `categories` in turn while the context lasts; `check` afterwards. Each task takes `task_s`."""

    def __init__(self, daemon: Daemon, categories: Sequence[str], *, task_s: float = 0.01) -> None:
        self._daemon = daemon
        self._categories = list(categories)
        self._task_s = task_s
        self._path = daemon.folder / "ran"
        self._path.touch()
        self._path.chmod(0o666)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failure: Exception | None = None
        self.sent = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with Sender(self._daemon) as sender:
                while not self._stop.is_set():
                    for category in self._categories:
                        numbers = range(self.sent, self.sent + _BATCH)
                        arguments = [[str(self._path), n, self._task_s] for n in numbers]
                        sender.send_many("load.number", arguments, qos=category)
                        self.sent += _BATCH
                    self._stop.wait(_PAUSE_S)
        except Exception as error:  # noqa: BLE001 - told by `check`
            self._failure = error

    def ran(self) -> Counter[int]:
        return Counter(int(line) for line in self._path.read_text().split())

    def goes_on(self, tasks: int = 20, timeout: float = 60) -> None:
        """Wait until so many more have run: something happens between two changes."""
        seen = sum(self.ran().values())
        wait_until(lambda: sum(self.ran().values()) >= seen + tasks, timeout, "the load to go on")

    def check(self, timeout: float = 120) -> None:
        """All that was sent ran exactly once."""
        if self._failure is not None:
            raise self._failure
        wait_until(
            lambda: len(self.ran()) >= self.sent, timeout, lambda: f"{len(self.ran())} of {self.sent} tasks to run"
        )
        ran = self.ran()
        lost = set(range(self.sent)) - set(ran)
        twice = {n: count for n, count in ran.items() if count > 1}
        assert (lost, twice) == (set(), {}), f"sent {self.sent}, run once {sum(c == 1 for c in ran.values())}"
