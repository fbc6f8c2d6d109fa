"""Fixtures that all tests share: real brokers."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.brokers import RabbitMQ, Redis
from tests.support.daemon import Daemon

# A shell starts what runs in its background with SIGINT ignored, and a program that is started so keeps it: the tests
# press Ctrl-C.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_REDIS_DATABASES = 16
_redis_turn = 0


@pytest.fixture(autouse=True)
def _default_timeout() -> Iterator[None]:
    """No test, and nothing that it calls, may leave a default timeout to the sockets of those after it."""
    yield
    left = socket.getdefaulttimeout()
    socket.setdefaulttimeout(None)
    assert left is None


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """One RabbitMQ for the whole run. Use `amqp_url`; never stop this one (`own_rabbitmq` is for that)."""
    with RabbitMQ() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """One Redis for the whole run. Use `redis_url`; never stop this one (`own_redis` is for that)."""
    with Redis(persistent=False) as server:
        yield server


@pytest.fixture
def amqp_url(rabbitmq: RabbitMQ) -> Iterator[str]:
    """The URL of a fresh virtual host of the shared RabbitMQ."""
    url = rabbitmq.new_vhost()
    yield url
    rabbitmq.delete_vhost(url)


@pytest.fixture
def redis_url(redis_server: Redis) -> str:
    """The URL of an empty database of the shared Redis; neighbouring tests get different numbers."""
    global _redis_turn
    redis_server.flush()
    _redis_turn = (_redis_turn + 1) % _REDIS_DATABASES
    return redis_server.url_of(_redis_turn)


@pytest.fixture
def own_rabbitmq() -> Iterator[RabbitMQ]:
    """A RabbitMQ of this test alone, which it may stop, kill, pause and restart."""
    with RabbitMQ() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    """A Redis of this test alone, which keeps its data over kill and restart."""
    with Redis() as server:
        yield server


@pytest.fixture
def make_daemon() -> Iterator[Callable[..., Daemon]]:
    """`make_daemon(config, embedded=..., env=...)`: a Daemon, not started, that ends with the test."""
    made: list[Daemon] = []

    def make(*args: Any, **kwargs: Any) -> Daemon:
        made.append(Daemon(*args, **kwargs))
        return made[-1]

    yield make
    for daemon in made:
        print(f"--- the log of the daemon in {daemon.folder}\n{daemon.tail(80)}")  # shown when the test failed
        daemon.close()
