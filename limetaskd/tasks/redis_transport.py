"""kombu's Redis transport, with which a kill -9 at any moment loses nothing: the transports and their URLs.

Use it by `transport_url(url)`. How it works is in `redis_channel.py`; what runs in Redis in `redis_scripts.py`; who
holds what, and how it goes back, in `redis_owners.py`.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Any

from kombu import transport as kombu_transports
from kombu.transport import redis as kombu_redis

from limetaskd.tasks.redis_channel import Channel, SentinelChannel
from limetaskd.tasks.redis_owners import restore_dead
from limetaskd.tasks.redis_scripts import ScriptingRefusedError

__all__ = [
    "ScriptingRefusedError",
    "SecureTransport",
    "SentinelTransport",
    "Transport",
    "restore_dead",
    "transport_url",
]


class _Collectable:
    """kombu's `Connection.collect` sets the process's default socket timeout meanwhile, unless a transport collects.

    In two threads at once that leaves the timeout set, for every socket that the application opens from then on.
    """

    def _collect(self: Any, connection: Any) -> None:
        with suppress(*self.connection_errors, *self.channel_errors, OSError):  # it is given up in any case
            self.close_connection(connection)


class Transport(_Collectable, kombu_redis.Transport):  # type: ignore[misc]
    """limeredis://, and limeredis+socket:// for UNIX sockets."""

    Channel = Channel


class SecureTransport(Transport):
    """limerediss://: TLS; the server's certificate is checked unless the URL or `broker_use_ssl` says otherwise."""

    def __init__(self, client: Any, **kwargs: Any) -> None:
        if not client.ssl:
            client.ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        super().__init__(client, **kwargs)


class SentinelTransport(_Collectable, kombu_redis.SentinelTransport):  # type: ignore[misc]
    """limesentinel://."""

    Channel = SentinelChannel


_SCHEMES = {"redis": "limeredis", "rediss": "limerediss", "sentinel": "limesentinel"}

# Names of our own: other connections of the application go on using kombu's.
kombu_transports.TRANSPORT_ALIASES.update(
    {
        "limeredis": "limetaskd.tasks.redis_transport:Transport",
        "limerediss": "limetaskd.tasks.redis_transport:SecureTransport",
        "limesentinel": "limetaskd.tasks.redis_transport:SentinelTransport",
    }
)


def transport_url(url: str) -> str:
    """The broker URL (or several, joined by `;`) by which kombu and Celery use this transport.

    redis, rediss, redis+socket and sentinel become limeredis, ...; others stay as they are.
    """
    return ";".join(_transport_url(part) for part in url.split(";"))


def _transport_url(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    first, plus, second = scheme.partition("+")
    return f"{_SCHEMES.get(first, first)}{plus}{second}{mark}{rest}"
