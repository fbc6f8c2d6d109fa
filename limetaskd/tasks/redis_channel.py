"""kombu's Redis channel, with which a kill -9 at any moment loses nothing.

kombu takes a message from its queue (BRPOP) and then records that it holds it: a process that dies in between has
lost it. Here one Lua script does both. Everything else is kombu's: names of keys, priorities, bindings, broadcasts,
so plain kombu may send to and consume from the same queues.

How a channel consumes, on the one connection that kombu polls:

    POP script --message--> deliver, POP again
               --nothing--> BRPOP on the queues' wake lists, 1 s --> POP again

Senders add one element to the wake list in the script that adds the message; it wakes one consumer, not all. A lost
wake-up costs at most the second, also when the sender was plain kombu.

What a dead process held goes back by `redis_owners.restore_dead`; what a channel of a living process held goes back
when it closes, or, when the broker was away then, with the next `maintain` of that process.
"""

from __future__ import annotations

import weakref
from itertools import count
from queue import Empty
from time import monotonic
from typing import Any
from uuid import uuid4

import redis
from kombu.log import get_logger
from kombu.transport import redis as kombu_redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads

from limetaskd.core.redact import redact_text
from limetaskd.errors import LimetaskError
from limetaskd.tasks import redis_owners
from limetaskd.tasks.redis_qos import RECEIPT, Message, QoS, UnreadableMessageError
from limetaskd.tasks.redis_scripts import DEPTHS, HELD, NUDGE, POP, PUSH, refusal

logger = get_logger("limetaskd.redis")

MAINTAIN_S = 10.0
_CLOSE_WAIT_S = 2.0
# Channels of this process that may still hold messages. What another channel held belongs to nobody any more.
_open_channels: set[str] = set()

_POP, _WAIT = "pop", "wait"


