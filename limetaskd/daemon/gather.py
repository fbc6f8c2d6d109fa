"""One action on several units: all are tried, every failure is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from limetaskd.daemon.unit import Unit
from limetaskd.errors import CommandError


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
