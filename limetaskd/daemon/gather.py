"""One action on several units: all are tried, every failure is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from limetaskd.daemon.unit import Unit
from limetaskd.errors import CommandError

if TYPE_CHECKING:
    from limetaskd.daemon.daemon import Daemon


async def each(units: Sequence[Unit], action: Callable[[Unit], Awaitable[str]]) -> dict[str, Any]:
    """Run `action` on all units at once. Raises CommandError with every reason when one fails."""
    unique = list(dict.fromkeys(units))
    outcomes = await asyncio.gather(*(action(unit) for unit in unique), return_exceptions=True)
    failures = []
    changed = []
    for unit, outcome in zip(unique, outcomes, strict=True):
        if isinstance(outcome, CommandError):
            failures.append(str(outcome))
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            changed.append({"name": unit.name, "action": outcome, "state": unit.state_name})
    if failures:
        raise CommandError("; ".join(failures))
    return {"changed": changed}


async def roll(daemon: Daemon, unit: Unit) -> None:
    """A rolling restart as a task of its own: `stop` may cancel it without cancelling who asked for it."""
    task = daemon.background(unit.restart(), report=False)
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
