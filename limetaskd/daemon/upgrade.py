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
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limetaskd.core.record import ProcessRecord
from limetaskd.core.redact import redact_text
from limetaskd.daemon import files
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.launch import Paths
from limetaskd.daemon.lock import LOCK_VARIABLE
from limetaskd.daemon.pools import Scales
from limetaskd.daemon.spawner import Exit, ProcessRef, spawn
from limetaskd.daemon.steering import parse_saved
from limetaskd.daemon.succession import Memory
from limetaskd.errors import CommandError, LimetaskError
from limetaskd.plan.model import Plan

log = logging.getLogger("limetaskd.upgrade")

REHEARSAL_TIMEOUT_S = 60.0
_REASON_LINES = 5


def interpreter() -> list[str]:
    """Our interpreter. An isolated one stays so: PYTHONPATH and the current directory may hold another pydantic."""
    return [sys.executable, *(["-I"] if sys.flags.isolated else [])]


def command_line(plan: Plan, *, detached: bool) -> list[str]:
    """How this daemon was started, as a command that runs the code that is installed now, from any folder."""
    command = [*interpreter(), "-m", "limetaskd.daemon.main", "--config", plan.config_file or ""]
    return [*command, *(["--embedded"] if plan.embedded else []), *(["--daemon"] if detached else [])]


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
        units = daemon.units.values()
        rolling = [unit.name for unit in units if unit.rolling is not None or unit.successor is not None]
        if rolling:
            raise CommandError(f"{', '.join(rolling)} is being restarted: upgrade when that is done")
        daemon.events.emit("upgrade_started")
        try:
            await _rehearse(daemon)
        except CommandError as error:
            daemon.events.emit("upgrade_refused", reason=str(error))
            raise
        await daemon.keeper.save_memory()
        log.info("the installed code passed its rehearsal: replacing this process", extra={"action": "upgrade"})
        daemon.replacing = True
        daemon.state = "replacing"
        daemon.stop_requested.set()
    return {"replacing": True, "pid": os.getpid()}


async def _rehearse(daemon: Daemon) -> None:
    """Run the installed code over our configuration and our saved state, in a process of its own."""
    output = Path(daemon.paths.runtime_dir) / "rehearsal.log"
    await asyncio.to_thread(files.remove, str(output))
    environ = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
    try:
        ref = spawn([*command_line(daemon.plan, detached=False), "--rehearse"], environ, str(output))
    except OSError as error:
        raise CommandError(f"the installed code cannot be started: {error}") from error
    daemon.nursery.strangers_to_keep.add(ref.pid)
    try:
        how = await _ended(ref)
    finally:
        daemon.nursery.strangers_to_keep.discard(ref.pid)
    if how.status != 0:
        text = await asyncio.to_thread(files.read, str(output)) or ""
        lines = [line for line in redact_text(text).splitlines() if line.strip()][-_REASON_LINES:]
        raise CommandError(f"the installed code failed its rehearsal ({how}): " + " | ".join(lines))


async def _ended(ref: ProcessRef) -> Exit:
    loop = asyncio.get_running_loop()
    dead = loop.create_future()

    def end() -> None:
        if not dead.done():
            dead.set_result(None)

    loop.add_reader(ref.pidfd, end)
    try:
        async with asyncio.timeout(REHEARSAL_TIMEOUT_S):
            await dead
    except TimeoutError:
        await asyncio.to_thread(ref.kill_tree)
    finally:
        loop.remove_reader(ref.pidfd)
        result = ref.reap()
        ref.close()
    return result


def rehearse_state(paths: Paths) -> list[str]:
    """In the new code: can what the running daemon has saved be read? The problems, one line each."""
    problems = []
    saved: tuple[tuple[str, Callable[[str], object]], ...] = (
        (paths.memory, Memory.from_json),
        (paths.scale, Scales.from_json),
        (paths.queues, lambda text: parse_saved(json.loads(text))),
    )
    for path, read in saved:
        text = files.read(path)
        try:
            if text is not None:
                read(text)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(f"{path}: {error}")
    for record in Path(paths.processes).glob("*.json"):
        try:
            ProcessRecord.from_json(record.read_text())
        except ValueError as error:
            problems.append(f"{record}: {error}")
    return problems


def replace_process(plan: Plan, lock_descriptor: int, *, detached: bool) -> None:
    """Become the new code. Only returns by raising OSError."""
    os.set_inheritable(lock_descriptor, True)
    os.environ[LOCK_VARIABLE] = str(lock_descriptor)
    argv = command_line(plan, detached=detached)
    os.execv(argv[0], argv)
