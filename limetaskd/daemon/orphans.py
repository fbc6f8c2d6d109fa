"""What a dead daemon left behind: found by the processes' own records, and taken over or ended."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from limetaskd.core.board import Board, Sentence, Slot
from limetaskd.core.documents import loads
from limetaskd.core.peer import peer_pid
from limetaskd.core.process import known_place, process_start_ticks
from limetaskd.core.record import ProcessRecord
from limetaskd.daemon import files, rolling
from limetaskd.daemon.incarnation import ADOPTED, BOARD_PATIENCE_S, Incarnation, Launch
from limetaskd.daemon.launch import STOP_MARGIN_S, Paths
from limetaskd.daemon.spawner import Exit, ProcessRef, find
from limetaskd.daemon.unit import Unit
from limetaskd.errors import CommandError, LimetaskError

if TYPE_CHECKING:
    from limetaskd.daemon.daemon import Daemon

log = logging.getLogger("limetaskd.orphans")

SERVER_PATIENCE_S = 2.0
SERVER_POLL_S = 0.05


@dataclass(frozen=True)
class Orphan:
    record: ProcessRecord
    ref: ProcessRef
    recorded: float  # when it wrote its record, wall clock


@dataclass(frozen=True)
class Remains:
    """What the scoreboard of a worker says that died while no daemon ran: the slots that ran a task.

    Record and scoreboard stay until that is dealt with: this daemon may die, too.
    """

    name: str
    generation: int
    slots: list[tuple[Slot, Sentence | None]]
    paths: tuple[Path, ...]

    def remove(self) -> None:
        for path in self.paths:
            path.unlink(missing_ok=True)


def folders_left(paths: Paths) -> dict[str, str] | None:
    """The folders in which processes of a daemon that died run on; None: in no other ones than `paths` says.

    Somebody has changed the file meanwhile: a daemon in other folders would start everything once more. With the
    configuration file of that daemon, as "config_file".
    """
    of_runtime, of_state = paths.folders
    if _any_lives(paths):
        # Our processes; whoever else has written into our state_dir does not matter.
        left = _folders_in(of_runtime)
        return left if left is not None and left["state_dir"] != paths.state_dir else None
    left = _folders_in(of_state)
    elsewhere = left is not None and _any_lives(Paths(left["runtime_dir"], left["state_dir"]))
    return left if elsewhere else None


def _folders_in(place: str) -> dict[str, str] | None:
    try:
        document = loads(files.read(place) or "null")
        return None if document is None else {
            key: str(document[key]) for key in ("runtime_dir", "state_dir", "config_file")
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: %s; processes that a dead daemon left in other folders are not looked for", place, error)
        return None


def _any_lives(paths: Paths) -> bool:
    for path in Path(paths.processes).glob("*.json"):
        try:
            record = ProcessRecord.from_json(path.read_text())
        except (OSError, ValueError):
            continue  # set aside by the daemon that takes over
        if record.lives():
            return True
    return False


def find_all(paths: Paths) -> tuple[list[Orphan], list[Remains], dict[str, int]]:
    """Every living process with a record, newest generation first; what the dead ran; and numbers that are taken.

    Removes what is left of all others. A record that cannot be read is set aside: the process, if there is one,
    cannot be known without it, but its generation is in the name of the file. Raises OSError when nobody can tell
    which live.
    """
    found: list[Orphan] = []
    remains: list[Remains] = []
    taken: dict[str, int] = {}
    kept: set[str] = set()  # scoreboards
    place = known_place()
    for path in sorted(Path(paths.processes).glob("*.json")):
        _take(taken, path.stem)
        try:
            record = ProcessRecord.from_json(path.read_text())
            recorded = path.stat().st_mtime
        except (ValueError, OSError) as error:
            log.error("%s: %s; set aside as %s", path, error, files.set_aside(str(path)))
            continue
        ref = None
        if record.may_live(place):  # else it was another boot's
            ref = find(record.pid, record.start_ticks)
            if ref is None:
                log.warning(
                    "%s (pid %d) has died; what it ran is seen to now", record.name, record.pid,
                    extra={"action": "found_dead", "worker": record.name},
                )  # fmt: skip
        if ref is not None:
            found.append(Orphan(record, ref, recorded))
        elif slots := _slots(record):
            board = (Path(record.board),) if record.board else ()
            remains.append(Remains(record.name, record.generation, slots, (path, *board)))
        else:
            path.unlink(missing_ok=True)
            continue
        if record.board:
            kept.add(record.board)
    for path in Path(paths.boards).iterdir():
        _take(taken, path.name)  # a process that has not written its record yet
        if str(path) not in kept:
            path.unlink(missing_ok=True)
    found.sort(key=lambda orphan: -orphan.record.generation)
    return found, sorted(remains, key=lambda dead: dead.generation), taken


def _take(taken: dict[str, int], name: str) -> None:
    name, _, number = name.rpartition(".")
    if number.isdecimal():
        taken[name] = max(taken.get(name, 0), int(number))


def remove_record(path: str, pid: int) -> None:
    """Of a process that is dead. A stranger may have had the number, and the file, of one that lives."""
    try:
        record = ProcessRecord.from_json(Path(path).read_text())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        log.warning("%s stays: %s", path, error)
        return
    if record.pid == pid:
        files.remove(path)


def _slots(record: ProcessRecord) -> list[tuple[Slot, Sentence | None]]:
    """What a dead process ran."""
    board = _board(record)
    if board is None:
        return []
    try:
        return [(slot, board.sentence(slot)) for slot in board.read() if slot.running is not None]
    finally:
        board.close()


def _launch(record: ProcessRecord) -> Launch:
    """How the process was started, as far as its end needs it."""
    return Launch(
        argv=(),
        env={},
        log_path=record.log,
        stop_timeout_s=record.shutdown_timeout_s + STOP_MARGIN_S,
        board_path=record.board,
        fingerprint=record.fingerprint,
        concurrency=record.concurrency,
    )


def _board(record: ProcessRecord) -> Board | None:
    if record.board is None:
        return None
    try:
        board = Board.open(record.board)
    except (OSError, ValueError) as error:
        log.warning("%s: its scoreboard %s cannot be read: %s", record.name, record.board, error)
        return None
    board.patience_s = BOARD_PATIENCE_S
    return board


def take_over(daemon: Daemon, found: list[Orphan], stopped: set[str]) -> None:
    """Adopt each process that the plan still wants as it is; the others finish their tasks and go.

    `stopped`: names that an operator had stopped; what still runs of them goes on finishing.

    A name that is not in the plan any more, an older process of a name, or one that was started with other settings
    drains. But where two of a worker live, the newer one may have been about to succeed the older one: that one goes
    on until the newer one consumes, as in any restart. A schedule is never run beside another: with other settings it
    is killed first, it holds no tasks. After an upgrade, schedule and agent are replaced: they run our code alone.
    """
    elders = set()
    for orphan in found:
        record = orphan.record
        unit = daemon.units.get(record.name)
        if unit is None:
            unit = daemon.add_leftover(record.name, record.kind)
        incarnation = daemon.nursery.take_over(unit, _launch(record), record.generation, orphan.ref, _board(record))
        incarnation.started = started_at(record.start_ticks, orphan.recorded)
        unit.generation = max(unit.generation, record.generation)
        newest = unit.current
        if newest is not None and unit.kind == "worker" and unit.name not in elders:
            elders.add(unit.name)
            _pair(daemon, unit, incarnation, newest)
            log.info(
                "%s: pid %d goes on until pid %d consumes", record.name, record.pid, newest.pid,
                extra={"action": "adopted"},
            )  # fmt: skip
            continue
        outdated = daemon.upgraded and record.kind != "worker"
        wanted = newest is None and not outdated and not unit.leftover and record.name not in stopped
        if wanted and unit.launch(record.generation).fingerprint == record.fingerprint:
            unit.adopt(incarnation)
            log.info("%s: pid %d runs on, taken over", record.name, record.pid, extra={"action": "adopted"})
            continue
        log.info("%s: pid %d finishes its tasks and goes", record.name, record.pid, extra={"action": "leftover"})
        unit.leaving.append(incarnation)
        incarnation.end(now=record.kind != "worker")


def _pair(daemon: Daemon, unit: Unit, elder: Incarnation, newest: Incarnation) -> None:
    """The restart that the dead daemon had begun goes on: `newest` takes the name when it consumes.

    When it had ended already, `elder` says that it drains: then `newest` takes the name at once.
    """
    unit.current, unit.successor = elder, newest

    def over(_task: object) -> None:
        unit.rolling = None

    unit.rolling = daemon.background(_complete(daemon, unit, newest))
    unit.rolling.add_done_callback(over)


async def _complete(daemon: Daemon, unit: Unit, newest: Incarnation) -> None:
    try:
        await rolling.complete(daemon, unit, newest)
    except CommandError as error:
        log.error("%s", error)


def let_go(daemon: Daemon) -> None:
    """After a start that failed: what was taken over runs on for the next daemon, as if there had been none here."""
    loop = asyncio.get_running_loop()
    for unit in daemon.units.values():
        if unit.rolling is not None:
            unit.rolling.cancel()
        for incarnation in unit.processes():
            if incarnation.origin != ADOPTED:
                continue
            loop.remove_reader(incarnation.ref.pidfd)
            incarnation.ref.close()  # no signal reaches it any more
            incarnation.exited.set_result(Exit())  # nobody here waits for it
            if incarnation.board is not None:
                incarnation.board.close()
                incarnation.board = None
            unit.let_go(incarnation)
            log.info("%s: pid %d runs on without a daemon", unit.name, incarnation.pid, extra={"action": "let_go"})


def started_at(start_ticks: int, recorded: float) -> float:
    """When a process became what it is, on our monotonic clock: at its start (clock ticks since boot) by exec.

    One that an image had forked ahead waited first: it wrote its record (`recorded`, wall clock) when it was called.
    """
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - max(0.0, min(age_s, time.time() - recorded))


def _connect(sock: socket.socket, path: str) -> None:
    """Raises OSError. Tries again while the queue of those who want to be accepted is full."""
    deadline = time.monotonic() + SERVER_PATIENCE_S
    while True:
        try:
            sock.connect(path)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(SERVER_POLL_S)


def embedded_server(socket_path: str) -> ProcessRef | None:
    """The server that already serves `socket_path`, told by the kernel (SO_PEERCRED); None when nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(SERVER_PATIENCE_S)
        try:
            _connect(sock, socket_path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            # To start a second one beside it would be the end of its data.
            raise LimetaskError(f"the embedded server may run, and {socket_path} cannot be reached: {error}") from error
        pid = peer_pid(sock)
    ticks = process_start_ticks(pid)
    return find(pid, ticks) if ticks is not None else None
