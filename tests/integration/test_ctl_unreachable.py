"""limetaskctl where no daemon can be reached, and in surroundings that are not as usual."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from limetaskctl.client import probe
from limetaskctl.errors import UnreachableError
from tests.support import ctl as support
from tests.support.ctl import COMMAND, DEADLINE_S, assert_fails, ctl, environment, start
from tests.support.ctl_server import ControlServer, examples
from tests.support.waiting import wait_until

folder = support.folder
server = support.server


# A daemon that cannot be reached.


@pytest.fixture
def plain_listener(folder: Path) -> Iterator[Path]:
    """A UNIX socket that takes connections and never says a word: a stopped daemon, or another program."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "mute.sock"))
        listener.listen(8)
        yield folder / "mute.sock"


def test_no_socket_file(folder: Path) -> None:
    begin = time.monotonic()
    assert_fails(ctl(folder / "missing.sock", "status"), 3, f"no socket at {folder}/missing.sock")
    assert_fails(ctl(folder / "missing" / "x.sock", "restart a"), 3, "no socket at")
    # Not even the shortest of the client's own limits is waited for.
    assert time.monotonic() - begin < 8


def test_a_socket_file_that_nobody_listens_at_any_more(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "dead.sock"))
        listener.listen()
    assert_fails(ctl(folder / "dead.sock", "status"), 3, "nobody listens at")


def test_a_file_and_a_folder_are_no_sockets(folder: Path) -> None:
    (folder / "file").write_text("x")
    assert_fails(ctl(folder / "file", "status"), 3, f"{folder}/file is not a socket")
    assert_fails(ctl(folder, "status"), 3, f"{folder} is not a socket")


def test_a_socket_of_another_kind(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(folder / "channel.sock"))
        listener.listen()
        assert_fails(ctl(folder / "channel.sock", "status"), 3, "socket of another kind")


def test_somebody_who_never_says_a_word(plain_listener: Path) -> None:
    assert_fails(ctl(plain_listener, "--timeout 0.5 status"), 3, "does not answer (waited 0.5 s)")
    assert_fails(ctl(plain_listener, "--timeout 0.5 restart a"), 3, "does not answer (waited 0.5 s)")


def test_somebody_who_speaks_something_else(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "http.sock"))
        listener.listen(8)

        def serve() -> None:
            peer = listener.accept()[0]  # the first look, which is enough to know
            with peer, contextlib.suppress(OSError):  # the other side may have gone
                peer.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n" * 20)
                peer.shutdown(socket.SHUT_WR)
                peer.recv(65536)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        done = ctl(folder / "http.sock", "--timeout 20 status")
        assert done.returncode == 3, done
        assert done.stderr.count("\n") == 1
        thread.join(DEADLINE_S)


def test_permission_denied_says_who_may(server: ControlServer, folder: Path) -> None:
    """Seen as the user nobody, for root is denied nothing; a user who is not root takes its own right away."""
    is_root = os.getuid() == 0
    folder.chmod(0o755)
    server.path.chmod(0o660 if is_root else 0)
    code, text = probe_as_nobody(server.path)
    assert code == 3
    assert f"permission denied for {server.path} (owner " in text
    assert f"mode {'0660' if is_root else '0000'})" in text
    folder.chmod(0o700 if is_root else 0)
    assert probe_as_nobody(server.path) == (3, f"cannot reach limetaskd: permission denied for {server.path}")
    folder.chmod(0o700)


def probe_as_nobody(path: Path) -> tuple[int, str]:
    """Exit code and message of a client of the user nobody.

    A fork that has imported everything: nobody may be unable to read the interpreter that runs the tests.
    """
    assert Path("/").owner() and Path("/").group()  # imports what names users
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code, text = 99, "no error"
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            probe(str(path))
        except UnreachableError as error:
            code, text = error.exit_code, str(error)
        finally:
            os.write(writer, text.encode())
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


# Signals, pipes, surroundings.


def test_ctrl_c_is_silent(server: ControlServer) -> None:
    server.raw("restart")
    client = start(server, "restart asap")
    wait_until(lambda: server.methods() == ["restart"])
    client.send_signal(signal.SIGINT)
    assert client.communicate(timeout=DEADLINE_S) == ("", "")
    assert client.returncode == 130


def test_a_reader_that_has_gone_is_no_error_to_talk_about(server: ControlServer) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for words in ("status", "status --json", "logs", "completion bash"):
        done = subprocess.run(
            [*COMMAND, "--socket", str(server.path), *words.split()],
            stdout=writer, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S, check=False, env=environment(),
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (141, "")
    os.close(writer)


def test_output_that_cannot_be_written_is_a_failure(server: ControlServer) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "--socket", str(server.path), "status"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S, check=False, env=environment(),
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "limetaskctl: cannot write the output: No space left on device\n")


def test_stdout_that_is_closed_is_nobody_to_talk_to(server: ControlServer) -> None:
    line = " ".join([*COMMAND, "--socket", str(server.path), "status", ">&-"])
    done = subprocess.run(["bash", "-c", line], stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_locale_makes_text_an_error(server: ControlServer) -> None:
    server.answer("tasks", {"tasks": [dict.fromkeys(examples()["tasks"]["result"]["tasks"][0]) | {"name": "räka-✓"}]})
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    assert "r\\xe4ka-\\u2713" in ctl(server, "tasks", **ascii_only).stdout
    assert json.loads(ctl(server, "tasks --json", **ascii_only).stdout)["tasks"][0]["name"] == "räka-✓"


def test_the_socket_of_the_environment(server: ControlServer, folder: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "version"], capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        env=environment(LIMETASKCTL_SOCKET=f"ipc://{server.path}"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [*COMMAND, "version"], capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        env=environment(RUNTIME_DIRECTORY=str(folder)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("statsu", "unknown command 'statsu': did you mean 'status'?"),
        ("keys q", "'keys' is not available in this version"),
        ("--frob status", "unrecognized arguments"),
        ("scale asap=x", "N is a number"),
    ],
)
def test_usage_errors_reach_no_daemon(server: ControlServer, words: str, message: str) -> None:
    assert_fails(ctl(server, words), 2, message)
    assert server.requests == []


def test_an_endpoint_that_is_none_is_a_usage_error() -> None:
    assert_fails(ctl("tcp://127.0.0.1:1", "status"), 2, "only ipc:// endpoints")
