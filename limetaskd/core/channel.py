"""The local channel between the daemon and its processes: message shapes and their encoding (pure).

A UNIX SOCK_SEQPACKET socket at `<runtime_dir>/channel.sock`; one JSON document a packet, at most `MAX_BYTES`.
It works when the broker does not. The process connects and reconnects for ever; it sends its full state at each
connection, at each change and every `REPORT_INTERVAL_S`, never a difference, so a new daemon knows all at once:

    process -> daemon   {"v": 1, "type": "state", "name", "generation", "pid", "phase", "queues", "reason",
                         "active", "reserved", "concurrency", "data"}
    daemon  -> process  {"v": 1, "type": "command", "id": 7, "command": "grow", "params": {"slots": 2}}
    process -> daemon   {"v": 1, "type": "reply", "id": 7, "error": null, "result": {}}
    process -> daemon   {"v": 1, "type": "event", "event": "name", "fields": {...}}

Commands a worker knows: `drain` (cancel consumers, finish what runs, exit 0), `grow`/`shrink` {"slots": n}, `retire`
{"pid"} (a pool child, replaced after its task), `revoke` {"id"} of a task, `reopen` (its log file), `configure`
{"log_level", "shutdown_timeout_s"}, and about {"queue": configured or actual name} `consume`, `cancel` (what had not
begun goes back to the broker) and `held` -> {"held": n}. A beat knows `drain`, `reopen`, `configure` {"log_level"}. The
agent: see `limetaskd/agent`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from limetaskd.core.documents import loads
from limetaskd.errors import ChannelError

CHANNEL_VERSION = 1
MAX_BYTES = 128 * 1024
REPORT_INTERVAL_S = 5.0


class Phase:
    """What a process says of itself. A worker consumes, or says why it does not."""

    STARTING = "starting"  # importing, not connected yet
    CONNECTING = "connecting"  # waits for its broker; `reason` says what the broker answered
    CONSUMING = "consuming"  # does its work: RUNNING
    DRAINING = "draining"  # takes nothing new, finishes what runs
    FAILED = "failed"  # will exit; `reason` says why (an import error, a refused queue)


@dataclass(frozen=True)
class State:
    """The full state of one process, as it says itself. `queues` are actual names now consumed."""

    name: str
    generation: int
    pid: int
    phase: str
    queues: list[str] = field(default_factory=list)
    reason: str | None = None
    active: int | None = None
    reserved: int | None = None
    concurrency: int | None = None
    data: dict[str, Any] = field(default_factory=dict)  # the agent's figures; a worker's signs of life


@dataclass(frozen=True)
class Command:
    id: int
    command: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    id: int
    error: str | None = None
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    event: str
    fields: dict[str, Any] = field(default_factory=dict)


Message = State | Command | Reply | Event
_TYPES: dict[str, type[State | Command | Reply | Event]] = {
    "state": State,
    "command": Command,
    "reply": Reply,
    "event": Event,
}


def encode(message: Message) -> bytes:
    """One packet. Raises ChannelError when it is larger than MAX_BYTES."""
    packet = json.dumps({"v": CHANNEL_VERSION, "type": type(message).__name__.lower(), **asdict(message)}).encode()
    if len(packet) > MAX_BYTES:
        raise ChannelError(f"a {type(message).__name__.lower()} message of {len(packet)} bytes is too large")
    return packet


def decode(packet: bytes) -> Message:
    """Raises ChannelError, with the reason, for anything that is not a message of this version."""
    try:
        document = loads(packet)
    except ValueError as error:
        raise ChannelError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ChannelError("not a JSON object")
    if document.pop("v", None) != CHANNEL_VERSION:
        raise ChannelError(f"not version {CHANNEL_VERSION} of the channel")
    kind = _TYPES.get(str(document.pop("type", None)))
    if kind is None:
        raise ChannelError("unknown type of message")
    try:
        return kind(**document)
    except TypeError as error:
        raise ChannelError(str(error)) from error
