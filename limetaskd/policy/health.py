"""Whether a worker's main process hangs or is silently deaf (pure: all signs are parameters).

Healthy, whatever it looks like: one that waits for its broker, drains, has all its children busy, holds rate-limited
or ETA tasks, waits for its result store, or runs tasks within their limits in the main process itself.
"""

from __future__ import annotations

from dataclasses import dataclass

# Reports come every 5 s from a thread that nothing but the GIL can hold up.
SILENT_S = 30.0
# The first comes before the imports of tasks, but on a busy host an interpreter may need long for its own.
FIRST_WORD_S = 120.0
# A task without a limit that holds the GIL of its worker: this long it may be at work.
SILENT_BUSY_S = 300.0
# Even an idle event loop turns every few seconds.
LOOP_S = 45.0
# An idle consumer whose queue has messages gets one at once.
DEAF_S = 60.0


@dataclass(frozen=True)
class Signs:
    """What is known of one main process. Ages in seconds."""

    consumes: bool
    silent_s: float
    loop_age_s: float | None = None  # as it said in its last report; None: it does not say
    stopped: bool = False  # by a signal
    waits: bool = False  # for its result store
    runs_in_loop: bool = False  # a task runs in the event loop (solo)
    excused: bool = False  # tasks in the main process are within their limits, so silence proves nothing
    deaf_s: float = 0.0  # idle all this time, while its queue had messages


def ailment(signs: Signs) -> str | None:
    """In words for the log what is wrong; None: nothing is."""
    if signs.silent_s > SILENT_S:
        if signs.stopped:
            return f"its main process is stopped, silent for {signs.silent_s:.0f} s"
        if not signs.excused:
            return f"silent for {signs.silent_s:.0f} s: its main process hangs"
        return None
    if not signs.consumes or signs.waits:
        return None
    if signs.loop_age_s is not None and signs.loop_age_s > LOOP_S and not signs.runs_in_loop:
        return f"its event loop has not turned for {signs.loop_age_s:.0f} s"
    if signs.deaf_s > DEAF_S:
        return f"idle for {signs.deaf_s:.0f} s while its queue has messages: deaf"
    return None
