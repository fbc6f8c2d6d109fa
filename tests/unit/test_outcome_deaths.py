"""What the daemon has the agent say of tasks whose worker died."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from limetaskd.core.board import Running, Slot
from limetaskd.core.channel import MAX_BYTES, Command, encode
from limetaskd.daemon import outcome
from limetaskd.daemon.launch import AGENT
from limetaskd.daemon.outcome import Case
from limetaskd.errors import CommandError


def case(number: int, *, early_ack: bool = False) -> Case:
    running = Running(f"{number:064}", "crm." + "n" * 180, "asap", None, 1.0, None, None, early_ack)
    return Case(Slot(number, 1, 1, running, 0, 0, 0.0, 0.0), None, own=True)


class Agent:
    """Its result store takes no FAILURE; deaths it can count."""

    def __init__(self) -> None:
        self.counted: list[str] = []

    async def call(self, command: str, params: dict[str, Any], _timeout_s: float) -> dict[str, Any]:
        assert len(encode(Command(1, command, params))) <= MAX_BYTES
        if command == "end_task":
            raise CommandError("the result store is away")
        self.counted += [item["id"] for item in params["deaths"]]
        return {}


def test_many_deaths_are_counted_while_a_failure_cannot_be_stored() -> None:
    cases = [case(0, early_ack=True), *(case(number) for number in range(1, 1000))]
    agent = Agent()

    async def run() -> None:
        daemon: Any = SimpleNamespace(
            units={AGENT: SimpleNamespace(current=SimpleNamespace(connection=agent))},
            events=SimpleNamespace(emit=lambda *_args, **_fields: None),
        )
        concluding = asyncio.ensure_future(outcome._conclude(daemon, "asap:0", cases, "killed by SIGSEGV " * 20, None))
        async with asyncio.timeout(30):
            while len(agent.counted) < len(cases) - 1:
                await asyncio.sleep(0.01)
        assert not concluding.done()
        concluding.cancel()

    asyncio.run(run())
    assert sorted(agent.counted) == [f"{number:064}" for number in range(1, 1000)]
