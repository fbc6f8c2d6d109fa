"""Publishing until the broker has confirmed, within one deadline.

Errors are of three kinds: the broker is away (refused, hangs, dies: try again until the deadline), it refuses for
good (other queue arguments, no permission, nacked: raise at once), and the message cannot be encoded (raised as it
is). After any error on the wire the connection is dropped, because a late confirm of this message must never be
taken for the confirm of the next one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import amqp.exceptions
import kombu
from kombu.exceptions import OperationalError, SerializationError
from kombu.transport.native_delayed_delivery import (
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)

from limetaskd.core.redact import redact_text
from limetaskd.tasks.errors import BrokerPublishError, BrokerRefusedError

CONNECT_TIMEOUT_S = 4.0
_SHORTEST_S = 0.05
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
# Reply codes of AMQP after which trying again is no use: 402 invalid path, 403 access refused, 405 resource locked,
# 406 precondition failed (other arguments, message too large), 530 not allowed (no such virtual host).
_FOR_GOOD = frozenset({402, 403, 405, 406, 530})
_UNROUTABLE = frozenset({312, 404})


class Publisher:
    """Stands in for kombu's producer in Celery's sender of one task message."""

    def __init__(
        self,
        producer: Any,
        *,
        task: str,
        queue: str,
        deadline: float,
        timeout_s: float,
        confirm: bool,
        attempts: int | None = None,
    ) -> None:
        self._producer = producer
        self._task = task
        self._queue = queue
        self._deadline = deadline
        self._timeout_s = timeout_s
        self._confirm = confirm
        self._attempts = attempts
        self.connection = producer.connection
        self.is_amqp = self.connection.transport.driver_type == "amqp"
        self.delayed_queue: kombu.Queue | None = None  # goes there by native delayed delivery
        self.delayed_queue_type = "quorum"

    def publish(self, body: Any, **options: Any) -> Any:
        """As Producer.publish, once confirmed. Raises PublishError."""
        tried = 0
        declared_anew = False
        while True:
            tried += 1
            try:
                return self._try(body, options)
            except SerializationError:
                raise
            except amqp.exceptions.MessageNacked as error:
                raise self._refused("did not accept it (nack), the queue may be full", error) from error
            except self._errors() as error:
                code = getattr(error, "code", None)
                if code in _UNROUTABLE and not declared_anew:
                    # The queue was deleted after this connection had declared it; nothing was stored.
                    declared_anew = True
                    continue
                if _is_for_good(error) or code in _UNROUTABLE:
                    raise self._refused(f"refused it: {_text(error)}", error) from error
                self._give_up_or_wait(error, tried)

    def _errors(self) -> tuple[type[Exception], ...]:
        connection = self.connection
        return (*connection.connection_errors, *connection.channel_errors, OperationalError)

    def _remaining(self) -> float:
        """Seconds that this try may take. With another broker to go to, one that hangs does not get all the time."""
        remaining = max(self._deadline - time.monotonic(), _SHORTEST_S)
        return min(remaining, max(self._timeout_s / 3, CONNECT_TIMEOUT_S)) if self.connection.alt else remaining

    def _try(self, body: Any, options: dict[str, Any]) -> Any:
        connection = self.connection
        try:
            shortened = connect(connection, self._remaining(), self._timeout_s)
            before = bound_socket(connection, self._remaining())
            if is_stale(self._producer, connection):
                self._producer.revive(connection)
            channel = self._producer.channel
            self._declare_delay(connection)
            confirmed = self._confirm and self.is_amqp
            if confirmed and not channel.connection.confirm_publish:
                # A producer of the application's own. From here on its channel confirms everything.
                channel.basic_publish = channel.basic_publish_confirm
            with returned_messages(channel, confirmed) as returned:
                remaining = self._remaining()
                once = {"retry": False, "retry_policy": None, "mandatory": confirmed}
                result = self._producer.publish(
                    body, **{**options, **once, "timeout": remaining, "confirm_timeout": remaining}
                )
            if returned:
                raise returned[0]
            bound_socket(connection, before)
        except SerializationError:
            raise
        except BaseException:
            drop(connection)
            raise
        if shortened:
            drop(connection)  # its timeouts are those of the end of this deadline
        return result

    def _declare_delay(self, connection: Any) -> None:
        queue = self.delayed_queue
        if queue is None:
            return
        done = connection.declared_entities  # of kombu: emptied with each new connection
        if "limetaskd delay" not in done:
            declare_native_delayed_delivery_exchanges_and_queues(connection, self.delayed_queue_type)
            done.add("limetaskd delay")
        mark = f"limetaskd delay {queue.name}"
        if mark not in done:
            self._producer.maybe_declare(queue)
            bind_queue_to_native_delayed_delivery_exchange(connection, queue)
            done.add(mark)

    def _give_up_or_wait(self, error: Exception, tried: int) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0 or (self._attempts is not None and tried >= self._attempts):
            raise BrokerPublishError(
                f"task {self._task} was not confirmed by the broker within {self._timeout_s:g} s "
                f"(queue {self._queue}, {tried} {'try' if tried == 1 else 'tries'}, last: {_text(error)})"
            ) from error
        self.connection.maybe_switch_next()
        if tried > 1:  # the first error is often only an idle connection that the broker has closed
            pause = min(_FIRST_PAUSE_S * 2 ** (tried - 2), _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
            time.sleep(min(pause, remaining))

    def _refused(self, what: str, error: Exception) -> BrokerRefusedError:
        hint = ""
        if getattr(error, "code", None) == 406 and "inequivalent arg" in str(error):
            hint = (
                "; it exists there with other arguments: set limetaskd.queue_type to what it has, or delete it when it "
                "is empty"
            )
        return BrokerRefusedError(f"task {self._task}, queue {self._queue}: the broker {what}{hint}")


def _is_for_good(error: Exception) -> bool:
    causes = [error, *([error.__cause__] if isinstance(error.__cause__, Exception) else [])]
    if any(getattr(cause, "code", None) in _FOR_GOOD for cause in causes):
        return True
    # redis: wrong password; a command that the server answers with an error.
    return any(type(cause).__name__ in ("AuthenticationError", "ResponseError", "NoPermissionError",
               "ScriptingRefusedError") for cause in causes)  # fmt: skip


def _text(error: Exception) -> str:
    text = getattr(error, "reply_text", None) or str(error) or type(error).__name__
    return redact_text(" ".join(str(text).split()))


def connect(connection: Any, remaining: float, timeout_s: float) -> bool:
    """Connect when it is not. Returns whether the connection must not outlive this send (Redis, near its deadline).

    Raises what the broker raises, after one try.
    """
    if connection.connected:
        return False
    connection.connect_timeout = min(CONNECT_TIMEOUT_S, remaining)
    shortened = False
    if connection.transport.driver_type == "redis":
        # Its timeout is the connection's, not the command's.
        shortened = remaining < timeout_s * 0.9
        connection.transport_options = {  # a new dict: the connections of a pool share theirs
            **connection.transport_options,
            "socket_timeout": remaining,
            "socket_connect_timeout": min(CONNECT_TIMEOUT_S, remaining),
        }
    connection._ensure_connection(max_retries=0, reraise_as_library_errors=False)
    return shortened


def bound_socket(connection: Any, seconds: float | None) -> float | None:
    """No read or write of an AMQP connection takes longer from now on: a broker that hangs answers nothing at all.

    Returns the limit that it had (None: none).
    """
    sock = getattr(getattr(connection._connection, "_transport", None), "sock", None)
    if sock is None:
        return None
    before: float | None = sock.gettimeout()
    sock.settimeout(seconds)
    return before


def is_stale(producer: Any, connection: Any) -> bool:
    """Whether the producer's channel belongs to a connection that is no more."""
    channel = producer._channel
    if callable(channel):  # kombu's promise of a channel
        return False
    return channel is None or channel.connection is None or channel.connection is not connection._connection


@contextmanager
def returned_messages(channel: Any, wanted: bool) -> Iterator[list[Exception]]:
    """What the broker returns as unroutable meanwhile."""
    returned: list[Exception] = []
    if not wanted:
        yield returned
        return

    def on_return(error: Exception, _exchange: str, _routing_key: str, _message: Any) -> None:
        returned.append(error)

    handlers = channel.events["basic_return"]
    handlers.add(on_return)
    try:
        yield returned
    finally:
        handlers.discard(on_return)


def drop(connection: Any) -> None:
    """Close without a word to the broker, which may hang; the next use connects anew."""
    bound_socket(connection, _SHORTEST_S)
    connection.collect(socket_timeout=_SHORTEST_S)
    connection._default_channel = None
