"""Who a process is, written by itself as its first act: how the next daemon finds what a dead one left behind.

`<runtime_dir>/processes/<name>.<generation>.json`. The process writes it, so that it has one even if its daemon dies
while it starts; the daemon removes it after its death.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from limetaskd.core.documents import loads
from limetaskd.core.process import known_place, process_lives, process_start_ticks
from limetaskd.core.spec import ProcessSpec
from limetaskd.errors import LimetaskError

RECORD_VERSION = 1
_MOST_PID = 2**22  # of the kernel
_LONGEST_S = 1e9


class NumberTakenError(LimetaskError):
    """Another living process has the name and the number of this one."""


@dataclass(frozen=True)
class ProcessRecord:
    """One process: `pid` with `start_ticks` names it, as long as this host is up."""

    name: str
    kind: str
    generation: int
    pid: int
    start_ticks: int
    fingerprint: str
    board: str | None
    log: str
    concurrency: int
    shutdown_timeout_s: float
    place: str | None = None  # boot and pid namespace; None: not known, or of an older version

    def may_live(self, place: str | None) -> bool:
        """Whether its numbers mean the same process at `place` (`known_place`): not after another boot of the host."""
        return place is None or self.place in {None, place}

    def lives(self) -> bool:
        """Whether it lives now, here. Raises OSError when nobody can tell."""
        return self.may_live(known_place()) and process_lives(self.pid, self.start_ticks)

    def to_json(self) -> str:
        return json.dumps({"version": RECORD_VERSION, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> ProcessRecord:
        """Raises ValueError for another version or a damaged document."""
        document = loads(text)
        if not isinstance(document, dict) or document.pop("version", None) != RECORD_VERSION:
            raise ValueError(f"not a process record of version {RECORD_VERSION}")
        try:
            record = cls(**document)
        except TypeError as error:
            raise ValueError(f"damaged process record: {error}") from error
        numbers = (record.generation, record.pid, record.start_ticks, record.concurrency)
        texts = (record.name, record.kind, record.fingerprint, record.log, record.board or "", record.place or "")
        if not all(type(number) is int for number in numbers) or not all(isinstance(text, str) for text in texts):
            raise ValueError("damaged process record: a value of the wrong type")
        timeout_s = record.shutdown_timeout_s
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 <= timeout_s <= _LONGEST_S:
            raise ValueError(f"damaged process record: shutdown_timeout_s is {timeout_s!r}")
        if min(numbers) < 0 or not 0 < record.pid <= _MOST_PID:
            raise ValueError("damaged process record: a number out of range")
        return record


def write_own_record(spec: ProcessSpec) -> None:
    """Write the record of the calling process, atomically; without a path (run by hand): nothing.

    Raises OSError, and NumberTakenError: this process came so late that the next daemon did not know of it, and has
    given its number to another one.
    """
    if spec.record is None:
        return
    pid = os.getpid()
    record = ProcessRecord(
        name=spec.name,
        kind=spec.kind,
        generation=spec.generation,
        pid=pid,
        start_ticks=process_start_ticks(pid) or 0,
        fingerprint=spec.fingerprint,
        board=spec.board,
        log=spec.log,
        concurrency=spec.concurrency,
        shutdown_timeout_s=spec.shutdown_timeout_s,
        place=known_place(),
    )
    path = Path(spec.record)
    temporary = path.with_name(f".{path.name}.{pid}.new")
    try:
        temporary.write_text(record.to_json())
        try:
            os.link(temporary, path)
        except OSError:  # it is there, or its file system knows no links
            _refuse_if_taken(path)
            temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_if_taken(path: Path) -> None:
    try:
        other = ProcessRecord.from_json(path.read_text())
    except (OSError, ValueError):
        return
    if other.pid != os.getpid() and other.lives():
        raise NumberTakenError(f"limetaskd: {path.stem} is pid {other.pid} now: this process came too late, and ends")
