"""The daemon's commands that need the event loop: grow, shrink and retire here, those about queues in queues.py."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from billiard.pool import RUN

from limetaskd.core.channel import Command
from limetaskd.errors import CommandError
from limetaskd.worker import queues
from limetaskd.worker.runtime import one_line

logger = logging.getLogger(__name__)


def run_commands(consumer: Any) -> None:
    """Carry out what has arrived; a refused or failed command never disturbs the worker.

    Raises connection errors, after the reply: the consumer connects again.
    """
    runtime = consumer.lime
    queues.settle(consumer)
    if runtime.drain.requested:
        _refuse_while_draining(consumer)
        return
    while runtime.inbox:
        if runtime.cancelling and runtime.inbox[0].command in {"consume", "cancel"}:
            break  # kombu would end the new consumer of a queue together with the old one
        command = runtime.inbox.popleft()
        handler = _COMMANDS.get(command.command)
        if handler is None:
            runtime.reply(command, error=f"unknown command {command.command!r}")
            continue
        try:
            handler(consumer, command)
        except CommandError as error:
            runtime.reply(command, error=str(error))
        except (*consumer.connection_errors, *consumer.channel_errors) as error:
            runtime.reply(command, error=one_line(f"the broker: {error}"))
            raise
        except Exception as error:
            logger.exception("command %s failed", command.command)
            runtime.reply(command, error=one_line(f"{type(error).__name__}: {error}"))
    if runtime.shrinking:
        _shrink_idle(consumer)
    if runtime.retiring:
        _retire_idle(consumer)


def _refuse_while_draining(consumer: Any) -> None:
    """What changes consumers or slots would begin to consume again: only questions are answered."""
    runtime = consumer.lime
    for command, _ in runtime.shrinking:
        runtime.reply(command, error="this worker drains")
    runtime.shrinking.clear()
    while runtime.inbox:
        command = runtime.inbox.popleft()
        if command.command == "held":
            queues.held(consumer, command)
        else:
            runtime.reply(command, error="this worker drains")


def _slots(consumer: Any, command: Command) -> int:
    slots = command.params.get("slots")
    if not isinstance(slots, int) or isinstance(slots, bool) or slots < 1:
        raise CommandError(f"`slots` must be a number of slots, at least 1, not {slots!r}")
    if not hasattr(getattr(consumer.pool, "_pool", None), "_all_inqueues"):
        raise CommandError("only prefork pools can be resized in place: this worker must be restarted")
    return slots


def _grow(consumer: Any, command: Command) -> None:
    slots = _slots(consumer, command)
    runtime = consumer.lime
    # What still waits to shrink is paid first.
    while slots and runtime.shrinking:
        waiting, left = runtime.shrinking.pop()
        paid = min(left, slots)
        slots -= paid
        if left > paid:
            runtime.shrinking.append((waiting, left - paid))
        else:
            runtime.reply(waiting, error="undone by a later grow")
    if slots:
        consumer.pool.grow(slots)
        consumer.pool.maintain_pool()
        _follow_prefetch(consumer, slots)
    runtime.reply(command, result={"slots": consumer.pool.num_processes})
    logger.info("grown to %d slots", consumer.pool.num_processes, extra={"action": "grow"})


def _shrink(consumer: Any, command: Command) -> None:
    slots = _slots(consumer, command)
    runtime = consumer.lime
    left = consumer.pool.num_processes - sum(count for _, count in runtime.shrinking) - slots
    if left < 1:
        raise CommandError(f"a worker keeps at least one slot (it has {consumer.pool.num_processes})")
    runtime.shrinking.append((command, slots))
    runtime.changed()


def _shrink_idle(consumer: Any) -> None:
    """Let as many idle children go as are wanted; the rest at later turns, when their tasks have ended."""
    runtime = consumer.lime
    pool = consumer.pool._pool
    if pool._state != RUN:
        return
    while runtime.shrinking:
        command, left = runtime.shrinking[0]
        while left:
            child = _idle_child(pool)
            if child is None:
                runtime.shrinking[0] = (command, left)
                return
            # From here on nothing is written to it: what Celery calls idle may have a task on its way.
            pool._all_inqueues.discard(child.inqW_fd)
            pool._processes -= 1
            pool._putlock.shrink()
            child.terminate_controlled()
            _follow_prefetch(consumer, -1)
            left -= 1
        runtime.shrinking.pop(0)
        runtime.reply(command, result={"slots": consumer.pool.num_processes})
        logger.info("shrunk to %d slots", consumer.pool.num_processes, extra={"action": "shrink"})


def _idle_child(pool: Any) -> Any:
    for child in reversed(pool._pool):
        if child.inqW_fd in pool._all_inqueues and _is_idle(pool, child):
            return child
    return None


def _is_idle(pool: Any, child: Any) -> bool:
    return child.inqW_fd not in pool._busy_workers and child.inqW_fd not in pool._active_writes


def _retire(consumer: Any, command: Command) -> None:
    """Replace a pool child after its current task. From here on it gets no other one."""
    pool: Any = getattr(consumer.pool, "_pool", None)
    if not hasattr(pool, "_all_inqueues"):
        raise CommandError("only prefork pools have children to replace")
    pid = command.params.get("pid")
    child = next((child for child in pool._pool if child.pid == pid), None)
    if child is None:
        raise CommandError(f"no pool child {pid!r}")
    pool._all_inqueues.discard(child.inqW_fd)
    # The pool compares the numbers of both: one that is only busy would keep an idle child from work.
    pool._busy_workers.discard(child.inqW_fd)
    consumer.lime.retiring[child.pid] = command


def _has_work(pool: Any, child: Any) -> bool:
    """Whether a job is being written to that child, waits in its pipe, or runs there."""
    return child.inqW_fd in pool._active_writes or any(
        child in (job._write_to, job._scheduled_for) or child.pid in job.worker_pids()
        for job in list(pool._cache.values())
        if not job.ready()
    )


def _retire_idle(consumer: Any) -> None:
    runtime = consumer.lime
    pool = consumer.pool._pool
    children = {child.pid: child for child in pool._pool}
    for pid in list(runtime.retiring):
        child = children.get(pid)
        if child is not None and _has_work(pool, child):
            continue
        if child is not None:
            child.terminate_controlled()  # the pool makes another one
        runtime.reply(runtime.retiring.pop(pid), result={"pid": pid})
        logger.info("pool child %d goes, another one comes", pid, extra={"action": "retire"})


def _follow_prefetch(consumer: Any, change: int) -> None:
    consumer._update_prefetch_count(change)
    if consumer.qos_global is False:
        queues.consume_anew(consumer, consumer.initial_prefetch_count)


_COMMANDS: dict[str, Callable[[Any, Command], None]] = {
    "grow": _grow,
    "shrink": _shrink,
    "retire": _retire,
    "consume": queues.consume,
    "cancel": queues.cancel,
    "held": queues.held,
}
