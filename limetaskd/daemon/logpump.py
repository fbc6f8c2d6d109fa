"""Logs to `logging.destination`, each line once: one thread that follows every process's own file.

Processes write to `<state_dir>/log/<name>.log` themselves and never to a pipe of ours, so nobody's death or slowness
blocks them. This thread follows those files (inotify), passes whole lines on, remembers after each batch how far it
came (`.<name>.offset`, for the next daemon after a kill -9 of this one), rotates files that have grown, and writes the
daemon's own records. The loop only hands records over; it never waits for the disk or for a full standard error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import select
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inotify_simple import INotify
from inotify_simple import flags as inotify_flags

from limetaskd.core.documents import loads
from limetaskd.core.jsonlog import JsonFormatter, as_text, cut, timestamp
from limetaskd.core.redact import redact_text
from limetaskd.plan.model import LoggingPlan

log = logging.getLogger("limetaskd.logs")

DAEMON_LOG = "limetaskd.log"
# How every record of ours begins.
_RECORD = '{"@timestamp"'
_CHUNK = 1024 * 1024
_MAX_WAITING = 100_000  # records of the daemon that may wait for a blocked destination
# A renamed file is polled this long: its writer may not have noticed yet, and another folder tells us nothing.
_OLD_FILE_S = 60.0
_OLD_POLL_S = 1.0
_PAUSE_AFTER_ERROR_S = 1.0
_OFFSET_BYTES = 48
_CURRENT, _RENAMED = 0, _OFFSET_BYTES  # where in the file of offsets
_HOST = socket.gethostname()


@dataclass
class Tail:
    """A file that is followed: `offset` is how far whole lines have been passed on."""

    name: str  # of the process
    descriptor: int
    inode: int
    offset: int
    offsets: int  # descriptor of the file that keeps `offset`, and below it that of the newest renamed file
    old_until: float | None = None  # monotonic; set once the file has been renamed
    succeeded: bool = False  # by another renamed file of this name

    def save(self) -> None:
        """Survives our own kill -9 at once: it is in the kernel's page cache. Not synced: a crash of the host may
        repeat the last lines, and loses none."""
        if not self.succeeded:
            place = _CURRENT if self.old_until is None else _RENAMED
            os.pwrite(self.offsets, f"{self.inode} {self.offset}".ljust(_OFFSET_BYTES).encode(), place)

    def over(self, now: float) -> bool:
        """Whether nobody can write to this renamed file any more, or it has been replaced by the next one."""
        late = self.old_until is not None and now > self.old_until
        return late and (self.succeeded or os.fstat(self.descriptor).st_nlink == 0)

    def close(self) -> None:
        os.close(self.descriptor)
        os.close(self.offsets)


class PumpHandler(logging.Handler):
    """Hands the daemon's records to the pump; formatting happens here, writing in its thread."""

    def __init__(self, pump: LogPump) -> None:
        super().__init__()
        self.pump = pump
        self.setFormatter(JsonFormatter("limetaskd"))

    def emit(self, record: logging.LogRecord) -> None:
        self.pump.put(self.format(record))


def _wait_for_room(descriptor: int) -> None:
    """As a write that blocks would: for as long as nobody reads."""
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)
    poller.poll()


def check_destination(plan: LoggingPlan) -> None:
    """Raises OSError when the destination cannot be opened."""
    if plan.destination != "stderr":
        os.close(os.open(plan.destination, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640))


