"""What an operator does with tasks in quarantine, on RabbitMQ and Redis alike: list, show, replay, drop.

Messages are taken one by one on a channel of their own; those that stay go back, in their order, when it closes.
Another operator at the same moment sees fewer; nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import amqp
from kombu import Connection, Producer

from limetaskd.core.quarantine import HEADER, Entry, quarantine_queue
from limetaskd.errors import CommandError
from limetaskd.tasks.kept import NOT_OURS, PROPERTIES

MOST = 1000  # of one queue at a time
SHOWN = 100
_TEXT = 300
_BODY = 16 * 1024


class Held:
    """A message in our hands, and what it says of itself."""

    def __init__(self, message: Any, queue: str) -> None:
        self.message = message
        self.queue = queue  # where it came from, by the quarantine that it is in
        try:
            self.entry = Entry.from_json(str((message.headers or {})[HEADER]))
        except (KeyError, ValueError):
            headers = message.headers or {}
            self.entry = Entry(str(headers.get("id")), str(headers.get("task")), queue, "", queue)

    def summary(self) -> dict[str, Any]:
        """One line of the list."""
        entry, headers = self.entry, self.message.headers or {}
        last = entry.deaths[-1] if entry.deaths else {}
        return {
            "id": entry.task_id,
            "name": entry.task_name,
            "queue": entry.queue,
            "args": str(headers.get("argsrepr"))[:_TEXT],
            "kwargs": str(headers.get("kwargsrepr"))[:_TEXT],
            "deaths": len(entry.deaths),
            "since": last.get("at"),
            "reason": str(last.get("by"))[:_TEXT] if last else None,
        }

    def details(self) -> dict[str, Any]:
        """All of it, as far as a packet holds it."""
        body = self.message.body
        text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body)
        headers = {
            key: value if isinstance(value, int | float | bool | None) else str(value)[:_TEXT]
            for key, value in (self.message.headers or {}).items()
            if key != HEADER
        }
        return {**self.summary(), "history": self.entry.deaths[-20:], "headers": headers, "body": text[:_BODY]}


@contextmanager
def _held(connection: Any, queue: str) -> Iterator[list[Held]]:
    """Every message in the quarantine of `queue`; what is not acknowledged inside goes back at the end."""
    channel = connection.channel()
    try:
        found: list[Held] = []
        try:
            while len(found) < MOST:
                message = channel.basic_get(quarantine_queue(queue), no_ack=False)
                if message is None:
                    break
                found.append(Held(_as_kombu(channel, message), queue))
        except amqp.exceptions.NotFound:
            channel = None  # no task has ever been there; the question closed the channel
            found = []
        yield found
    finally:
        if channel is not None:
            channel.close()


def _as_kombu(channel: Any, message: Any) -> Any:
    """py-amqp gives its own messages, our Redis channel those of kombu."""
    return message if hasattr(message, "ack") else channel.message_to_python(message)


def obey(
    connection: Any, sending: Connection, store: Any, queues: list[str], params: dict[str, Any]
) -> dict[str, Any]:
    """Carry out `action` of `params` on the quarantines of `queues` (actual names).

    `sending`: a connection that confirms; `store`: the ResultStore. Raises CommandError, and what the broker raises.
    """
    action, wanted, everything = params.get("action"), list(params.get("tasks") or ()), bool(params.get("all"))
    if action == "list":
        return _list(connection, queues)
    if action not in ("show", "replay", "drop"):
        raise CommandError(f"quarantine knows list, show, replay and drop, not {action!r}")
    done: list[dict[str, Any]] = []
    for queue in queues:
        with _held(connection, queue) as messages:
            for held in messages:
                if not everything and held.entry.task_id not in wanted:
                    continue
                if action == "show":
                    done.append(held.details())
                    continue
                if action == "replay":
                    store.forget(held.entry.task_id)
                    _send(sending, held)
                held.message.ack()
                done.append(held.summary())
    missing = [task_id for task_id in wanted if task_id not in {item["id"] for item in done}]
    if missing:
        raise CommandError(f"not in quarantine: {', '.join(missing)}" + (f" ({len(done)} others done)" if done else ""))
    return {"tasks": done[:SHOWN], "count": len(done)}


def _list(connection: Any, queues: list[str]) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for queue in queues:
        with _held(connection, queue) as messages:
            found += [held.summary() for held in messages]
    return {"tasks": found[:SHOWN], "count": len(found)}


def _send(sending: Connection, held: Held) -> None:
    """Back into the queue that it came from, by the default exchange, as new."""
    message = held.message
    headers = {key: value for key, value in (message.headers or {}).items() if key not in (HEADER, *NOT_OURS)}
    properties = {key: message.properties[key] for key in PROPERTIES if message.properties.get(key) is not None}
    Producer(sending).publish(
        message.body, exchange="", routing_key=held.entry.queue, content_type=message.content_type,
        content_encoding=message.content_encoding, headers=headers, delivery_mode=2, **properties,
    )  # fmt: skip
