"""The agent as the daemon runs it, against real brokers: figures, restoring, purging, and brokers that go away."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Exchange, Queue

from limetaskd.core.channel import Phase, State
from limetaskd.core.settings import Settings
from limetaskd.tasks.redis_transport import transport_url
from tests.support.brokers import RabbitMQ, Redis, free_ports
from tests.support.channel import Bench, Process, records_of, settings_of
from tests.support.waiting import wait_until

NAME = "limetaskd:agent"
QUEUES = ("lime_default_task_queue", "lime_task_queue_asap")
DEFAULT, ASAP = QUEUES


class Running:
    """An agent with its fake daemon."""

    def __init__(self, settings: Settings) -> None:
        self.bench = Bench(settings, {})
        self.process: Process = self.start()

    def start(self) -> Process:
        self.process = self.bench.start(self.bench.spec(NAME, kind="agent", board=None))
        return self.process

    @property
    def state(self) -> State | None:
        return self.bench.daemon.states.get(NAME)

    def wait(self, condition: Callable[[State], Any], timeout: float = 60) -> State:
        wait_until(lambda: self.state is not None and condition(self.state), timeout, lambda: f"{self.state}")
        assert self.state is not None
        return self.state

    def up(self, timeout: float = 60) -> State:
        return self.wait(lambda state: state.phase == Phase.CONSUMING, timeout)

    def away(self) -> State:
        return self.wait(lambda state: state.phase == Phase.CONNECTING)

    def figure(self, name: str) -> dict[str, Any]:
        state = self.state
        return next((dict(item) for item in state.data["queues"] if item["name"] == name), {}) if state else {}

    def ask(self, command: str, **params: Any) -> dict[str, Any]:
        reply = self.bench.daemon.ask(NAME, command, **params)
        assert reply.error is None, reply.error
        return reply.result

    def refused(self, command: str, **params: Any) -> str:
        reply = self.bench.daemon.ask(NAME, command, **params)
        assert reply.error is not None
        return reply.error

    def records(self) -> list[dict[str, Any]]:
        return records_of(self.bench.folder / f"{NAME}.log")


@pytest.fixture
def run_agent() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def run(broker_url: str, **changes: Any) -> Running:
        settings = settings_of(broker_url, queues=QUEUES, **changes)
        running = Running(settings)
        started.append(running)
        return running

    yield run
    for running in started:
        running.bench.__exit__()


def declare_and_send(url: str, name: str, count: int, **options: Any) -> None:
    """`count` messages into the queue `name`, with the header that our senders write."""
    exchange = Exchange("agent_tests")
    if not url.startswith("redis"):
        options = {"transport_options": {"confirm_publish": True}}  # a broker may forget what it has not confirmed
    with Connection(transport_url(url), **options) as connection:
        for _ in range(count):
            connection.Producer().publish(
                {}, exchange=exchange, routing_key=name, declare=[Queue(name, exchange, name)],
                headers={"__sent_at": time.time() - 100},
            )  # fmt: skip


# -- RabbitMQ --------------------------------------------------------------------------------------------------------


def test_rabbitmq_figures_of_queues_that_come_and_go(amqp_url: str, run_agent: Callable[..., Running]) -> None:
    agent = run_agent(amqp_url)
    assert agent.up().data == {
        "broker": {"up": True, "error": None},
        "queues": [{"name": name, "depth": None, "consumers": None, "oldest_wait_s": None} for name in QUEUES],
    }
    declare_and_send(amqp_url, ASAP, 3)
    agent.wait(lambda _: agent.figure(ASAP).get("depth") == 3)
    assert agent.figure(ASAP)["consumers"] == 0
    assert agent.figure(DEFAULT)["depth"] is None
    with Connection(amqp_url) as connection, Consumer(connection, [Queue(ASAP, no_declare=True)], prefetch_count=1):
        agent.wait(lambda _: agent.figure(ASAP)["consumers"] == 1)
    assert agent.ask("restore") == {"restored": 0}
    agent.wait(lambda _: agent.figure(ASAP)["depth"] == 3)
    assert agent.ask("purge", queue=ASAP) == {"purged": 3}
    agent.wait(lambda _: agent.figure(ASAP)["depth"] == 0)
    assert "no queue" in agent.refused("purge", queue=DEFAULT)
    with Connection(amqp_url) as connection:
        connection.default_channel.queue_delete(ASAP)
    agent.wait(lambda _: agent.figure(ASAP)["depth"] is None)
    assert agent.state is not None
    assert agent.state.phase == Phase.CONSUMING


def test_rabbitmq_that_dies_and_comes_back(own_rabbitmq: RabbitMQ, run_agent: Callable[..., Running]) -> None:
    declare_and_send(own_rabbitmq.url, ASAP, 1)
    agent = run_agent(own_rabbitmq.url)
    agent.up()
    own_rabbitmq.kill()
    state = agent.away()
    assert state.data["broker"]["up"] is False
    assert state.data["broker"]["error"]
    assert state.reason is not None
    assert "guest:***@" in state.reason
    assert {item["depth"] for item in state.data["queues"]} == {None}
    assert "away" in agent.refused("purge", queue=ASAP)
    own_rabbitmq.start()
    agent.up()
    agent.wait(lambda _: agent.figure(ASAP)["depth"] == 1)
    assert agent.process.popen.poll() is None


def test_rabbitmq_that_hangs_is_noticed(own_rabbitmq: RabbitMQ, run_agent: Callable[..., Running]) -> None:
    agent = run_agent(own_rabbitmq.url)
    agent.up()
    own_rabbitmq.pause()
    agent.away()
    assert agent.ask("reopen") == {}  # needs no broker
    own_rabbitmq.resume()
    agent.up()


# -- Redis -----------------------------------------------------------------------------------------------------------


def test_redis_figures(redis_url: str, run_agent: Callable[..., Running]) -> None:
    agent = run_agent(redis_url, prefix="prod")
    actual = "prod_" + ASAP
    agent.up()
    assert agent.figure(actual) == {"name": actual, "depth": 0, "consumers": None, "oldest_wait_s": None}
    declare_and_send(redis_url, actual, 4, transport_options={"global_keyprefix": "prod_"})
    agent.wait(lambda _: agent.figure(actual)["depth"] == 4)
    assert 100 <= agent.figure(actual)["oldest_wait_s"] < 200
    assert agent.ask("purge", queue=actual) == {"purged": 4}
    agent.wait(lambda _: agent.figure(actual)["depth"] == 0)
    assert agent.refused("purge") == "purge needs the name of a queue"
    assert "does not know" in agent.refused("dance")


def test_messages_of_a_killed_consumer_come_back_on_demand_and_by_themselves(
    redis_url: str, run_agent: Callable[..., Running]
) -> None:
    client = redis.Redis.from_url(redis_url)

    def hold_and_die() -> None:
        """A process that takes three messages and dies by kill -9."""
        code = (
            "import os, sys; from kombu import Connection\n"
            "from limetaskd.tasks.redis_transport import transport_url\n"
            "channel = Connection(transport_url(sys.argv[1])).channel()\n"
            "assert all(channel.basic_get(sys.argv[2]) for _ in range(3)); os.kill(os.getpid(), 9)"
        )
        done = subprocess.run([sys.executable, "-c", code, redis_url, ASAP], timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL

    declare_and_send(redis_url, ASAP, 3)
    hold_and_die()
    assert client.llen(ASAP) == 0
    agent = run_agent(redis_url)
    agent.up()
    assert client.llen(ASAP) == 3  # at its start
    hold_and_die()
    assert agent.ask("restore") == {"restored": 3}
    assert client.llen(ASAP) == 3
    hold_and_die()
    wait_until(lambda: client.llen(ASAP) == 3, 30)  # by itself
    assert [record["messages"] for record in agent.records() if record.get("action") == "restored"] == [3, 3, 3]


@pytest.mark.parametrize("trouble", ["kill", "pause"])
def test_redis_that_goes_and_comes_back(own_redis: Redis, run_agent: Callable[..., Running], trouble: str) -> None:
    agent = run_agent(own_redis.url)
    agent.up()
    getattr(own_redis, trouble)()
    assert agent.away().data["broker"]["up"] is False
    assert "away" in agent.refused("restore")
    getattr(own_redis, {"kill": "start", "pause": "resume"}[trouble])()
    agent.up()


# -- the process -----------------------------------------------------------------------------------------------------


def test_a_broker_that_is_not_there_yet(run_agent: Callable[..., Running]) -> None:
    [port] = free_ports(1)
    agent = run_agent(f"redis://:secret@127.0.0.1:{port}/0")
    state = agent.away()
    assert "secret" not in json.dumps(dataclasses.asdict(state))
    assert agent.process.popen.poll() is None
    assert "secret" not in (agent.bench.folder / f"{NAME}.log").read_text()


@pytest.mark.parametrize("way", ["SIGTERM", "drain"])
def test_it_ends_at_once_also_while_it_waits_for_a_broker(run_agent: Callable[..., Running], way: str) -> None:
    with Redis(persistent=False) as server:
        agent = run_agent(server.url)
        agent.up()
        server.pause()
        if way == "drain":
            agent.ask("drain")
        else:
            agent.process.signal(signal.SIGTERM)
        assert agent.process.wait(30) == 0


def test_reread_settings_and_reopened_log(redis_url: str, run_agent: Callable[..., Running]) -> None:
    agent = run_agent(redis_url)
    agent.up()
    changed = settings_of(redis_url, queues=[DEFAULT, "fresh"])
    agent.bench.settings_path.write_text(changed.to_json())
    assert agent.ask("settings") == {}
    agent.wait(lambda _: agent.figure("fresh") and not agent.figure(ASAP))
    agent.bench.settings_path.write_text("{")
    assert "cannot be read" in agent.refused("settings")
    log = agent.bench.folder / f"{NAME}.log"
    moved = Path(f"{log}.1")
    log.rename(moved)
    assert agent.ask("reopen") == {}
    assert log.exists()
    agent.ask("purge", queue=DEFAULT)
    wait_until(lambda: any(record.get("action") == "purged" for record in agent.records()))


def test_it_reports_to_a_daemon_that_comes_back(redis_url: str, run_agent: Callable[..., Running]) -> None:
    agent = run_agent(redis_url)
    agent.up()
    agent.bench.daemon.hang_up()
    agent.bench.daemon.listen()
    agent.up()


def test_settings_that_move_to_another_broker(redis_url: str, run_agent: Callable[..., Running]) -> None:
    [port] = free_ports(1)
    agent = run_agent(f"redis://127.0.0.1:{port}/0")
    agent.away()
    agent.bench.settings_path.write_text(settings_of(redis_url, queues=QUEUES).to_json())
    agent.ask("settings")
    agent.up()
