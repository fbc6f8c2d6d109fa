"""What a stop waits for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from limetaskd.daemon import daemon as daemon_module
from limetaskd.daemon.daemon import Daemon


def test_a_stop_at_once_waits_not_long_for_a_result_store_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "ACCOUNTS_S", 600.0)
    monkeypatch.setattr(daemon_module, "ACCOUNTS_NOW_S", 0.05)

    async def run() -> None:
        untold = asyncio.get_running_loop().create_future()
        daemon: Any = SimpleNamespace(_accounts={untold}, stop_now=asyncio.Event())
        stop = asyncio.ensure_future(Daemon.accounted(daemon))
        await asyncio.sleep(0)
        assert not stop.done()
        daemon.stop_now.set()
        async with asyncio.timeout(60):
            await stop
        assert not untold.done()  # it goes on while the agent is there
        untold.cancel()

    asyncio.run(run())


def test_a_stop_waits_until_the_ends_of_tasks_are_told() -> None:
    async def run() -> None:
        told = asyncio.get_running_loop().create_future()
        daemon: Any = SimpleNamespace(_accounts={told}, stop_now=asyncio.Event())
        stop = asyncio.ensure_future(Daemon.accounted(daemon))
        asyncio.get_running_loop().call_later(0.05, told.set_result, None)
        async with asyncio.timeout(10):
            await stop
        assert told.done()

    asyncio.run(run())
