"""USR2 and `limetaskctl upgrade`: the newly installed code is rehearsed, then the daemon replaces itself in place.

`execv`: same pid, so its children stay its children and the service manager notices nothing. Workers run on and are
taken over like those of a dead daemon, by their own records; helpers that run the daemon's code (image, agent,
schedule) are replaced by new ones.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limetaskd.core.record import ProcessRecord
from limetaskd.core.redact import redact_text
from limetaskd.daemon import files, unstored
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.embedded import find_server
from limetaskd.daemon.incarnation import launch_environment
from limetaskd.daemon.launch import BOOT, Paths
from limetaskd.daemon.lock import LOCK_VARIABLE
from limetaskd.daemon.logpump import check_destination
from limetaskd.daemon.pools import Scales
from limetaskd.daemon.privileges import prepare_folders
from limetaskd.daemon.spawner import Exit, ProcessRef, spawn
from limetaskd.daemon.steering import parse_saved
from limetaskd.daemon.succession import Memory
from limetaskd.daemon.unit import EX_CONFIG
from limetaskd.errors import CommandError, LimetaskError
from limetaskd.plan.held import HELD_VARIABLE, values_of
from limetaskd.plan.model import Plan

log = logging.getLogger("limetaskd.upgrade")

# Task modules may need long for their imports, and each environment of pools imports them once.
REHEARSAL_TIMEOUT_S = 180.0
REHEARSAL_LOG = "rehearsal.log"
KILLED_S = 5.0
BIRTHS_S = 5.0
BIRTH_POLL_S = 0.02
REASON = "limetaskd: "  # what begins so in a rehearsal's output is meant for the operator
_REASON_LINES = 5


def interpreter() -> list[str]:
    """Our interpreter. An isolated one stays so: PYTHONPATH and the current directory may hold another pydantic."""
    return [sys.executable, *(["-I"] if sys.flags.isolated else [])]


def command_line(plan: Plan) -> list[str]:
    """How this daemon was started, as a command that runs the code that is installed now, from any folder."""
    command = [*interpreter(), "-m", "limetaskd.daemon.main", "--config", plan.config_file or ""]
    return [*command, *(["--embedded"] if plan.embedded else []), *(["--daemon"] if plan.detached else [])]


async def upgrade_on_request(daemon: Daemon) -> None:
    """For SIGUSR2, for ever: nobody waits for the outcome, so it goes to the log."""
    while True:
        await daemon.upgrade_requested.wait()
        daemon.upgrade_requested.clear()
        try:
            daemon.require_running()
            await upgrade(daemon)
        except (LimetaskError, OSError) as error:
            log.error("the upgrade is refused, the running version goes on: %s", error)
        except Exception:
            # A fault of ours must not make every later SIGUSR2 unheard.
            log.exception("the upgrade failed, the running version goes on")


async def upgrade(daemon: Daemon) -> dict[str, Any]:
    """Rehearse, then let the loop end so that `main` can exec. Raises CommandError; then nothing has changed."""
    async with daemon.change_lock:
        _require_calm(daemon)
        daemon.events.emit("upgrade_started")
        daemon.last_upgrade_error = None
        try:
            await _rehearse(daemon)
            await daemon.accounted()
            _require_calm(daemon)  # that took a while: a stop or a restart may have begun
            await _save_memory(daemon)
            _require_calm(daemon)
        except CommandError as error:
            daemon.last_upgrade_error = str(error)
            daemon.events.emit("upgrade_refused", reason=str(error))
            raise
        log.info("the installed code passed its rehearsal: replacing this process", extra={"action": "upgrade"})
        daemon.replacing = True  # nothing is started any more
        daemon.state = "replacing"
        await _all_born(daemon)
        daemon.stop_requested.set()
    return {"replacing": True, "pid": os.getpid()}


def _require_calm(daemon: Daemon) -> None:
    """Raises CommandError when the daemon is not up, or a restart is under way."""
    daemon.require_running()
    units = daemon.units.values()
    rolling = [unit.name for unit in units if unit.rolling is not None or unit.successor is not None]
    if rolling:
        raise CommandError(f"{', '.join(rolling)} is being restarted: upgrade when that is done")


async def _all_born(daemon: Daemon) -> None:
    """Wait until what was just being started has written the records by which the newer code finds it."""
    deadline = time.monotonic() + BIRTHS_S
    for unit in list(daemon.units.values()):
        await unit.born(max(0.0, deadline - time.monotonic()))
    while time.monotonic() < deadline:
        processes = [process for unit in daemon.units.values() for process in unit.processes() if process.alive]
        records = [process.launch.spec.record for process in processes if process.launch.spec is not None]
        if all(record is None or files.exists(record) for record in records):
            return
        await asyncio.sleep(BIRTH_POLL_S)


async def _save_memory(daemon: Daemon) -> None:
    try:
        await daemon.keeper.save_memory()
    except OSError as error:
        raise CommandError(f"{daemon.paths.memory} cannot be written for the new code: {error.strerror}") from error


async def _rehearse(daemon: Daemon) -> None:
    """Run the installed code over our configuration, our saved state and the task modules, in a process of its own."""
    output = Path(daemon.paths.runtime_dir) / REHEARSAL_LOG
    await asyncio.to_thread(files.remove, str(output))
    command = [*command_line(daemon.plan), "--rehearse"]
    environment = launch_environment({HELD_VARIABLE: json.dumps(values_of(daemon.plan))})
    try:
        # It imports task modules: no protection of ours from the OOM killer is for them.
        ref = spawn(command, environment, str(output), protected=False)
    except OSError as error:
        raise CommandError(f"the installed code cannot be started: {error}") from error
    daemon.nursery.strangers_to_keep.add(ref.pid)
    try:
        how = await _ended(ref)
    finally:
        daemon.nursery.strangers_to_keep.discard(ref.pid)
    if how is None:
        raise CommandError(f"the rehearsal of the installed code was not done after {REHEARSAL_TIMEOUT_S:.0f} s")
    if how.status != 0:
        text = await asyncio.to_thread(_read_output, output)
        lines = reasons(redact_text(text))
        raise CommandError(f"the installed code failed its rehearsal ({how}): " + " | ".join(lines))


def _read_output(path: Path) -> str:
    """What the rehearsal printed; task modules may print any bytes."""
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"


def reasons(text: str) -> list[str]:
    """Of a rehearsal's output, what an operator should read: the lines meant for him, else the last ones."""
    lines = [line for line in text.splitlines() if line.strip()]
    meant = [line.removeprefix(REASON) for line in lines if line.startswith(REASON)]
    return (meant or lines)[-_REASON_LINES:]


