"""The servers that the other integration tests rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kombu
import pytest

from tests.support.brokers import RabbitMQ, Redis
from tests.support.guard import session_pids
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]


def _put(url: str, body: str) -> None:
    with kombu.Connection(url, transport_options={"confirm_publish": True}) as connection:
        queue = kombu.Queue("q", kombu.Exchange("q"), "q")
        connection.Producer().publish(
            body, exchange=queue.exchange, routing_key="q", declare=[queue], delivery_mode=2, serializer="json"
        )


def _get(url: str) -> str | None:
    with kombu.Connection(url) as connection:
        message = kombu.Queue("q", kombu.Exchange("q"), "q")(connection.default_channel).get()
        if message is None:
            return None
        message.ack()
        return str(message.payload)


def test_rabbitmq_keeps_confirmed_messages_over_kill_and_restart(own_rabbitmq: RabbitMQ) -> None:
    _put(own_rabbitmq.url, "kept")
    port = own_rabbitmq.port
    own_rabbitmq.kill()
    assert not own_rabbitmq.running
    assert not own_rabbitmq.answers()
    own_rabbitmq.start()
    assert own_rabbitmq.port == port
    assert _get(own_rabbitmq.url) == "kept"


def test_virtual_hosts_are_apart(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    other = rabbitmq.new_vhost()
    _put(amqp_url, "mine")
    _put(other, "theirs")
    assert _get(amqp_url) == "mine"
    assert _get(other) == "theirs"
    rabbitmq.delete_vhost(other)


def test_calls_of_one_moment_do_not_refuse_each_other(rabbitmq: RabbitMQ) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: rabbitmq.evaluate(f"{number}."), range(64))) == [
            str(number) for number in range(64)
        ]


def test_redis_keeps_its_data_over_kill_and_restart(own_redis: Redis) -> None:
    assert own_redis.command("SET", "a", "1") == b"+OK"
    own_redis.kill()
    assert not own_redis.answers()
    own_redis.start()
    assert own_redis.command("EXISTS", "a") == b":1"


def test_paused_server_does_not_answer(own_redis: Redis) -> None:
    own_redis.pause()
    assert own_redis.running
    with pytest.raises(TimeoutError):
        own_redis.command("PING", timeout=0.3)
    own_redis.resume()
    wait_until(own_redis.answers)


def test_nothing_is_left_when_the_test_run_is_killed() -> None:
    program = (
        "import sys, time\n"
        "from tests.support.brokers import RabbitMQ, Redis\n"
        "one, two = RabbitMQ().start(), Redis().start()\n"
        "print(one.pid, two.pid, one.folder, two.folder, flush=True)\n"
        "sys.stdin.read()\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    first, second, *folders = run.stdout.readline().split()
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    wait_until(lambda: not session_pids(int(first)) and not session_pids(int(second)), message="the servers to end")
    wait_until(lambda: not any(Path(folder).exists() for folder in folders), message="the folders to go")
