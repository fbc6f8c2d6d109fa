"""What the agent asks a broker, for RabbitMQ and for Redis. Everything here may block, for some seconds at most."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import amqp
from kombu import Connection
from kombu.exceptions import KombuError

from limetaskd.core.redact import redact_text
from limetaskd.core.settings import Settings
from limetaskd.errors import CommandError, LimetaskError
from limetaskd.tasks.conf import broker_settings, is_redis

IO_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Figure:
    """One queue. `name` is the broker's; None: the broker does not tell, or the queue does not exist yet."""

    name: str
    depth: int | None = None
    consumers: int | None = None
    oldest_wait_s: float | None = None


class BrokerAwayError(LimetaskError):
    """The broker cannot be reached."""


class Broker(Protocol):
    """A connected broker. Every method raises BrokerAwayError when it is one no longer."""

    connection: Any  # kombu's
    gone: tuple[type[Exception], ...]  # what its use raises when the broker is away

    def figures(self, names: Sequence[str]) -> list[Figure]:
        """Of each queue, in this order."""

    def restore(self) -> int:
        """Give back what dead consumers hold; returns how many messages. 0 where the broker does it by itself."""

    def purge(self, name: str) -> int:
        """Drop what waits in a queue; returns how many messages. Raises CommandError when there is no such queue."""

    def unacknowledged(self, name: str) -> int | None:
        """How many messages of a queue consumers hold, wherever they are; None: the broker does not tell."""

    def close(self) -> None: ...


def connection_of(settings: Settings, *, confirm: bool = False) -> Any:
    """A kombu connection (not connected) with the addresses and options of the workers, and timeouts of our own.

    `confirm`: what is sent over it returns when RabbitMQ has it on its disk.
    """
    conf = broker_settings(settings)
    options = dict(conf["broker_transport_options"] or {})
    options |= {
        "read_timeout": IO_TIMEOUT_S,
        "write_timeout": IO_TIMEOUT_S,
        "socket_timeout": IO_TIMEOUT_S,
        "socket_connect_timeout": IO_TIMEOUT_S,
    }
    if confirm and not is_redis(settings.broker_url):
        options["confirm_publish"] = True
    celery = settings.celery
    return Connection(
        conf["broker_url"],
        ssl=celery.get("broker_use_ssl") or False,
        login_method=celery.get("broker_login_method"),
        failover_strategy=celery.get("broker_failover_strategy") or "round-robin",
        connect_timeout=IO_TIMEOUT_S,
        transport_options=options,
    )


def away(error: Exception) -> BrokerAwayError:
    """One line, without secrets."""
    text = " ".join(redact_text(str(error)).split()) or type(error).__name__
    return BrokerAwayError(text)


class _Connected:
    """A live connection, and the errors that mean that it is one no longer."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.gone: tuple[type[Exception], ...] = (
            *connection.connection_errors,
            *connection.channel_errors,
            KombuError,
            OSError,
        )

    def close(self) -> None:
        try:
            self.connection.collect(IO_TIMEOUT_S)
        except self.gone:
            return  # it was gone already


class RabbitMQ(_Connected):
    """One channel for each queue: a question about a queue that does not exist closes its channel."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self._channels: dict[str, Any] = {}

    def _channel(self, name: str) -> Any:
        channel = self._channels.get(name)
        if channel is None or not channel.is_open:
            channel = self._channels[name] = self.connection.channel()
        return channel

    def _forget(self, name: str) -> None:
        channel = self._channels.pop(name, None)
        if channel is not None and channel.is_open:
            channel.close()

    def figures(self, names: Sequence[str]) -> list[Figure]:
        try:
            for name in set(self._channels) - set(names):
                self._forget(name)
            return [self._figure(name) for name in names]
        except self.gone as error:
            raise away(error) from error

    def _figure(self, name: str) -> Figure:
        try:
            _, depth, consumers = self._channel(name).queue_declare(name, passive=True)
        except (amqp.exceptions.NotFound, amqp.exceptions.AccessRefused, amqp.exceptions.ResourceLocked):
            self._forget(name)
            return Figure(name)
        return Figure(name, int(depth), int(consumers))

    def restore(self) -> int:
        return 0

    def unacknowledged(self, _name: str) -> int | None:
        return None  # the protocol does not say; the daemon asks its own workers

    def purge(self, name: str) -> int:
        try:
            return int(self._channel(name).queue_purge(name))
        except amqp.exceptions.NotFound as error:
            self._forget(name)
            raise CommandError(f"there is no queue {name} on the broker") from error
        except amqp.exceptions.AccessRefused as error:
            self._forget(name)
            raise CommandError(f"the broker does not let us purge {name}: {error}") from error
        except self.gone as error:
            raise away(error) from error


class Redis(_Connected):
    """Redis or Valkey, by our transport. It does not tell how many consume; a queue without messages is empty."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self.gone = (*self.gone, LimetaskError)
        self._channel = connection.default_channel

    def figures(self, names: Sequence[str]) -> list[Figure]:
        try:
            depths = self._channel.depths(list(names))
        except self.gone as error:
            raise away(error) from error
        now = time.time()
        return [
            Figure(name, depth, None, None if sent is None else round(max(0.0, now - sent), 3))
            for name, (depth, sent) in depths.items()
        ]

    def restore(self) -> int:
        try:
            return int(self._channel.restore_dead())
        except self.gone as error:
            raise away(error) from error

    def unacknowledged(self, name: str) -> int | None:
        try:
            return int(self._channel.held(name))
        except self.gone as error:
            raise away(error) from error

    def purge(self, name: str) -> int:
        try:
            return int(self._channel.queue_purge(name))
        except self.gone as error:
            raise away(error) from error


def connect(settings: Settings) -> Broker:
    """Connect, trying each address of a failover list once. Raises BrokerAwayError."""
    try:
        connection = connection_of(settings)
    except (KeyError, ValueError, ImportError) as error:
        raise away(error) from error
    try:
        connection.ensure_connection(
            max_retries=max(1, len(connection.alt or ())), interval_start=0, interval_step=0, timeout=IO_TIMEOUT_S
        )
        if connection.transport.driver_type == "redis":
            return Redis(connection)
        return RabbitMQ(connection)
    except (*connection.connection_errors, *connection.channel_errors, KombuError, OSError, ValueError) as error:
        connection.collect(IO_TIMEOUT_S)
        raise away(error) from error
