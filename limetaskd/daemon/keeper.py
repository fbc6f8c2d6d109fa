"""What the daemon keeps on disk for its successors: scales that operators asked to keep, its memory, its folders.

Damaged files are set aside with a record; nothing is read twice, nothing is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING

from limetaskd.core.process import boot_id
from limetaskd.daemon import files
from limetaskd.daemon.pools import Scales
from limetaskd.daemon.succession import Memory

if TYPE_CHECKING:
    from limetaskd.daemon.daemon import Daemon

log = logging.getLogger("limetaskd.keeper")

MEMORY_PAUSE_S = 0.2


class Keeper:
    """Of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._changed = asyncio.Event()
        self._writing = asyncio.Lock()

    def start(self) -> None:
        """From now on every event is a reason to save."""
        self._daemon.events.subscribe(lambda _event: self._changed.set())
        self._daemon.background(self._keep_memory())

    async def load_scales(self) -> None:
        """Scales that an operator asked to keep; a damaged file is set aside."""
        try:
            text = await asyncio.to_thread(files.read, self._daemon.paths.scale)
            if text is not None:
                self._daemon.scales = Scales.from_json(text)
        except ValueError as error:
            aside = await asyncio.to_thread(files.set_aside, self._daemon.paths.scale)
            log.error("%s: %s; set aside as %s, pools start as configured", self._daemon.paths.scale, error, aside)

    async def load_memory(self) -> Memory | None:
        """What a daemon that died or was replaced knew; a damaged file is set aside."""
        try:
            text = await asyncio.to_thread(files.read, self._daemon.paths.memory)
            if text is None:
                return None
            memory = Memory.from_json(text)
        except ValueError as error:
            aside = await asyncio.to_thread(files.set_aside, self._daemon.paths.memory)
            log.error(
                "%s: %s; set aside as %s. What operators had stopped, or scaled for a while, runs as configured",
                self._daemon.paths.memory, error, aside, extra={"action": "set_aside"},
            )  # fmt: skip
            return None
        self._daemon.generation = memory.generation
        plan = self._daemon.plan
        self._daemon.scales.by_pool.update({name: scale for name, scale in memory.scales.items() if plan.pool(name)})
        self._daemon.scales.automatic.update(
            {name: slots for name, slots in memory.automatic.items() if plan.pool(name)}
        )
        return memory

    def recall(self, memory: Memory | None) -> set[str]:
        """Give the units their history; the names that an operator had stopped."""
        if memory is None:
            return set()
        same_boot = memory.boot_id == boot_id()
        for name, known in memory.units.items():
            unit = self._daemon.units.get(name)
            if unit is not None:
                unit.recall(known, same_boot=same_boot)
        return {name for name, known in memory.units.items() if known.stopped}

    async def save_memory(self) -> None:
        """Raises OSError. Nothing is saved of a daemon that stops: what it stops was stopped by nobody."""
        async with self._writing:
            if not self._daemon.stopping:
                await self._save_memory()

    async def forget(self) -> None:
        """After a clean stop the next start begins afresh."""
        async with self._writing:
            await asyncio.to_thread(files.remove, self._daemon.paths.memory)
        await asyncio.to_thread(self._forget_folders)

    async def save_folders(self) -> None:
        """Where our processes are, for a next daemon whose file names other folders."""
        for path in self._daemon.paths.folders:
            try:
                await asyncio.to_thread(files.write_atomically, path, self._folders())
            except OSError as error:  # a full disk must not keep the daemon from the workers
                log.warning("%s cannot be written: %s", path, error)

    def _folders(self) -> str:
        paths = self._daemon.paths
        folders = {"runtime_dir": paths.runtime_dir, "state_dir": paths.state_dir}
        return json.dumps({**folders, "config_file": self._daemon.plan.config_file})

    def _forget_folders(self) -> None:
        for path in self._daemon.paths.folders:
            with contextlib.suppress(OSError, ValueError):  # somebody else's: left alone
                if files.read(path) == self._folders():
                    files.remove(path)

    async def _save_memory(self) -> None:
        units = {name: unit.remember() for name, unit in self._daemon.units.items() if not unit.leftover}
        scales = self._daemon.scales
        memory = Memory(boot_id(), self._daemon.generation, units, dict(scales.by_pool), dict(scales.automatic))
        await asyncio.to_thread(files.write_atomically, self._daemon.paths.memory, memory.to_json())

    async def _keep_memory(self) -> None:
        """Save soon after each change, many changes at once."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(0)  # the successor of what has just died comes first
            self._changed.clear()
            try:
                await self.save_memory()
            except OSError as error:
                log.error("%s cannot be written, the next daemon may know less: %s", self._daemon.paths.memory, error)
            await asyncio.sleep(MEMORY_PAUSE_S)