class LogPump:
    """Follows `log_dir` and writes to the destination until `close`."""

    def __init__(self, log_dir: str, plan: LoggingPlan, *, max_message_bytes: int = 0) -> None:
        self._dir = Path(log_dir)
        self._plan = plan
        self._max_message_bytes = max_message_bytes
        self._records: queue.Queue[str] = queue.Queue(_MAX_WAITING)
        self._lost = 0
        self._torn: set[int] = set()  # descriptors that got a part of a line last
        self._tails: dict[str, Tail] = {}
        self._old: list[Tail] = []
        self._stop = threading.Event()
        self._closed = False
        self._reopen = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._inotify = INotify()
        mask = inotify_flags.MODIFY | inotify_flags.CREATE | inotify_flags.MOVED_TO
        self._inotify.add_watch(str(self._dir), mask)
        self._own = self._open_append(self._dir / DAEMON_LOG)
        self._sink = self._open_sink()
        self._thread = threading.Thread(target=self._run, name="log-pump", daemon=True)

    # Called from the loop (all but `start`): none of these waits.

    def start(self) -> None:
        """Look at what is there before anybody writes, then follow it. Called before the loop runs."""
        for path in sorted(self._dir.glob("*.log")):
            if path.name != DAEMON_LOG:
                self._find_old(path.name)
            self._follow(path.name)
        self._thread.start()

    def put(self, line: str) -> None:
        """A record of the daemon, as one JSON line without its newline."""
        try:
            self._records.put_nowait(line)
        except queue.Full:
            self._lost += 1
        self._poke()

    def reopen(self) -> None:
        """USR1: open the destination (a file) and the daemon's own log anew."""
        self._reopen.set()
        self._poke()

    def change(self, plan: LoggingPlan) -> None:
        """Take another format, destination or size after a reload."""
        self._plan = plan
        self.reopen()

    def close(self, timeout_s: float = 5.0) -> None:
        """Pass on what is there, end the thread."""
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        self._poke()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return  # it hangs in a destination that nobody reads: its files stay its own
        for tail in [*self._tails.values(), *self._old]:
            tail.close()
        self._tails.clear()
        self._old.clear()
        self._inotify.close()
        for descriptor in {self._wake, self._own, self._sink} - {2}:
            os.close(descriptor)

    def _poke(self) -> None:
        if self._closed and not self._thread.is_alive():
            return  # the descriptor may be somebody else's by now
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake, 1)

    # The thread.

    def _run(self) -> None:
        while True:
            stopping = self._stop.is_set()
            try:
                self._turn()
                if not stopping:
                    self._sleep()
            except OSError as error:
                # A full disk, a folder that is gone: said once it can be said, and tried again; never the end of logs.
                self._pass_on(self._document("limetaskd", "ERROR", f"the logs: {error}"))
                self._stop.wait(_PAUSE_AFTER_ERROR_S)
            except Exception:
                # Nor is a fault of ours. The next turn passes this record on.
                log.exception("a log could not be passed on")
                self._stop.wait(_PAUSE_AFTER_ERROR_S)
            if stopping:
                return

    def _turn(self) -> None:
        if self._reopen.is_set():
            self._reopen.clear()
            self._reopen_files()
        if self._stop.is_set():
            # The last lines of processes that have ended: their events may not have been read yet.
            for path in sorted(self._dir.glob("*.log")):
                self._follow(path.name)
        self._write_records()
        self._drain_old()

    def _sleep(self) -> None:
        """Until there is something to do; no wake-ups when nothing happens."""
        now = time.monotonic()
        polled = any(tail.old_until is not None and now < tail.old_until for tail in self._old)
        timeout = _OLD_POLL_S if polled else None
        ready, _, _ = select.select([self._wake, self._inotify.fd], [], [], timeout)
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        if self._inotify.fd in ready:
            for name in {event.name for event in self._inotify.read(timeout=0)}:
                self._follow(name)

    def _write_records(self) -> None:
        while True:
            try:
                line = self._records.get_nowait()
            except queue.Empty:
                break
            self._write(self._own, line + "\n")
            self._relay("limetaskd", line)
        if self._lost:
            lost, self._lost = self._lost, 0
            self._pass_on(self._document("limetaskd", "WARNING", f"{lost} records of the daemon were dropped"))
        self._rotate_own()

    def _follow(self, name: str) -> None:
        """Read what is new in the file `name`, and rotate it when it has grown."""
        if not name.endswith(".log") or name == DAEMON_LOG:
            return
        tail = self._tails.get(name)
        path = self._dir / name
        try:
            inode = path.stat().st_ino
        except FileNotFoundError:
            inode = None
        if tail is not None and inode != tail.inode:
            # Renamed by us or by somebody else: read its end, and look at it for a while longer.
            self._read(tail)
            del self._tails[name]
            self._retire(tail)
            tail = None
        if tail is None and inode is not None:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                self._pass_on(self._document("limetaskd", "ERROR", f"log {path} cannot be read: {error}"))
                return
            tail = self._open_tail(name, descriptor)
            self._tails[name] = tail
        if tail is not None:
            self._read(tail)
            if tail.offset > self._plan.max_size_bytes:
                self._rotate(path)

    def _open_tail(self, name: str, descriptor: int) -> Tail:
        """Go on where the last daemon stopped; a file that none has followed is passed on from its start."""
        process = name.removesuffix(".log")
        offsets = self._open_offsets(process)
        stat = os.fstat(descriptor)
        inode, offset = self._known(offsets, _CURRENT)
        if inode != stat.st_ino:
            offset = 0
        return Tail(process, descriptor, stat.st_ino, min(offset, stat.st_size), offsets)

    def _open_offsets(self, process: str) -> int:
        return os.open(self._dir / f".{process}.offset", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)

    @staticmethod
    def _known(offsets: int, place: int) -> tuple[int, int]:
        """The inode and the offset that were saved there; (0, 0): none."""
        words = os.pread(offsets, _OFFSET_BYTES, place).split()
        if len(words) != 2 or not (words[0].isdigit() and words[1].isdigit()):
            return 0, 0
        return int(words[0]), int(words[1])

    def _find_old(self, name: str) -> None:
        """Go on with a file that was renamed before the last pump was done with it. Called before `_follow`."""
        process = name.removesuffix(".log")
        offsets = self._open_offsets(process)
        known = dict([self._known(offsets, _RENAMED), self._known(offsets, _CURRENT)])
        os.close(offsets)
        for path in sorted(self._dir.glob(f"{name}.*"), reverse=True):
            with contextlib.suppress(FileNotFoundError):
                inode = path.stat().st_ino
                if inode in known:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                    offset = min(known[inode], os.fstat(descriptor).st_size)
                    tail = Tail(process, descriptor, inode, offset, self._open_offsets(process))
                    self._retire(tail)
                    self._read(tail)

    def _retire(self, tail: Tail) -> None:
        """The file has been renamed: it is followed until there is another one, or until it is gone."""
        for other in self._old:
            other.succeeded = other.succeeded or other.name == tail.name
        tail.old_until = time.monotonic() + _OLD_FILE_S
        tail.save()
        self._old.append(tail)

    def _read(self, tail: Tail) -> None:
        if os.fstat(tail.descriptor).st_size < tail.offset:
            tail.offset = 0  # truncated in place
        while True:
            chunk = os.pread(tail.descriptor, _CHUNK, tail.offset)
            end = chunk.rfind(b"\n") + 1
            if not end and len(chunk) == _CHUNK:
                end = len(chunk)  # a line longer than this is passed on in pieces
            if not end:
                return
            for line in chunk[:end].splitlines():
                self._relay(tail.name, line.decode("utf-8", "replace"))
            tail.offset += end
            tail.save()

    def _relay(self, process: str, line: str) -> None:
        """Pass a record on, and what was printed right before it without an end of line."""
        begin = line.find(_RECORD)
        shown = self._shown(line[begin:]) if begin >= 0 else None
        printed = line if shown is None else line[:begin]
        if printed.strip():
            # What a task (or a C library) printed arrives as a record too.
            self._pass_on(self._document(process, "INFO", printed, logger="stdout"))
        if shown is not None:
            self._send(shown)

    def _shown(self, text: str) -> str | None:
        """How the destination wants the record `text`; None when it is not one, whatever it looks like."""
        try:
            document = loads(text)
            if not isinstance(document, dict):
                return None
            return as_text(document) if self._plan.format == "text" else text
        except (ValueError, RecursionError):
            return None

    def _document(self, process: str, level: str, message: str, logger: str = "limetaskd.logs") -> dict[str, Any]:
        message, truncated = cut(redact_text(message), self._max_message_bytes)
        document = {
            "@timestamp": timestamp(time.time()),
            "level": level,
            "logger": logger,
            "message": message,
            "host": _HOST,
            "pid": os.getpid() if process == "limetaskd" else None,
            "process": process,
        }
        return document | {"truncated": True} if truncated else document

    def _pass_on(self, document: dict[str, Any]) -> None:
        self._send(as_text(document) if self._plan.format == "text" else json.dumps(document, ensure_ascii=False))

    def _send(self, text: str) -> None:
        self._write(self._sink, text + "\n")
        if self._plan.destination != "stderr":
            with contextlib.suppress(OSError):
                if os.fstat(self._sink).st_size > self._plan.max_size_bytes:
                    self._shift(Path(self._plan.destination))
                    full, self._sink = self._sink, self._open_sink()
                    os.close(full)

    def _write(self, descriptor: int, text: str) -> None:
        begin = "\n" if descriptor in self._torn else ""
        data = memoryview((begin + text).encode("utf-8", "replace"))
        whole = len(data)
        try:
            while data:
                try:
                    data = data[os.write(descriptor, data) :]
                except BlockingIOError:  # whoever shares our standard error has made it so
                    _wait_for_room(descriptor)
            self._torn.discard(descriptor)
        except OSError:
            # Nowhere to say it (the disk is full, nobody reads): counted, and told when writing works again.
            self._lost += 1
            if len(data) < whole:
                self._torn.add(descriptor)

    def _drain_old(self) -> None:
        now = time.monotonic()
        for tail in list(self._old):
            self._read(tail)
            if tail.over(now):
                tail.close()
                self._old.remove(tail)

    # Files.

    def _rotate(self, path: Path) -> None:
        """Rename; the writer sees another inode at its next record and opens a new file."""
        self._shift(path)
        tail = self._tails.pop(path.name, None)
        if tail is not None:
            self._retire(tail)

    def _rotate_own(self) -> None:
        if os.fstat(self._own).st_size > self._plan.max_size_bytes:
            self._shift(self._dir / DAEMON_LOG)
            full, self._own = self._own, self._open_append(self._dir / DAEMON_LOG)
            os.close(full)

    def _shift(self, path: Path) -> None:
        """file -> file.1 -> file.2 ..., `keep` of them."""
        keep = self._plan.keep
        for number in range(keep, 0, -1):
            source = path.with_name(f"{path.name}.{number - 1}") if number > 1 else path
            with contextlib.suppress(FileNotFoundError):
                source.rename(path.with_name(f"{path.name}.{number}"))
        if keep == 0:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def _reopen_files(self) -> None:
        """The old files stay in use until the new ones are open."""
        own = self._open_append(self._dir / DAEMON_LOG)
        os.close(self._own)
        self._own = own
        try:
            sink = self._open_sink()
        except OSError as error:
            raise OSError(
                error.errno,
                f"logging.destination {self._plan.destination} cannot be opened ({error.strerror}): they go on where "
                "they went before; mend that, and send USR1 once more",
            ) from error
        if self._sink != 2:
            os.close(self._sink)
        self._sink = sink

    def _open_sink(self) -> int:
        return 2 if self._plan.destination == "stderr" else self._open_append(Path(self._plan.destination))

    @staticmethod
    def _open_append(path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
