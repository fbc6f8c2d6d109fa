"""A signal that comes while the daemon becomes newer code: the newer code gets it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# Executor threads do not block the signals, as in a daemon. What is pending after the exec is printed.
SHOW = """
import asyncio, os, signal, sys, time
from types import SimpleNamespace
from limetaskd.daemon.main import HANDLED_SIGNALS, handle_signals

async def run(number):
    daemon = SimpleNamespace(
        replacing=True, stop_now=asyncio.Event(), stop_requested=asyncio.Event(), reload_requested=asyncio.Event(),
        upgrade_requested=asyncio.Event(), logs=SimpleNamespace(reopen=None),
        audit=SimpleNamespace(record=lambda *_args, **_more: said.set()),
    )
    said = asyncio.Event()
    handle_signals(daemon)
    await asyncio.to_thread(time.sleep, 0)
    os.kill(os.getpid(), number)
    async with asyncio.timeout(30):
        await said.wait()
    assert not daemon.stop_requested.is_set()
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)

signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
asyncio.run(run(int(sys.argv[1])))
os.execv(sys.executable, [sys.executable, "-c", "import signal; print(*map(int, signal.sigpending()))"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_waits_over_the_exec(number: signal.Signals) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW, str(int(number))], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == [str(int(number))], done.stderr
