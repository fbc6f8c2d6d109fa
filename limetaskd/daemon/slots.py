"""The slots of one running worker: told in differences, so that a shrink may wait for its tasks while others go on."""

from __future__ import annotations

from limetaskd.core.channel import Phase
from limetaskd.daemon.incarnation import Incarnation
from limetaskd.daemon.unit import Unit
from limetaskd.errors import CommandError
from limetaskd.plan.model import PoolPlan


def wanted_slots(unit: Unit, pool: PoolPlan) -> int | None:
    """How many slots its running process should have; None when it cannot be told (its next start brings them)."""
    current = unit.current
    if pool.kind != "prefork" or current is None or current.ending is not None:
        return None
    report = current.report
    # One that waits for its broker would answer when that is back: it is told with its first report after that.
    if current.connection is None or report is None or report.phase != Phase.CONSUMING or report.concurrency is None:
        return None
    index = int(unit.name.rsplit(":", 1)[1])
    return pool.slots(index) if index < pool.workers else None


def slots_differ(unit: Unit, pool: PoolPlan) -> bool:
    want = wanted_slots(unit, pool)
    return want is not None and unit.current is not None and have_slots(unit.current) != want


def have_slots(incarnation: Incarnation) -> int:
    """What it was told last, else what it says: the slots that it will have when all that was asked for is done."""
    if incarnation.slots is None and incarnation.report is not None:
        incarnation.slots = incarnation.report.concurrency
    return incarnation.slots or 0


async def set_slots(unit: Unit, pool: PoolPlan) -> None:
    """Grow, or shrink when as many tasks have ended as slots go. Raises CommandError when the worker refuses."""
    want, current = wanted_slots(unit, pool), unit.current
    if want is None or current is None or current.connection is None:
        return
    have = have_slots(current)
    if want == have:
        return
    current.slots = want
    command, slots = ("grow", want - have) if want > have else ("shrink", have - want)
    try:
        await current.connection.call(command, {"slots": slots}, None)
    except CommandError:
        if current.slots == want:
            current.slots = None  # asked again with its next report
        raise
