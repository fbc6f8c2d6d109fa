"""A stop that is asked for while the daemon becomes newer code: the newer code gets it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# Executor threads do not block the signals, as in a daemon. What is pending after the exec is printed.
SHOW = """
import asyncio, os, signal, sys, time
from types import SimpleNamespace
from limetaskd.daemon.commands import shutdown
from limetaskd.daemon.daemon import Daemon
from limetaskd.daemon.main import HANDLED_SIGNALS, handle_signals

class Replacing:
    replacing = True
    request_stop = Daemon.request_stop

    def __init__(self):
        self.stop_now, self.stop_requested = asyncio.Event(), asyncio.Event()
        self.reload_requested, self.upgrade_requested = asyncio.Event(), asyncio.Event()
        self.logs = SimpleNamespace(reopen=None)
        self.said = asyncio.Event()
        self.audit = SimpleNamespace(record=lambda *_args, **_more: self.said.set())

async def ask(daemon, how):
    if how.isdigit():
        os.kill(os.getpid(), int(how))
        async with asyncio.timeout(30):
            await daemon.said.wait()
    elif how == "supervisorctl":
        daemon.request_stop()
    else:
        await shutdown.run(daemon, {"now": how == "now"})

async def run(how, asked):
    daemon = Replacing()
    if asked:
        daemon.stop_requested.set()  # the upgrade itself ends the loop by it
    handle_signals(daemon)
    await asyncio.to_thread(time.sleep, 0)
    await ask(daemon, how)
    assert daemon.stop_requested.is_set() == asked
    assert not daemon.stop_now.is_set()
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)

signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
asyncio.run(run(sys.argv[1], len(sys.argv) > 2))
os.execv(sys.executable, [sys.executable, "-c", "import signal; print(*map(int, signal.sigpending()))"])
"""


@pytest.mark.parametrize("asked", [[], ["asked"]])
@pytest.mark.parametrize(
    ("how", "number"),
    [
        *((str(int(number)), number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)),
        ("shutdown", signal.SIGTERM),
        ("now", signal.SIGQUIT),
        ("supervisorctl", signal.SIGTERM),
    ],
)
def test_it_waits_over_the_exec(how: str, number: signal.Signals, asked: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW, how, *asked], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == [str(int(number))], done.stderr
