"""Messages that a worker acknowledged before their task had ended: `<state_dir>/kept/*.json`, one file each.

RabbitMQ gives up on a consumer that holds a message for long (`consumer_timeout`). So a worker writes such a message
here, whole, and acknowledges it; the file goes when the task has ended. What nobody holds any more (its worker died,
gave it back, or it waits for a far ETA) the agent sends again, see `limetaskd.agent.kept`.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kombu.utils import json

from limetaskd.core.documents import loads
from limetaskd.core.process import process_may_live, process_start_ticks, this_place

KEPT_VERSION = 1
# What `write` raises: the disk, or headers that JSON does not know.
WRITE_ERRORS = (OSError, ValueError, TypeError)

# What of a message's properties goes with it again; the rest belongs to one delivery.
PROPERTIES = ("correlation_id", "reply_to", "priority", "message_id", "timestamp", "type", "user_id", "app_id")
# Headers that a broker added.
NOT_OURS = ("x-delivery-count", "x-acquired-count", "x-death", "x-first-death-exchange", "redelivered")


def folder_of(state_dir: str) -> Path:
    return Path(state_dir, "kept")


Owner = tuple[str, int, int]


def lives(owner: Owner) -> bool:
    """Of another boot or pid namespace: nobody lives. A state_dir belongs to one host."""
    place, pid, start_ticks = owner
    return place == this_place() and process_may_live(pid, start_ticks)


@dataclass(frozen=True)
class Kept:
    """One message. `queue`: actual name. `owner`: place (boot, pid namespace), pid and start (clock ticks) of the
    worker that runs it; None: nobody.

    `due`: unix seconds, not to be sent before.
    """

    task_id: str
    task_name: str
    queue: str
    owner: Owner | None
    due: float
    body: bytes = field(repr=False)
    content_type: str | None
    content_encoding: str | None
    headers: dict[str, Any] = field(repr=False)
    properties: dict[str, Any] = field(repr=False)

    @classmethod
    def of_message(cls, message: Any, task_id: str, task_name: str, queue: str, due: float | None = None) -> Kept:
        """`message`: kombu's. `due` None: this process runs the task."""
        pid = os.getpid()
        body = message.body
        return cls(
            task_id=task_id,
            task_name=task_name,
            queue=queue,
            owner=(this_place(), pid, process_start_ticks(pid) or 0) if due is None else None,
            due=due or 0.0,
            body=body.encode() if isinstance(body, str) else bytes(body),
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers={key: value for key, value in (message.headers or {}).items() if key not in NOT_OURS},
            properties={key: message.properties[key] for key in PROPERTIES if message.properties.get(key) is not None},
        )

    def to_json(self) -> str:
        """Raises ValueError, TypeError for headers that JSON does not know."""
        document = dataclasses.asdict(self) | {"body": base64.b64encode(self.body).decode()}
        return str(json.dumps({"version": KEPT_VERSION, **document}))

    @classmethod
    def from_json(cls, text: str) -> Kept:
        """Raises ValueError for another version or a damaged document."""
        document = loads(text, json.loads)
        if not isinstance(document, dict) or document.pop("version", None) != KEPT_VERSION:
            raise ValueError(f"not a kept message of version {KEPT_VERSION}")
        try:
            owner = document["owner"]
            document["owner"] = None if owner is None else (str(owner[0]), int(owner[1]), int(owner[2]))
            document["body"] = base64.b64decode(document["body"], validate=True)
            document["due"] = float(document["due"])
            document["headers"], document["properties"] = dict(document["headers"]), dict(document["properties"])
            return cls(**document)
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"damaged: {error}") from error


def write(path: Path, kept: Kept) -> None:
    """Whole or not at all, and on the disk when this returns. Raises OSError, ValueError, TypeError."""
    text = kept.to_json()
    if not path.parent.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sync(path.parent.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  a descriptor
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def new_path(folder: Path) -> Path:
    """A name that no other process of this host takes."""
    return folder / f"{time.time_ns()}-{os.getpid()}.json"
