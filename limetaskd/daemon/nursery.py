"""Where processes come from: the image's forks, exec, and what was found alive; and what nobody knows.

One way in for all of them: an Incarnation with its (pid, start time, pidfd). The states in `unit.py` do not know the
difference.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from typing import TYPE_CHECKING

from limetaskd.core.board import Board
from limetaskd.core.channel import State
from limetaskd.core.process import process_start_ticks
from limetaskd.daemon import engine, files, rolling
from limetaskd.daemon.channel import Connection
from limetaskd.daemon.incarnation import (
    ADOPTED,
    BOARD_PATIENCE_S,
    EXEC,
    FORK,
    Incarnation,
    Launch,
    launch_environment,
)
from limetaskd.daemon.launch import IMAGE
from limetaskd.daemon.spawner import ProcessRef, find, held, reap_strangers, spawn
from limetaskd.daemon.unit import Unit
from limetaskd.errors import ChannelError, CommandError, LimetaskError, NoAnswerError

if TYPE_CHECKING:
    from limetaskd.daemon.daemon import Daemon

log = logging.getLogger("limetaskd.nursery")

# Imports may take long; workers wait for them rather than to import the same beside the image.
IMAGE_PATIENCE_S = 60.0
FORK_TIMEOUT_S = 10.0
STRANGER_STOP_S = 600.0


class Nursery:
    """Of one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.strangers_to_keep: set[int] = set()  # children that are no units, whose exit somebody waits for
        self._forking = 0  # forks whose pid is not known yet: it must not be reaped as a stranger's
        self._early: dict[tuple[str, int, int], tuple[Connection, State]] = {}  # reports that came before the birth
        self._knows_all = False
        # The code of now made no image: the one that there is serves those that run, not those that want that code.
        self._image_is_old = False
        self._late_image: Incarnation | None = None

    def knows_all(self) -> None:
        """What a daemon before us left behind has been taken over: who is unknown from now on is a stranger."""
        self._knows_all = True
        self._dismiss_strangers()

    def reported_early(self, connection: Connection, state: State) -> None:
        """A report of a process that is not known: faster than the answer of the image that forked it, or nobody's."""
        self._early[(state.name, state.generation, state.pid)] = (connection, state)
        self._dismiss_strangers()

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        for key, (other, _) in list(self._early.items()):
            if other is connection:
                del self._early[key]

    async def refresh_image(self) -> None:
        """Have an image by the plan, with the modules and settings of now.

        Raises CommandError when there can be none; the image that there is stays.
        """
        image = self._daemon.units.get(IMAGE)
        if not self._daemon.plan.preload:
            if image is not None:
                image.stop()
                await image.stopped()
                self._daemon.remove_unit(IMAGE)
            return
        if image is None:
            image = self._daemon.add_image()
        current = image.current
        if current is not None and current.connection is not None and image.ready:
            if current.launch.fingerprint == image.launch(image.generation).fingerprint:
                changed = (await current.connection.call("stale", {}, FORK_TIMEOUT_S))["changed"]
                if not changed:
                    self._image_is_old = False
                    return
                log.info("the image is replaced: %s changed", ", ".join(changed), extra={"action": "image_stale"})
            self._image_is_old = True
            await rolling.roll(self._daemon, image)
            self._image_is_old = False
            return
        image.start()
        await image.started()

    def drop_old_image(self) -> None:
        """Workers have the code of now, which the image cannot have: nothing may come back with the old code."""
        image = self._daemon.units.get(IMAGE)
        if self._image_is_old and image is not None and image.current is not None:
            self._image_is_old = False
            image.exchange()

    async def bring_to_life(self, unit: Unit, launch: Launch, generation: int) -> Incarnation:
        """Start a process: forked from the image where there is one, else by exec. Raises OSError, CommandError."""
        if not self._daemon.stopping and not files.exists(self._daemon.paths.settings):
            await self._daemon.make_runtime_dir_again()
        board = None
        if launch.board_path is not None:
            board = Board.create(launch.board_path, launch.board_slots)
            board.patience_s = BOARD_PATIENCE_S
        try:
            ref = await self._fork(unit, launch) if launch.forkable else None
            origin = EXEC if ref is None else FORK
            if ref is None:
                # The embedded broker shares the daemon's protection from the OOM killer: it holds everybody's tasks.
                protected = unit.kind == "broker"
                ref = spawn(launch.argv, launch_environment(launch.env), launch.log_path, protected=protected)
        except (OSError, LimetaskError):
            if board is not None and launch.board_path is not None:
                board.close()
                files.remove(launch.board_path)
            raise
        return self._incarnation(unit, launch, generation, ref, board, origin)

    async def _fork(self, unit: Unit, launch: Launch) -> ProcessRef | None:
        """Let the image fork it; None when there is no image that can, with the reason in the log.

        Raises OSError, and NoAnswerError when the image may have forked it all the same.
        """
        image = self._daemon.units.get(IMAGE)
        if image is None or launch.spec is None:
            return None
        if self._image_is_old and unit.rolling is not None:
            log.warning(
                "%s is started by exec: the image has not the code of now", unit.name,
                extra={"action": "exec_without_image", "worker": unit.name},
            )  # fmt: skip
            return None
        # One that was waited for in vain is not waited for again: it is used when it is there after all.
        patience_s = 0.0 if image.current is not None and image.current is self._late_image else IMAGE_PATIENCE_S
        deadline = time.monotonic() + patience_s
        while image.state in {engine.STARTING, engine.STOPPING} and time.monotonic() < deadline:
            if self._daemon.stopping or unit.state == engine.STOPPING:
                raise OSError(errno.ECANCELED, "stopped meanwhile")
            await image.changed(0.5)
        if image.state == engine.STARTING:
            self._late_image = image.current
        if not image.ready or image.current is None or image.current.connection is None:
            log.warning(
                "%s is started by exec: the image is %s%s", unit.name, image.state_name,
                f" ({image.reason})" if image.reason else "",
                extra={"action": "exec_without_image", "worker": unit.name},
            )  # fmt: skip
            return None
        source = image.current
        self._forking += 1
        try:
            reply = await image.current.connection.call(
                "fork", {"spec": launch.spec.to_json(), "nice": launch.nice}, FORK_TIMEOUT_S
            )
            return held(int(reply["pid"]))
        except NoAnswerError:
            # Nobody knows whether it lives: this generation is never used again. If it does live, it is a stranger.
            log.error("%s: the image does not answer: it is replaced", unit.name, extra={"action": "image_hangs"})
            await source.kill()
            raise
        except (CommandError, ChannelError) as error:
            log.warning("%s is started by exec: the image could not fork it: %s", unit.name, error)
            return None
        finally:
            # Once the unit knows its new process: until then it would be a stranger, too.
            asyncio.get_running_loop().call_soon(self._forked)

    def _forked(self) -> None:
        self._forking -= 1
        self.reap_strangers()
        self._dismiss_strangers()

    def reap_strangers(self) -> None:
        """SIGCHLD: as a subreaper we get what killed workers leave behind."""
        if self._forking == 0:
            known = {process.pid for unit in self._daemon.units.values() for process in unit.processes()}
            reap_strangers(known | self.strangers_to_keep)

    def _incarnation(
        self, unit: Unit, launch: Launch, generation: int, ref: ProcessRef, board: Board | None, origin: str
    ) -> Incarnation:
        incarnation = Incarnation(
            name=unit.name,
            generation=generation,
            launch=launch,
            ref=ref,
            exited=asyncio.get_running_loop().create_future(),
            origin=origin,
            board=board,
        )
        incarnation.watch(lambda dead: unit.died(dead, dead.exited.result()))
        early = self._early.pop((unit.name, generation, ref.pid), None)
        if early is not None:
            # When the unit knows it.
            asyncio.get_running_loop().call_soon(self._daemon.on_state, *early)
        return incarnation

    def take_over(
        self, unit: Unit, launch: Launch, generation: int, ref: ProcessRef, board: Board | None
    ) -> Incarnation:
        """An incarnation of a process that a dead daemon left behind."""
        return self._incarnation(unit, launch, generation, ref, board, ADOPTED)

    def _dismiss_strangers(self) -> None:
        """End processes that speak to us and that nobody knows: their record was damaged, or their birth not heard of.

        A worker finishes its tasks; a schedule is killed, since there must never be two.
        """
        if not self._knows_all or self._forking:
            return
        for key, (connection, state) in list(self._early.items()):
            del self._early[key]
            ticks = process_start_ticks(connection.peer_pid)
            try:
                ref = find(connection.peer_pid, ticks) if ticks is not None else None
            except OSError as error:
                log.error("%s (pid %d) is not known, and nobody can tell who it is: %s", state.name, state.pid, error)
                self._early[key] = (connection, state)  # looked at again with its next report
                continue
            if ref is None:
                continue
            kind = "beat" if state.name.endswith(":beat") else "worker"
            unit = self._daemon.units.get(state.name) or self._daemon.add_leftover(state.name, kind)
            log.error(
                "%s (pid %d) runs, and its record is damaged or gone: it %s", state.name, ref.pid,
                "finishes its tasks, unseen, and goes" if unit.kind == "worker" else "is killed",
                extra={"action": "stranger", "worker": state.name},
            )  # fmt: skip
            log_path = self._daemon.paths.log(state.name)
            launch = Launch(argv=(), env={}, log_path=log_path, stop_timeout_s=STRANGER_STOP_S)
            incarnation = self.take_over(unit, launch, state.generation, ref, None)
            incarnation.connection, incarnation.report = connection, state
            unit.generation = max(unit.generation, state.generation)
            unit.leaving.append(incarnation)
            incarnation.end(now=unit.kind != "worker")
