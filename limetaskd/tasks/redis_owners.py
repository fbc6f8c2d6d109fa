"""Who holds unacknowledged messages on Redis, and giving back what the dead hold.

Every consumer process is an owner with a hash of its own, so its messages can be given back as soon as it is known
to be dead. What is known depends on where it ran:

* here (this host, this boot, this pid namespace): its pid and start time tell at once;
* this host, but another boot or container: when it has not been seen for `NEIGHBOUR_S`;
* another host: when it has not been seen for the visibility timeout.

An owner is seen when it takes a message, every 10 s in its event loop, and, while it lives, by anybody who runs
`restore_dead` beside it (the agent): a long task of a living process is never given to somebody else.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from limetaskd.core.documents import loads
from limetaskd.core.process import process_may_live, process_start_ticks, this_place
from limetaskd.tasks.redis_scripts import FORGET, RESTORE, SEPARATOR, TOUCH

NEIGHBOUR_S = 60.0
VISIBILITY_S = 3600.0
OWNERS_KEY = "unacked_owners"


@dataclass(frozen=True)
class Owner:
    """One process. `place` names boot and pid namespace: pids can be compared within it only."""

    host: str
    place: str
    pid: int
    start_ticks: int

    def __str__(self) -> str:
        return f"{self.host}.{self.place}.{self.pid}.{self.start_ticks}"

    @classmethod
    def parse(cls, text: str) -> Owner:
        """Raises ValueError."""
        host, place, pid, ticks = text.rsplit(".", 3)
        return cls(host, place, int(pid), int(ticks))


@lru_cache(maxsize=4)
def _this_process(pid: int) -> Owner:
    return Owner(socket.gethostname(), this_place(), pid, process_start_ticks(pid) or 0)


def this_process() -> Owner:
    """The calling process, also right after a fork."""
    return _this_process(os.getpid())


def unacked_key(key_prefix: str, owner: object) -> str:
    return f"{key_prefix}unacked.{owner}"


def wake_key(list_key: str, separator: str = SEPARATOR) -> str:
    """The wake list of the queue that a list (of any priority) belongs to."""
    return f"{list_key.split(separator, 1)[0]}{separator}wake"


def _redelivered(payload: bytes) -> bytes:
    """The payload with the marks that kombu sets; one that is not a message goes back as it is."""
    try:
        message = loads(payload)
        message["headers"]["redelivered"] = True
        message["properties"]["delivery_info"]["redelivered"] = True
    except (ValueError, KeyError, TypeError):
        return payload
    return json.dumps(message).encode()


def restore(
    client: Any, key_prefix: str, owner: object, receipts: Iterable[str] | None = None, separator: str = SEPARATOR
) -> int:
    """Give back what `owner` holds (or only `receipts`), each message to the head of its queue, in its old order.

    `client`: a redis client that adds no prefix. Returns how many. Each message moves in one step: when this process
    dies in between, the rest is still held. Raises what redis raises.
    """
    key = unacked_key(key_prefix, owner)
    if receipts is None:
        held = {bytes(name).decode(): bytes(entry) for name, entry in client.hgetall(key).items()}
    else:
        names = list(receipts)
        found = client.hmget(key, names) if names else []
        held = {name: bytes(entry) for name, entry in zip(names, found, strict=True) if entry is not None}
    moves = []
    for receipt, entry in held.items():
        stamp, name_of_list, payload = entry.split(b"\0", 2)
        moves.append((int(stamp), receipt, name_of_list.decode(), payload))
    restored = 0
    # The newest first: the right end is the head, so the oldest ends up there.
    for _, receipt, list_key, payload in sorted(moves, reverse=True):
        keys = [key, list_key, wake_key(list_key, separator)]
        restored += int(RESTORE.run(client, keys, [receipt, _redelivered(payload)]))
    if receipts is None:
        FORGET.run(client, [key, key_prefix + OWNERS_KEY], [str(owner)])
    return restored


def touch(client: Any, key_prefix: str, owner: object) -> None:
    """Say that `owner` lives."""
    TOUCH.run(client, [unacked_key(key_prefix, owner), key_prefix + OWNERS_KEY], [str(owner)])


def restore_dead(
    client: Any,
    key_prefix: str = "",
    *,
    host: str | None = None,
    alive: Callable[[int, int], bool] = process_may_live,
    visibility_s: float = VISIBILITY_S,
    neighbour_s: float = NEIGHBOUR_S,
    separator: str = SEPARATOR,
) -> int:
    """Give back the messages of every owner that is dead (see above), and touch those here that live.

    `client`: a redis client that adds no prefix; `host`: this host's name; `alive(pid, start_ticks)`. Safe to run
    anywhere at any time, by many at once. Returns how many messages went back. Raises what redis raises.
    """
    host = host or socket.gethostname()
    place = this_place()
    known = client.zrange(key_prefix + OWNERS_KEY, 0, -1, withscores=True)
    if not known:
        return 0
    now = float(client.time()[0])
    restored = 0
    for raw, seen in known:
        name = bytes(raw).decode()
        try:
            owner = Owner.parse(name)
        except ValueError:
            client.zrem(key_prefix + OWNERS_KEY, raw)
            continue
        unseen_s = now - float(seen)
        if (owner.host, owner.place) == (host, place):
            if alive(owner.pid, owner.start_ticks):
                if unseen_s >= neighbour_s / 6:
                    touch(client, key_prefix, owner)
                continue
        elif unseen_s < (neighbour_s if owner.host == host else visibility_s):
            continue
        restored += restore(client, key_prefix, owner, separator=separator)
    return restored
