"""How a task ends that did not end by itself: sentence, kill, result, record. Exactly one record for each.

The worker's main process does the rest when it can: it knows the whole message, with the errbacks and chords that
hang on it. When it is frozen, dead, or runs the task itself, the daemon does it, with the agent for the result store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import signal
import socket
import time
from dataclasses import dataclass
from typing import Any

from limetaskd.core.board import BY_DAEMON, BY_DAEMON_DONE, BY_NOBODY, BY_WORKER, WORKER_LOST, Sentence, Slot
from limetaskd.core.jsonlog import timestamp
from limetaskd.core.process import process_lives, process_state
from limetaskd.daemon import postmortem
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.incarnation import Incarnation
from limetaskd.daemon.launch import AGENT
from limetaskd.daemon.orphans import Remains
from limetaskd.daemon.spawner import find
from limetaskd.daemon.unit import Unit
from limetaskd.errors import CommandError

log = logging.getLogger("limetaskd.limits")
execution = logging.getLogger("limetaskd.execution")
execution.setLevel(logging.INFO)  # promised for every task, whatever level was chosen for the rest

# What a main process that is awake gets to see that its child is dead and to deal with it.
SETTLE_S = 5.0
# One that has begun may wait for a slow result store.
SETTLE_BEGUN_S = 60.0
DEATH_S = 5.0
POLL_S = 0.05
AGENT_S = 15.0
RETRY_S = 2.0
RETRY_SOON_S = 0.2
# A worker that has been stopped, or an operator, waits so long for a result store; it is told all the same.
STORE_PATIENCE_S = 10.0
RETRY_FOR_S = 600.0
_MOST_COUNTED = 100  # deaths in one packet to the agent


async def end_task(
    daemon: Daemon, unit: Unit, incarnation: Incarnation, slot: Slot, reason: str, text: str, *,
    resumed: bool = False, **figures: Any,
) -> bool:  # fmt: skip
    """Kill what runs the task of `slot`, for `reason`. False when it ended meanwhile, or somebody else does it.

    `resumed`: its sentence has been written already, by a daemon that died.
    """
    board, running = incarnation.board, slot.running
    if board is None or running is None or not (resumed or board.condemn(slot, reason)):
        return False
    log.error(
        "%s: task %s[%s] %s: its process %d is killed", unit.name, running.name, running.id, text, slot.pid,
        extra={
            "action": "task_killed", "worker": unit.name, "task_id": running.id, "task_name": running.name,
            "reason": reason, "victim": slot.pid, **figures,
        },
    )  # fmt: skip
    daemon.events.emit(
        "task_killed", process=unit.name, pid=slot.pid, task_id=running.id, task_name=running.name,
        task_queue=running.queue, reason=reason, **figures,
    )  # fmt: skip
    status = await asyncio.to_thread(postmortem.status_of, slot.pid)
    report = postmortem.report(
        daemon, unit.name, "task_killed", f"{reason}: {running.name} {text}", slot.pid,
        tasks=[postmortem.task_of(running)], status=status, figures=figures, exit_text="killed by SIGKILL",
    )  # fmt: skip
    daemon.background(report)
    if slot.pid == incarnation.pid:
        return await _end_with_worker(daemon, unit, incarnation, slot, reason, text)
    killed = await _kill(incarnation, slot)
    ended = time.monotonic()
    if not killed or not _still(incarnation, slot):
        return False  # it had just ended, with its record
    await _wait_for_worker(incarnation, slot)
    if incarnation.board is not None and incarnation.board.settle(slot, BY_DAEMON):
        await _tell(daemon, unit, incarnation, slot, reason, text, ended)
    return True


def _still(incarnation: Incarnation, slot: Slot) -> bool:
    """Whether the slot still says that this very task runs."""
    now = incarnation.board.read_slot(slot.index) if incarnation.board is not None else slot
    return now is not None and now.running is not None and slot.running is not None and (
        now.running.started == slot.running.started and now.running.id == slot.running.id
    )


async def _kill(incarnation: Incarnation, slot: Slot) -> bool:
    """SIGKILL of a pool child with all that descends from it; returns when it is dead.

    False when it had ended this task meanwhile: then it lives on, with the next one.
    """
    ref = await asyncio.to_thread(find, slot.pid, slot.start_ticks)
    if ref is None:
        return True
    try:
        ref.signal(signal.SIGSTOP)  # from here on it cannot end the task by itself
        if not _still(incarnation, slot):
            ref.signal(signal.SIGCONT)
            return False
        await asyncio.to_thread(ref.kill_tree)
        await asyncio.to_thread(_wait_dead, ref.pidfd, DEATH_S)
    finally:
        ref.close()
    return True


def _wait_dead(pidfd: int, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


async def _wait_for_worker(incarnation: Incarnation, slot: Slot) -> None:
    """Until the main process has dealt with the death of its child, cannot any more, or takes too long."""
    begin = time.monotonic()
    while incarnation.alive and incarnation.board is not None:
        sentence = incarnation.board.sentence(slot)
        settled = sentence.settled if sentence is not None else BY_NOBODY
        patience = SETTLE_BEGUN_S if settled == BY_WORKER else SETTLE_S
        if settled == BY_NOBODY and process_state(incarnation.pid) == "T":
            return
        if settled not in (BY_NOBODY, BY_WORKER) or time.monotonic() - begin > patience:
            return
        await asyncio.sleep(POLL_S)


async def _end_with_worker(
    daemon: Daemon, unit: Unit, incarnation: Incarnation, slot: Slot, reason: str, text: str
) -> bool:
    """The task runs in the main process (threads, solo): the tombstone first, then the whole worker goes."""
    incarnation.ref.signal(signal.SIGSTOP)  # from here on it cannot end by itself
    if not _still(incarnation, slot):
        incarnation.ref.signal(signal.SIGCONT)
        return False
    incarnation.ended_for = f"{reason}: {slot.running.name if slot.running else ''}"
    if incarnation.board is not None and incarnation.board.settle(slot, BY_DAEMON):
        await _tell(daemon, unit, incarnation, slot, reason, text, time.monotonic())
    await incarnation.kill()
    return True


async def _tell(
    daemon: Daemon, unit: Unit, incarnation: Incarnation, slot: Slot, reason: str, text: str, ended: float | None
) -> None:
    """`finish`, then the mark that it is done. It goes on by itself when that takes longer than `STORE_PATIENCE_S`.

    The mark is for the next daemon: a slot may go on naming the task for as long as its worker lives.
    """

    async def tell() -> None:
        await finish(daemon, unit.name, slot, reason, text, ended)
        if incarnation.board is not None:
            incarnation.board.settle(slot, BY_DAEMON_DONE)

    telling = daemon.background(tell())
    incarnation.telling.add(telling)
    telling.add_done_callback(incarnation.telling.discard)
    await asyncio.wait([telling], timeout=STORE_PATIENCE_S)


async def resume(daemon: Daemon, unit: Unit, incarnation: Incarnation, slot: Slot, reason: str, text: str) -> None:
    """A daemon that died had killed what ran this task, or was about to, and had begun to say so, or had said it."""
    sentence = incarnation.board.sentence(slot) if incarnation.board is not None else None
    if sentence is not None and sentence.settled == BY_DAEMON:
        if not await _recorded(daemon, [slot]):
            await _tell(daemon, unit, incarnation, slot, reason, text, None)
        elif incarnation.board is not None:
            incarnation.board.settle(slot, BY_DAEMON_DONE)
    if slot.pid == incarnation.pid:
        incarnation.ended_for = f"{reason}: {slot.running.name if slot.running else ''}"
        await incarnation.kill()


async def finish(
    daemon: Daemon, name: str, slot: Slot, reason: str, text: str, ended: float | None
) -> None:
    """Tombstone, FAILURE and the record of a task that nobody else can finish. `ended`: monotonic s; None: unknown.

    Waits for the agent and the result store: until the record is written, the next daemon knows that there is work.
    """
    running = slot.running
    assert running is not None
    params = {"id": running.id, "reason": reason, "text": f"{running.name}: {text}"}
    record(daemon, slot, await _store(daemon, name, params), reason, ended)


def record(daemon: Daemon, slot: Slot, outcome: str, reason: str | None, ended: float | None) -> None:
    """The execution record that the worker could not write. `ended`: monotonic s; None: not known."""
    running = slot.running
    assert running is not None
    begin = running.started_monotonic
    fields: dict[str, Any] = {
        "task_id": running.id,
        "task_name": running.name,
        "task_queue": running.queue or None,
        "task_user_id": running.user,
        "task_latency_ms": running.latency_ms,
        "task_duration_ms": round(max(0.0, ended - begin) * 1000, 3) if ended and begin else None,
        "task_outcome": outcome,
        "application": daemon.plan.settings.application,
    }
    if outcome == "FAILURE":
        fields["task_failure_reason"] = reason
    level, word = (logging.WARNING, "failed") if outcome == "FAILURE" else (logging.INFO, "succeeded")
    execution.log(level, "task %s[%s] %s", running.name, running.id, word, extra=fields)


async def ask_agent(daemon: Daemon, command: str, params: dict[str, Any]) -> dict[str, Any]:
    """Raises CommandError, with the reason."""
    agent = daemon.units[AGENT].current
    if agent is None or agent.connection is None:
        raise CommandError("the agent that talks to the broker is not up: try again, see limetaskctl status")
    return await agent.connection.call(command, params, AGENT_S)


async def _store(daemon: Daemon, name: str, params: dict[str, Any]) -> str:
    """The state that the result store says then. Tries for `RETRY_FOR_S`, at first often: the agent may just start."""
    begun = time.monotonic()
    said = False
    while True:
        try:
            return str((await ask_agent(daemon, "end_task", params)).get("state", "FAILURE"))
        except CommandError as error:
            waited = time.monotonic() - begun
            if waited > RETRY_FOR_S:
                log.error("the end of task %s could not be stored: whoever waits for its result waits on", params["id"])
                return "FAILURE"
            if waited > RETRY_S and not said:
                said = True
                log.error("%s: the end of task %s is not stored yet: %s", name, params["id"], error)
        await asyncio.sleep(RETRY_SOON_S if waited < STORE_PATIENCE_S else RETRY_S)


@dataclass(frozen=True)
class Case:
    """A task that ran when its worker died. `reason`: it had been sentenced; `own`: it may have caused the death."""

    slot: Slot
    reason: str | None
    own: bool


async def account(daemon: Daemon, unit: Unit, incarnation: Incarnation, how: str) -> None:
    """After the death of a main process: what its scoreboard says of the tasks that ran.

    Own deaths count against a task; our stops, rolls and drains do not.
    """
    board = incarnation.board
    if board is None:
        return
    await _children_dead(incarnation)
    by_itself = incarnation.ending is None and incarnation.ended_for is None
    cases = []
    for slot in board.read():
        sentence = board.sentence(slot)
        # A main process that hung by itself took its children along: only what ran in it has a part in that.
        own = by_itself and (incarnation.hung_for is None or slot.pid == incarnation.pid)
        if is_open(slot, sentence) and board.settle(slot, BY_DAEMON):
            cases.append(Case(slot, sentence.reason if sentence is not None else None, own))
    if by_itself and incarnation.hung_for is None:
        said = incarnation.last_word
        why = f"{how}: {said}" if said else how
        tasks = [postmortem.task_of(case.slot.running) for case in cases if case.slot.running is not None]
        daemon.background(
            postmortem.report(daemon, unit.name, "crash", why, incarnation.pid, tasks=tasks, exit_text=how)
        )
    await _conclude(daemon, unit.name, cases, how, time.monotonic(), stopped=incarnation.ending is not None)
    while incarnation.telling:
        await asyncio.wait(incarnation.telling)


async def account_absent(daemon: Daemon, dead: list[Remains]) -> None:
    """As `account`, for workers that died while no daemon ran: who killed them is not known, so no task is to blame."""
    deadline = time.monotonic() + RETRY_FOR_S
    while (agent := daemon.units[AGENT].current) is None or agent.connection is None:
        # The result store knows whether a task had ended after all.
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(POLL_S)
    known = await _recorded(daemon, [slot for remains in dead for slot, _ in remains.slots])
    for remains in dead:
        daemon.background(_account_absent(daemon, remains, known))


async def _account_absent(daemon: Daemon, remains: Remains, known: set[str]) -> None:
    """Of one of them; `known`: ids of tasks whose end has been told."""
    cases = [
        Case(slot, sentence.reason if sentence is not None else None, own=False)
        for slot, sentence in remains.slots
        if is_open(slot, sentence, daemon_died=True) and slot.running and slot.running.id not in known
    ]
    await _conclude(daemon, remains.name, cases, "under the daemon before this one, or after it", None)
    await asyncio.to_thread(remains.remove)


def is_open(slot: Slot, sentence: Sentence | None, *, daemon_died: bool = False) -> bool:
    """Whether the slot names a task whose end nobody has dealt with. `daemon_died`: one that had begun with it has."""
    begun = (BY_NOBODY, BY_WORKER, BY_DAEMON) if daemon_died else (BY_NOBODY, BY_WORKER)
    return slot.running is not None and (sentence is None or sentence.settled in begun)


async def _conclude(
    daemon: Daemon, name: str, cases: list[Case], how: str, ended: float | None, *, stopped: bool = False
) -> None:
    """Finish what will not run again; of the others, count the deaths that are their fault. `stopped`: by us."""
    finishing = []
    end = f"its worker {'was stopped before it had ended' if stopped else 'died'} ({how})"
    deaths: dict[str, tuple[Slot, dict[str, Any] | None]] = {}
    for case in cases:
        running = case.slot.running
        assert running is not None
        if case.reason is not None or running.early_ack:
            reason = case.reason or WORKER_LOST
            finishing.append(finish(daemon, name, case.slot, reason, end, ended))
            continue
        daemon.events.emit(
            "task_redelivered", process=name, task_id=running.id, task_name=running.name, reason=how
        )
        death = {"at": timestamp(time.time()), "host": socket.gethostname(), "worker": name, "by": how}
        deaths[running.id] = (case.slot, death if case.own else None)  # None: no fault
    # At once: a result store that takes no FAILURE must not keep a task that kills its workers from quarantine.
    counted = list(deaths.items())
    portions = [dict(counted[begin : begin + _MOST_COUNTED]) for begin in range(0, len(counted), _MOST_COUNTED)]
    await asyncio.gather(*finishing, *(_count(daemon, portion) for portion in portions))


async def _count(daemon: Daemon, deaths: dict[str, tuple[Slot, dict[str, Any] | None]]) -> None:
    """Count the deaths under tasks; those that had stored their result, and died before their record, get that here."""
    params = {"deaths": [{"id": task_id, "death": death} for task_id, (_, death) in deaths.items()]}
    deadline = time.monotonic() + RETRY_FOR_S
    while True:
        try:
            reply = await ask_agent(daemon, "count_deaths", params)
            break
        except CommandError as error:
            if time.monotonic() > deadline:
                log.error("the deaths under %s could not be counted: %s", list(deaths), error)
                return
            await asyncio.sleep(RETRY_S)
    counts = reply.get("counts") or {}
    if counts:
        log.warning("workers died under tasks, deaths so far: %s", counts, extra={"action": "task_deaths"})
    done = reply.get("done") or ()
    known = await _recorded(daemon, [deaths[task_id][0] for task_id in done]) if done else ()
    for task_id in done:
        if task_id not in known:
            record(daemon, deaths[task_id][0], "SUCCESS", None, None)


async def _recorded(daemon: Daemon, slots: list[Slot]) -> set[str]:
    """Ids of the tasks that run in these slots, and whose end is in a log of this host all the same."""
    since = {slot.running.id: slot.running.started for slot in slots if slot.running is not None}
    return await asyncio.to_thread(postmortem.recorded, daemon.paths.logs, since)


async def _children_dead(incarnation: Incarnation) -> None:
    """Pool children die with their main process, a moment later; what they did in that moment counts."""
    board = incarnation.board
    deadline = time.monotonic() + DEATH_S
    while board is not None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # nobody can tell now: look again
            if not any(process_lives(slot.pid, slot.start_ticks) for slot in board.read()):
                return
        await asyncio.sleep(POLL_S)
