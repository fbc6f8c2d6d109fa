"""The rolling restart of a unit: a successor consumes before the current process leaves."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from limetaskd.daemon import engine
from limetaskd.daemon.incarnation import Incarnation
from limetaskd.daemon.unit import START_TIMEOUT_S, Unit
from limetaskd.errors import CommandError, LimetaskError

if TYPE_CHECKING:
    from limetaskd.daemon.daemon import Daemon

BROKER_PATIENCE_S = 15.0  # for a successor that waits for its broker: what it was told may be wrong


async def roll(daemon: Daemon, unit: Unit) -> None:
    """Restart `unit`, as a task of its own: `stop` may cancel it without cancelling who asked for it.

    A unit that is down is started; one whose main process hangs is killed first: it holds what it reserved.
    Raises CommandError when it fails.
    """
    task = daemon.background(_restart(daemon, unit), report=False)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        raise
    if task.cancelled():
        raise CommandError(f"{unit.name} was stopped meanwhile")
    error = task.exception()
    if error is not None:
        raise error


async def _restart(daemon: Daemon, unit: Unit) -> None:
    if unit.rolling is not None:
        raise CommandError(f"{unit.name} is being restarted already")
    if unit.state == engine.STOPPING or daemon.stopping:
        raise CommandError(f"{unit.name} is being stopped")
    unit.rolling = asyncio.current_task()
    try:
        if unit.current is not None and unit.current.hung():
            await unit.current.kill()
        if unit.current is None:
            unit.start()
            await unit.started()
        elif unit.kind in {"worker", "image"}:
            await _succeed(daemon, unit)
        else:
            unit.exchange()
            await unit.started()
    finally:
        unit.rolling = None


async def _succeed(daemon: Daemon, unit: Unit) -> None:
    birth = daemon.background(unit.bear_successor(), report=False)
    try:
        successor: Incarnation = await asyncio.shield(birth)
    except (OSError, LimetaskError) as error:
        raise CommandError(f"{unit.name}: no new process could be started: {error}") from error
    except asyncio.CancelledError:
        # Stopped at this very moment: what is being born must not stay behind.
        birth.add_done_callback(lambda done: _unwanted(unit, done))
        raise
    await complete(daemon, unit, successor)


async def complete(daemon: Daemon, unit: Unit, successor: Incarnation) -> None:
    """Wait until the successor consumes, then it takes the name. Raises CommandError: it is ended then."""
    begun = time.monotonic()
    try:
        while not successor.consumes and unit.current is not successor:
            said = successor.report.reason if successor.report else None
            if not successor.alive:
                raise CommandError(
                    f"{unit.name}: the new process died ({said or successor.exited.result()}); the old one goes on"
                )
            waited = time.monotonic() - begun
            if waited > (BROKER_PATIENCE_S if successor.waits_for_broker else START_TIMEOUT_S):
                raise CommandError(
                    f"{unit.name}: the new process does not consume after {waited:.0f} s"
                    f"{f' ({said})' if said else ''}; the old one goes on"
                )
            await unit.changed(1.0)
        if unit.state == engine.STOPPING or daemon.stopping:
            raise CommandError(f"{unit.name} was stopped meanwhile")
    except BaseException:
        unit.give_up(successor)
        raise
    if unit.current is successor:  # the old one died meanwhile
        await unit.started()
    else:
        unit.succeed()


def _unwanted(unit: Unit, birth: asyncio.Task[Incarnation]) -> None:
    if not birth.cancelled() and birth.exception() is None:
        unit.give_up(birth.result())
