"""What watching costs the daemon: CPU per second of its guard, for 50 and 500 pool children.

    python -m benchmarks.sampling [--children 50 500] [--seconds 10] [--near 0]

Real processes (idle forks of one parent, as pool children are) with a real scoreboard, half of whose slots run a task
with a limit; the guard looks once a second, as it does by default. `--near N`: so many children are at their limit, so
that they are read exactly. All but the watching is left out. Compare the rows: the figures belong to the machine. Seen
on two busy cores, ms of CPU in a second:

                                  time only    time and memory
     50 children                       0.24               0.42
    500 children                       0.40               2.18
     50 children, 5 near a limit       0.24               0.44
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from limetaskd.core.board import Board
from limetaskd.core.memory import private_bytes
from limetaskd.daemon.guard import Guard
from limetaskd.plan.model import LimitsPlan, PoolPlan

MIB = 1024 * 1024


def _children(board: Board, count: int, near: int, heavy: int) -> list[int]:
    pids = []
    for index in range(count):
        ready_read, ready_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            writer = board.claim(index=index)
            assert writer is not None
            ballast = bytearray(os.urandom(4096) * (heavy // 4096)) if index < near else b""
            writer.weigh(private_bytes("self") or 0)
            if index % 2 == 0:
                writer.begin(f"id-{index}", "benchmark.task", "queue", None, None, 3600.0)
            os.write(ready_write, b"x")
            signal.pause()
            os._exit(len(ballast) and 0)
        os.read(ready_read, 1)
        os.close(ready_read)
        os.close(ready_write)
        pids.append(pid)
    return pids


async def _measure(board: Board, limits: LimitsPlan, seconds: float) -> tuple[float, int]:
    """CPU seconds per second of watching, and how many looks there were."""
    incarnation = SimpleNamespace(board=board, pid=os.getpid(), alive=True, connection=None, ending=object())
    unit = SimpleNamespace(name="all:0", kind="worker", current=incarnation, successor=None, leaving=[], rolling=None)
    pool = PoolPlan(name="all", queues=("q",), limits=limits)
    daemon: Any = SimpleNamespace(
        units={"all:0": unit},
        plan=SimpleNamespace(pools=(pool,), pool=lambda _name: pool),
        guard=None,
        background=lambda work: asyncio.get_running_loop().create_task(work),
    )
    guard = Guard(daemon)
    guard.look()  # the first look opens what stays open
    await asyncio.sleep(1)
    begin, cpu = time.monotonic(), time.process_time()
    looks = 0
    while time.monotonic() - begin < seconds:
        guard.look()
        looks += 1
        await asyncio.sleep(1)
    return (time.process_time() - cpu) / (time.monotonic() - begin), looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--children", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--near", type=int, default=0)
    arguments = parser.parse_args()
    heavy = 40 * MIB
    for count in arguments.children:
        with tempfile.TemporaryDirectory() as folder:
            board = Board.create(str(Path(folder, "board")), 2 * count)
            pids = _children(board, count, arguments.near, heavy)
            try:
                for name, limits in (
                    ("time only", LimitsPlan()),
                    ("time, memory", LimitsPlan(memory_soft_bytes=int(heavy * 1.1), memory_hard_bytes=2 * heavy)),
                ):
                    share, looks = asyncio.run(_measure(board, limits, arguments.seconds))
                    print(
                        f"{count:4d} children, {arguments.near} near, {name:13s} {share * 1000:7.2f} ms CPU a second"
                        f"  ({share * 1e6 / count:6.1f} us a child, {looks} looks)"
                    )
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
