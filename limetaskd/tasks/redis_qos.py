"""kombu's messages and acknowledgements on Redis, where the script that took a message has recorded it."""

from __future__ import annotations

from typing import Any

from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

RECEIPT = "lt-"  # how our delivery tags begin: none of kombu's does


class UnreadableMessageError(ValueError):
    """The message cannot be decoded."""


class Message(virtual.Message):  # type: ignore[misc]
    """kombu's message; one with a damaged body says so with an error of its own."""

    given_back = False  # it was acknowledged too late: somebody else has it, or had it

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **kwargs)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnreadableMessageError(repr(error)) from error


class QoS(kombu_redis.QoS):  # type: ignore[misc]
    """Acknowledgement. The script that took a message has recorded it already."""

    def append(self, message: Any, delivery_tag: str) -> None:
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        message = self._delivered.get(delivery_tag)
        if not self.channel.release(delivery_tag) and message is not None:
            message.given_back = True
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Requeued messages go to the head of their queue, as on RabbitMQ."""
        if requeue:
            self.channel.give_back([delivery_tag])
        else:
            self.channel.release(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def restore_by_tag(self, tag: str, *_args: Any, **_kwargs: Any) -> None:
        self.channel.give_back([tag])

    def restore_unacked(self, **_kwargs: Any) -> None:
        self._flush()
        self.channel.give_back(list(self._delivered))
        self._delivered.clear()

    def restore_visible(self, **_kwargs: Any) -> None:
        """kombu calls this at the start and every 10 s."""
        self.channel.maintain()