async def _ended(ref: ProcessRef) -> Exit | None:
    """How it ended; None: it was killed, because it was late. Whoever stops waiting kills it, too."""
    loop = asyncio.get_running_loop()
    dead = loop.create_future()

    def end() -> None:
        if not dead.done():
            dead.set_result(None)

    loop.add_reader(ref.pidfd, end)
    late = False
    try:
        await asyncio.wait([dead], timeout=REHEARSAL_TIMEOUT_S)
        late = not dead.done()
    finally:
        if not dead.done():
            await asyncio.to_thread(ref.kill_tree)
            await asyncio.wait([dead], timeout=KILLED_S)
        loop.remove_reader(ref.pidfd)
        how = ref.reap() if dead.done() else None  # never a wait for what does not die: it would block the loop
        ref.close()
    return None if late else how


def rehearse_processes(plan: Plan) -> bool:
    """In the new code: can its processes be imported, with the task modules? The reasons go to standard error.

    In the interpreters and environments that they will have, on the settings of now; nothing connects to a broker.
    """
    text = plan.settings.to_json().encode()
    runs: list[tuple[str, tuple[str, ...], dict[str, str]]] = []
    python = plan.python or sys.executable
    if plan.python is not None:
        runs.append((sys.executable, ("agent",), {}))
    kinds = ("worker", "beat", *(("image",) if plan.preload else ()), *(("agent",) if plan.python is None else ()))
    environments = {tuple(sorted(pool.env.items())) for pool in plan.pools}
    runs += [(python, kinds, dict(extra)) for extra in sorted(environments)]
    for program, these, extra in runs:
        try:
            done = subprocess.run(
                [program, BOOT, "rehearse", *these], input=text, env=launch_environment(extra),
                timeout=REHEARSAL_TIMEOUT_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            sys.stderr.write(f"{REASON}the processes cannot be rehearsed: {error}\n")
            return False
        if done.returncode not in {0, EX_CONFIG}:  # it died before it could say why
            how = Exit(signal=-done.returncode) if done.returncode < 0 else Exit(status=done.returncode)
            where = f"{plan.runtime_dir}/{REHEARSAL_LOG}"
            sys.stderr.write(f"{REASON}the processes cannot be imported: {how}; what they printed is in {where}\n")
        if done.returncode != 0:
            return False
    return True


def rehearse_start(plan: Plan) -> list[str]:
    """In the new code: would this host let a daemon with this plan start? The problems, one line each."""
    problems = []
    try:
        prepare_folders(plan)
        check_destination(plan.logging)
        if plan.embedded:
            find_server()
    except LimetaskError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"limetaskd.logging.destination: {plan.logging.destination}: {error.strerror}")
    return problems


def rehearse_state(paths: Paths) -> list[str]:
    """In the new code: can what the running daemon has saved be read? The problems, one line each."""
    problems = []
    saved: tuple[tuple[str, Callable[[str], object]], ...] = (
        (paths.memory, Memory.from_json),
        (paths.scale, Scales.from_json),
        (paths.queues, lambda text: parse_saved(json.loads(text))),
        (paths.unstored, unstored.from_json),
    )
    for path, read in saved:
        try:
            text = files.read(path)
            if text is not None:
                read(text)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{path}: {error}")
    for record in Path(paths.processes).glob("*.json"):
        try:
            ProcessRecord.from_json(record.read_text())
        except FileNotFoundError:
            continue  # it has ended meanwhile
        except ValueError as error:
            problems.append(f"{record}: {error}")
    return problems


def replace_process(plan: Plan, lock_descriptor: int) -> None:
    """Become the new code, which holds what `plan` holds. Only returns by raising OSError."""
    os.set_inheritable(lock_descriptor, True)
    os.environ[LOCK_VARIABLE] = str(lock_descriptor)
    os.environ[HELD_VARIABLE] = json.dumps(values_of(plan))
    argv = command_line(plan)
    os.execv(argv[0], argv)