class Channel(kombu_redis.Channel):  # type: ignore[misc]
    """Channel of redis:// and rediss://, and what a Sentinel's channel has in common with it."""

    QoS = QoS
    Message = Message

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._token = f"{RECEIPT}{uuid4().hex[:16]}"
        self._numbers = count(1)
        self._sent: str | None = None  # what the polled connection owes an answer to: _POP, _WAIT
        self._sent_receipt = ""
        self._sent_records: dict[str, bool] = {}
        self._idle = False
        self._pop_by_text = False
        self._maintained: float | None = None
        self._unacknowledged: dict[str, bool] = {}  # queue -> its consumer acknowledges nothing
        self._owner = redis_owners.this_process()
        self._script_client: tuple[Any, Any] | None = None
        _open_channels.add(self._token)
        weakref.finalize(self, _open_channels.discard, self._token)
        super().__init__(*args, **kwargs)

    def _after_fork(self) -> None:
        self._owner = redis_owners.this_process()
        self._script_client = None
        super()._after_fork()

    # -- names ---------------------------------------------------------------------------------------------------

    @property
    def unacked_hash(self) -> str:
        """The key, with its prefix, of what this process holds."""
        return redis_owners.unacked_key(self.global_keyprefix, self._owner)

    @property
    def _owners_key(self) -> str:
        return f"{self.global_keyprefix}{redis_owners.OWNERS_KEY}"

    def _wake_key(self, queue: str) -> str:
        return f"{self.global_keyprefix}{queue}{self.sep}wake"

    def _list_keys(self, queue: str) -> list[str]:
        """The lists of one queue, most urgent first, with the prefix."""
        return [self.global_keyprefix + self._q_for_pri(queue, step) for step in self.priority_steps]

    def _queue_of(self, list_key: str) -> str:
        return list_key[len(self.global_keyprefix) :].rsplit(self.sep, 1)[0]

    def _recorded(self, delivery_tag: Any) -> bool:
        """Whether the message is in our hash. Broadcasts and what needs no acknowledgement are not."""
        return isinstance(delivery_tag, str) and delivery_tag.startswith(RECEIPT)

    def scripts(self) -> Any:
        """A client that adds no prefix, on kombu's pool for commands that are answered at once."""
        pool = self.pool
        if self._script_client is None or self._script_client[0] is not pool:
            self._script_client = (pool, redis.Redis(connection_pool=pool))
        return self._script_client[1]

    # -- sending -------------------------------------------------------------------------------------------------

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        priority = self._get_message_priority(message, reverse=False)
        life_ms = self._expires.get(queue, 0)
        keys = [self.global_keyprefix + self._q_for_pri(queue, priority), self._wake_key(queue)]
        if life_ms:
            keys += self._list_keys(queue)
        batch = kwargs.pop("_publish_batch", None)
        if batch is not None:
            batch.add("eval", PUSH.text, len(keys), *keys, dumps(message), life_ms)
            return
        PUSH.run(self.scripts(), keys, [dumps(message), life_ms])

    def nudge(self, queue: str) -> None:
        """Wake a consumer if messages wait: a wake-up may have gone to somebody who cannot use it."""
        NUDGE.run(self.scripts(), [self._wake_key(queue), *self._list_keys(queue)], [])

    def _size(self, queue: str) -> int:
        # Not in a transaction, as kombu does it: a server that is full refuses those, reading or not.
        with self.scripts().pipeline(transaction=False) as pipe:
            for key in self._list_keys(queue):
                pipe.llen(key)
            return sum(pipe.execute())

    def depths(self, queues: list[str]) -> dict[str, tuple[int, float | None]]:
        """For each queue how many messages wait, and when the one at the head was sent (unix s; None: unknown)."""
        keys = [key for queue in queues for key in self._list_keys(queue)]
        answer = iter(DEPTHS.run(self.scripts(), keys, []) if keys else [])
        found: dict[str, tuple[int, float | None]] = {}
        for queue in queues:
            heads = [(int(next(answer)), bytes_to_str(next(answer))) for _ in self.priority_steps]
            sent = [float(text) for _, text in heads if text]
            found[queue] = sum(length for length, _ in heads), min(sent, default=None)
        return found

    def held(self, queue: str) -> int:
        """How many messages of a queue consumers hold unacknowledged, on whatever host."""
        client = self.scripts()
        owners = [bytes_to_str(owner) for owner in client.zrange(self._owners_key, 0, -1)]
        lists = self._list_keys(queue)
        return sum(
            int(HELD.run(client, [redis_owners.unacked_key(self.global_keyprefix, owner), *lists], []))
            for owner in owners
        )

    def restore_dead(self) -> int:
        """Give back what dead processes hold (see `redis_owners`); returns how many messages."""
        return redis_owners.restore_dead(
            self.scripts(), self.global_keyprefix, visibility_s=self.visibility_timeout, separator=self.sep
        )

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        super()._delete(queue, *args, **kwargs)
        self.scripts().delete(self._wake_key(queue))

    # -- taking --------------------------------------------------------------------------------------------------

    def _pop_arguments(self, queues: list[str], receipt: str, record: list[bool]) -> tuple[list[str], list[Any]]:
        lists = [
            self.global_keyprefix + self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues
        ]
        keys = [self.unacked_hash, self._owners_key, *lists, *map(self._wake_key, queues)]
        return keys, [receipt, str(self._owner), len(queues), *(int(flag) for flag in record)]

    def _next_receipt(self) -> str:
        return f"{self._token}.{next(self._numbers)}"

    def _records(self, queue: str) -> bool:
        return bool(self.ack_emulation) and not self._unacknowledged.get(queue, False)

    def basic_consume(self, queue: str, no_ack: bool = False, *args: Any, **kwargs: Any) -> Any:
        self._unacknowledged[queue] = bool(no_ack)
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def basic_get(self, queue: str, no_ack: bool = False, **_kwargs: Any) -> Any:
        """One message or None."""
        receipt, record = self._next_receipt(), bool(self.ack_emulation) and not no_ack
        entry = POP.run(self.scripts(), *self._pop_arguments([queue], receipt, [record]))
        self._maybe_update_queues_expire(self._create_client(), queue)
        if entry is None:
            return None
        try:
            message = self.Message(self._read(entry, receipt if record else None)[1], channel=self)
        except UnreadableMessageError as error:
            self._set_aside(entry, receipt, error)
            return None
        if not no_ack:
            self.qos.append(message, message.delivery_tag)
        return message

    def _get(self, queue: str, **_kwargs: Any) -> Any:
        """The raw message, held by nobody."""
        entry = POP.run(self.scripts(), *self._pop_arguments([queue], "", [False]))
        if entry is None:
            raise Empty
        return self._read(entry, None)[1]

    def _read(self, entry: bytes, receipt: str | None) -> tuple[str, Any]:
        """(queue, message) of an entry; the delivery tag becomes the receipt. Raises UnreadableMessageError."""
        _, list_key, payload = entry.split(b"\0", 2)
        try:
            message = loads(bytes_to_str(payload))
            if receipt is not None:
                message["properties"]["delivery_tag"] = receipt
        except (ValueError, KeyError, TypeError) as error:
            raise UnreadableMessageError(repr(error)) from error
        return self._queue_of(list_key.decode()), message

    def _set_aside(self, entry: bytes, receipt: str, error: Exception) -> None:
        """Out of the way, but not lost: what nobody can read would stop every consumer again and again."""
        _, list_key, payload = entry.split(b"\0", 2)
        queue = self._queue_of(list_key.decode())
        aside = f"{self.global_keyprefix}{queue}{self.sep}unreadable"
        with self.scripts().pipeline() as pipe:
            pipe.rpush(aside, payload)
            pipe.hdel(self.unacked_hash, receipt)
            pipe.execute()
        logger.critical("a message of queue %s cannot be read (%s); it is kept in the list %r", queue, error, aside)

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Send POP, or the wait for a wake-up when the last POP found nothing. (The name is kombu's.)"""
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        if self._idle:
            self.maintain()
            waiting = self.brpop_timeout if timeout is None else timeout
            sent, words = _WAIT, ["BRPOP", *map(self._wake_key, queues), waiting or 0]
        else:
            self._sent_receipt = self._next_receipt()
            self._sent_records = {queue: self._records(queue) for queue in queues}
            keys, arguments = self._pop_arguments(queues, self._sent_receipt, list(self._sent_records.values()))
            script = ["EVAL", POP.text] if self._pop_by_text else ["EVALSHA", POP.sha]
            sent, words = _POP, [*script, len(keys), *keys, *arguments]
        self._sent = sent
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        self.client.connection.send_command(*words)

    def _answer(self) -> Any:
        """Read what the polled connection owes. Raises Empty when the script has to be sent as text first."""
        self._sent = None
        connection = self.client.connection
        try:
            answer = connection.read_response()
        except redis.exceptions.NoScriptError:
            self._pop_by_text = True
            raise Empty from None
        except redis.exceptions.ResponseError as error:
            raise refusal(error) or error from error
        except self.connection_errors:
            # What was taken and not received is given back with the next maintain.
            self._maintained = None
            connection.disconnect()
            raise
        finally:
            self._in_poll = None
        self._pop_by_text = False
        return answer

    def _brpop_read(self, **_options: Any) -> bool:
        sent, receipt = self._sent, self._sent_receipt
        answer = self._answer()
        self._flush_brpop_reauth()
        self._idle = sent == _POP and answer is None
        if sent == _WAIT and answer:
            queue = self._queue_of(bytes_to_str(answer[0]))
            if queue not in self.active_queues:
                self.nudge(queue)
        if sent == _WAIT or answer is None:
            raise Empty
        self._hand_over(answer, receipt)
        return True

    def _hand_over(self, entry: bytes, receipt: str) -> None:
        queue = self._queue_of(entry.split(b"\0", 2)[1].decode())
        recorded = self._sent_records[queue]
        try:
            message = self._read(entry, receipt if recorded else None)[1]
            self._queue_cycle.rotate(queue)
            if queue not in self.connection._callbacks:  # cancelled meanwhile
                self._return(entry, receipt)
                return
            self.connection._deliver(message, queue)
        except UnreadableMessageError as error:
            self._set_aside(entry, receipt, error)

    def _poll_error(self, type: str, **options: Any) -> None:
        if type == "BRPOP":
            self._brpop_read()
        else:
            super()._poll_error(type, **options)

    # -- giving back ---------------------------------------------------------------------------------------------

    def release(self, delivery_tag: str) -> bool:
        """The message is done with; False when it had been given back before, and is, or was, somebody else's.

        Raises redis.ConnectionError on a channel that is closed.
        """
        if not self._recorded(delivery_tag):
            return True
        self._require_open()
        if self.scripts().hdel(self.unacked_hash, delivery_tag):
            return True
        logger.debug("message %s had been given back before it was acknowledged", delivery_tag)
        return False

    def give_back(self, delivery_tags: list[str]) -> int:
        """Put messages back to the head of their queues. Broadcasts are not repeated. Returns how many.

        Raises redis.ConnectionError on a channel that is closed.
        """
        receipts = [tag for tag in delivery_tags if self._recorded(tag)]
        if not receipts:
            return 0
        self._require_open()
        return redis_owners.restore(self.scripts(), self.global_keyprefix, self._owner, receipts, self.sep)

    def _require_open(self) -> None:
        if self.connection is None:
            raise redis.exceptions.ConnectionError("the channel is closed: the message has gone back to its queue")

    def _return(self, entry: bytes, receipt: str) -> None:
        _, list_key, payload = entry.split(b"\0", 2)
        queue = self._queue_of(list_key.decode())
        if self._sent_records[queue]:
            self.give_back([receipt])
            return
        self.scripts().rpush(list_key, payload)
        self.nudge(queue)

    def _restore(self, message: Any, **_kwargs: Any) -> None:
        if not self.ack_emulation:
            super()._restore(message)
            return
        self.give_back([message.delivery_tag])

    def maintain(self, *, now: bool = False) -> None:
        """Every 10 s (or `now`): say that this process lives, give back what belongs to nobody any more.

        That is what closed channels of this process held, what was taken for this channel but never arrived, and
        what dead processes hold. Raises connection errors.
        """
        if not now and self._maintained is not None and monotonic() - self._maintained < MAINTAIN_S:
            return
        self._maintained = monotonic()
        client = self.scripts()
        redis_owners.touch(client, self.global_keyprefix, self._owner)
        held = {bytes_to_str(name) for name in client.hkeys(self.unacked_hash)}
        held.difference_update(*(channel.qos._delivered for channel in self.connection.channels))
        orphans = [receipt for receipt in held if self._is_orphan(receipt)]
        restored = redis_owners.restore(client, self.global_keyprefix, self._owner, orphans, self.sep)
        restored += self.restore_dead()
        if restored:
            logger.warning("%d messages went back to their queues: whoever held them is gone", restored)

    def _is_orphan(self, receipt: str) -> bool:
        """Of a receipt that no channel of this connection has delivered."""
        token = receipt.partition(".")[0]
        if token != self._token:
            return token not in _open_channels
        return not (self._sent == _POP and receipt == self._sent_receipt)

    def _stop_polling(self) -> None:
        """Take back what the polled connection still owes: a message goes back, a wake-up goes on."""
        sent, receipt, connection = self._sent, self._sent_receipt, self._in_poll
        if not connection:
            return
        if connection.can_read(timeout=_CLOSE_WAIT_S if sent == _POP else 0):
            try:
                answer = self._answer()
            except Empty:  # a server that did not know the script took nothing
                answer = None
            if answer and sent == _POP:
                self._return(answer, receipt)
            elif answer:
                self.nudge(self._queue_of(bytes_to_str(answer[0])))
        else:
            connection.disconnect()
        self._in_poll = None

    def close(self) -> None:
        """Give everything back. When the broker is away, `maintain` of another channel or process does it."""
        if not self.closed:
            self._closing = True
            try:
                self._stop_polling()
                if self._qos:
                    self._qos.restore_unacked_once()
            except (redis.exceptions.RedisError, OSError, LimetaskError) as error:
                logger.warning(
                    "messages could not be given back (%s): this is done when the broker is back",
                    redact_text(str(error)),
                )
                self._in_poll = None
                if self._qos:
                    self._qos._delivered.clear()
        _open_channels.discard(self._token)
        super().close()


class SentinelChannel(Channel, kombu_redis.SentinelChannel):  # type: ignore[misc]
    """Channel of sentinel://."""
