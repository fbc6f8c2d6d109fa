"""Finds workers that hang, dumps their stacks, kills and replaces them."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from pathlib import Path
from weakref import WeakKeyDictionary

from limetaskd.core.channel import Phase
from limetaskd.core.process import process_state
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.incarnation import Incarnation
from limetaskd.daemon.spawner import find
from limetaskd.daemon.unit import Unit
from limetaskd.policy.health import Signs, ailment

log = logging.getLogger("limetaskd.health")

DUMP_SIGNAL = signal.SIGUSR2  # see limetaskd/worker/main.py
DUMP_S = 2.0
DUMP_BYTES = 16 * 1024
POLL_S = 0.1
FIGURES_S = 15.0


class Health:
    """Judges each worker; `slots(incarnation)` reads its scoreboard."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._idle_since: WeakKeyDictionary[Incarnation, tuple[float, int | None]] = WeakKeyDictionary()
        # When it was last heard at the first suspicion.
        self._suspected: WeakKeyDictionary[Incarnation, float] = WeakKeyDictionary()

    def ailment(self, unit: Unit, incarnation: Incarnation, now: float) -> str | None:
        """What is wrong with it, in words; None: nothing."""
        report = incarnation.report
        if not incarnation.launch.reports or incarnation.ending is not None:
            return None
        if report is None:  # taken over or begun, and never heard
            return f"silent for {incarnation.silent_s():.0f} s: its main process hangs" if incarnation.hung() else None
        slots = incarnation.board.read() if incarnation.board is not None else []
        own = [slot for slot in slots if slot.pid == incarnation.pid and slot.running is not None]
        age = report.data.get("loop_age_s")
        found = ailment(
            Signs(
                consumes=report.phase == Phase.CONSUMING,
                silent_s=incarnation.silent_s(),
                loop_age_s=float(age) if isinstance(age, int | float) else None,
                stopped=process_state(incarnation.pid) == "T",
                waits=bool(report.data.get("waits")),
                runs_in_loop=bool(own) and report.data.get("pool") == "solo",
                excused=incarnation.at_work(),
                deaf_s=self._deaf_s(unit, incarnation, now),
            )
        )
        if found is None or incarnation.hung():
            self._suspected.pop(incarnation, None)
            return found
        # The scoreboard is of now and the report of some seconds ago: a task that ended in between makes a loop look
        # old. The next report tells.
        return found if incarnation.heard > self._suspected.setdefault(incarnation, incarnation.heard) else None

    def _deaf_s(self, unit: Unit, incarnation: Incarnation, now: float) -> float:
        """How long it has been idle, without any progress, while a queue that it consumes had messages."""
        report = incarnation.report
        if report is None or report.phase != Phase.CONSUMING or report.active or report.reserved:
            self._idle_since.pop(incarnation, None)
            return 0.0
        if now - self._daemon.figures_at > FIGURES_S:
            self._idle_since.pop(incarnation, None)  # the agent is silent: what it last saw proves nothing
            return 0.0
        figures = self._daemon.broker_figures
        up = bool((figures.get("broker") or {}).get("up"))
        waiting = up and any(
            figure.get("depth") and figure.get("name") in report.queues for figure in figures.get("queues", [])
        )
        done = report.data.get("accepted")
        known = self._idle_since.get(incarnation)
        if not waiting or unit.current is not incarnation:
            self._idle_since.pop(incarnation, None)
            return 0.0
        if known is None or known[1] != done:
            self._idle_since[incarnation] = (now, done)
            return 0.0
        return now - known[0]

    def excuse(self) -> None:
        """The daemon itself did not run for a while: what was seen before proves nothing."""
        self._idle_since.clear()
        self._suspected.clear()


async def dump(daemon: Daemon, unit: Unit, incarnation: Incarnation) -> str | None:
    """Have main process and children write their stacks into the log; what they wrote, None: nothing."""
    path = Path(daemon.paths.log(unit.name))
    before = _size(path)
    slots = incarnation.board.read() if incarnation.board is not None else []
    asked = process_state(incarnation.pid) not in "TZX" and incarnation.ref.signal(DUMP_SIGNAL)
    for slot in slots:
        if slot.running is None or slot.pid == incarnation.pid:
            continue
        # The slot of a child that crashed names it for long: its pid may be somebody else's by now.
        child = find(slot.pid, slot.start_ticks)
        if child is not None:
            if process_state(child.pid) != "T":
                asked = child.signal(DUMP_SIGNAL) or asked
            child.close()
    deadline = time.monotonic() + DUMP_S
    size = before
    while asked and time.monotonic() < deadline:
        await asyncio.sleep(POLL_S)
        now = _size(path)
        if now == size > before:
            break  # it has come to rest
        size = now
    return await asyncio.to_thread(_written, path, before) if asked else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _written(path: Path, start: int) -> str | None:
    try:
        with path.open("rb") as file:
            file.seek(start)
            text = file.read(DUMP_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    return text or None
