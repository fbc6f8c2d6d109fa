"""Pause and resume queues: what the commands do, and the end of a pause by its own clock."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from limetaskd.core.settings import Queue
from limetaskd.daemon.audit import OPERATOR
from limetaskd.daemon.pauses import Pause

if TYPE_CHECKING:
    from limetaskd.daemon.daemon import Daemon


def _resolve(daemon: Daemon, names: Sequence[str]) -> list[Queue]:
    return list({queue.name: queue for queue in (daemon.steering.queue(name) for name in names)}.values())


async def pause(
    daemon: Daemon, names: Sequence[str], until: float | None, reason: str | None
) -> list[dict[str, Any]]:
    """Stop consuming queues; done when nothing of them waits in a worker of this host. `until`: unix seconds.

    Raises CommandError for an unknown queue (then nothing is paused), or when a worker did not do it: the pause is in
    force all the same, and the worker is told again.
    """
    queues = _resolve(daemon, names)
    by = OPERATOR.get().as_document()
    for queue in queues:
        daemon.steering.pauses.put(Pause(queue.name, time.time(), until, reason, by))
    await daemon.steering.save()
    for queue in queues:
        state = daemon.steering.pauses.get(queue.name)
        if state is not None:
            daemon.events.emit("queue_paused", **state.as_document(queue.actual))
    await daemon.steering.settle()
    return [_state(daemon, queue, "paused") for queue in queues]


async def resume(daemon: Daemon, names: Sequence[str]) -> list[dict[str, Any]]:
    """Consume queues again; done when the workers that are up do. Raises CommandError as `pause`."""
    queues = _resolve(daemon, names)
    actions = {queue.name: daemon.steering.pauses.drop(queue.name) for queue in queues}
    await daemon.steering.save()
    for queue in queues:
        if actions[queue.name]:
            daemon.events.emit("queue_resumed", queue=queue.actual, by=OPERATOR.get().as_document())
    await daemon.steering.settle()
    return [_state(daemon, queue, "resumed" if actions[queue.name] else "was not paused") for queue in queues]


def _state(daemon: Daemon, queue: Queue, action: str) -> dict[str, Any]:
    pause = daemon.steering.pauses.get(queue.name)
    details = pause.as_document(queue.actual) if pause else {"since": None, "until": None, "reason": None, "by": None}
    return {**details, "queue": queue.actual, "action": action}
