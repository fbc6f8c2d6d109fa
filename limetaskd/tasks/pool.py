"""The producers of one app, and what a fork does to them.

Kombu's pools share their connections with every child that a web server forks; two processes that write into one
AMQP connection destroy it. Here a forked child closes its copy of each socket, quietly, and begins anew.
"""

from __future__ import annotations

import os
from typing import Any

import kombu.pools
from kombu.connection import ConnectionPool, PooledConnection
from kombu.exceptions import LimitExceeded
from kombu.pools import ProducerPool

from limetaskd.core.settings import Settings
from limetaskd.tasks.binding import bound_apps, forget_connections
from limetaskd.tasks.errors import BrokerPublishError

# In a forked child: what belonged to the parent. Freeing it could shut the parent's connection down.
_abandoned: list[Any] = []


class _Probe:
    """What `app.send_task` looks at to see whether it should delay the message natively.

    It must not: it refuses delays of less than a second, and it does not know of a retry's queue. `amqp.py` does it.
    """

    driver_type = "limetaskd"
    transport: Any

    def __init__(self) -> None:
        self.transport = self


class SenderConnections(ConnectionPool):  # type: ignore[misc]
    """Connections like `template`."""

    def __init__(self, template: Any, limit: int | None) -> None:
        self.template = template
        super().__init__(_Probe(), limit=limit)

    def new(self) -> PooledConnection:
        return PooledConnection(self, **dict(self.template._info(resolve=False)))


class SenderPool(ProducerPool):  # type: ignore[misc]
    """Kombu's, whose exhaustion is an error of sending."""

    def acquire(self, block: bool = False, timeout: float | None = None) -> Any:
        """A producer. Raises PublishError when none became free in `timeout` seconds."""
        try:
            return super().acquire(block=block, timeout=timeout)
        except LimitExceeded as error:
            if not block:
                raise
            raise BrokerPublishError(
                f"all {self.limit} connections to the broker were in use for {timeout:g} s, probably because it does "
                "not answer; more threads that send at once need a larger broker_pool_limit"
            ) from error


def producer_pool(app: Any, settings: Settings) -> SenderPool:
    """A pool of its own: confirms are for senders; a consumer's connection must never wait for one."""
    options: dict[str, Any] = {}
    connection = app.connection_for_write()
    if connection.transport.driver_type == "amqp":
        options["confirm_publish"] = settings.publish_confirm
    elif connection.transport.driver_type == "redis":
        options["socket_timeout"] = settings.publish_timeout_s
    if options:
        connection = app.connection_for_write(transport_options=options)
    limit = app.conf.broker_pool_limit
    return SenderPool(SenderConnections(connection, limit), limit=limit)


def _connections(pool: Any) -> list[Any]:
    """Connections of a pool of connections or producers, in use or not. Takes no lock: its owner may be gone."""
    if pool is None:
        return []
    if isinstance(pool, ProducerPool):
        return _connections(pool.connections)
    return [item for item in (*pool._resource.queue, *pool._dirty) if isinstance(item, kombu.Connection)]


def _close_quietly(connection: Any) -> None:
    """Close this process's copy of an AMQP socket. A shutdown, or a goodbye to the broker, would end the parent's.

    Redis clients notice the fork themselves.
    """
    transport: Any = getattr(connection._connection, "_transport", None)
    sock = getattr(transport, "sock", None)
    if sock is None:
        return
    transport.sock = None
    os.close(sock.detach())


def _after_fork_in_child() -> None:
    for app in list(bound_apps):
        amqp = app.__dict__.get("amqp")
        producers = getattr(amqp, "_producer_pool", None)
        for connection in [*_connections(app._pool), *_connections(producers)]:
            _close_quietly(connection)
        _abandoned.append((app._pool, producers, app._backend_cache, app._local))
        for key, value in list(kombu.pools.connections.items()):
            if value is app._pool:
                del kombu.pools.connections[key]
        backend = getattr(app._local, "backend", None)
        forget_connections(app)
        if not getattr(backend, "connected", True):
            app._local.backend = backend  # pool children share its memory
        if amqp is not None:
            amqp.forget_locks()
        app._limetaskd_binding.forget_locks()


os.register_at_fork(after_in_child=_after_fork_in_child)
