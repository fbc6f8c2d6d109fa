"""The moments of a fork that go wrong, each in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SPEC = """
from limetaskd.core.spec import ProcessSpec
def spec(**fields):
    return ProcessSpec(**{"kind": "worker", "name": "asap:0", "pool": "asap", "generation": 1, "settings": "",
                          "channel": "", "log": "", **fields})
"""


def run(program: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=60)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that every user may write to."""
    folder = Path(tempfile.mkdtemp(prefix="lt-i-", dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def test_a_niceness_that_is_not_permitted_is_said_and_no_more(open_folder: Path) -> None:
    run(
        SPEC + """if True:
        import os, sys
        from limetaskd.worker.image import Image
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        wanted = spec(log=sys.argv[1])
        Image(wanted)._become(wanted, -5)
        """,
        str(open_folder / "log"),
    )
    (record,) = [json.loads(line) for line in (open_folder / "log").read_text().splitlines()]
    assert (record["action"], record["level"], record["process"]) == ("not_niced", "WARNING", "asap:0")


def test_a_fork_without_descriptors_is_one_that_cannot_be() -> None:
    run(
        """if True:
        import os, resource
        from limetaskd.worker.spare import CannotForkError, fork_ahead
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))
        try:
            fork_ahead(lambda: None)
        except CannotForkError as error:
            assert "Too many open files" in str(error)
        else:
            raise AssertionError("forked")
        """
    )


def test_the_process_between_ends_also_when_nobody_hears_it() -> None:
    run(
        """if True:
        import os, socket
        from limetaskd.worker.spare import _fork_again
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.close()
        pid = os.fork()
        if pid == 0:
            try:
                _fork_again(theirs)
            except BaseException:
                os._exit(99)
            os._exit(0)  # the second child
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        """
    )


def test_an_image_serves_no_daemon_but_the_one_that_has_started_it(tmp_path: Path) -> None:
    run(
        SPEC + """if True:
        import os, socket, sys
        from limetaskd.worker.image import Image
        image = Image(spec(kind="image", channel=sys.argv[1]))
        for listening in (False, True):
            if listening:
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                listener.bind(sys.argv[1])
                listener.listen()
            try:
                image.connect()
            except OSError:
                continue
            raise AssertionError("connected")
        """,
        str(tmp_path / "channel.sock"),
    )


def test_a_reply_that_the_daemon_does_not_take_is_no_crash() -> None:
    run(
        SPEC + """if True:
        import socket
        from limetaskd.worker.image import Image
        image = Image(spec(kind="image"))
        image._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.close()
        image.report()
        assert image.run() is None
        """
    )


def test_modules_may_ignore_the_end_of_children() -> None:
    run(
        """if True:
        import os, signal
        from limetaskd.worker.spare import Spare, fork_ahead
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        made = fork_ahead(lambda: None)
        if not isinstance(made, Spare):
            os._exit(0 if made == b"packet" else 1)
        assert made.call(b"packet")
        """
    )
