"""The Redis transport on real servers: what it promises beyond kombu's, and that the rest still is kombu's."""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from kombu import Connection, Consumer, Exchange, Queue
from kombu.exceptions import OperationalError
from redis.backoff import NoBackoff
from redis.retry import Retry

from limetaskd.core.process import process_may_live, process_start_ticks
from limetaskd.tasks import redis_owners
from limetaskd.tasks.redis_scripts import POP
from limetaskd.tasks.redis_transport import ScriptingRefusedError, restore_dead, transport_url
from tests.support.brokers import Redis, free_ports
from tests.support.guard import GUARD, kill_session
from tests.support.waiting import pause, wait_until

EXCHANGE = Exchange("numbers")
ROOT = Path(__file__).parents[2]


def queue(name: str) -> Queue:
    return Queue(name, EXCHANGE, name)


def connect(url: str, **options: Any) -> Any:
    return Connection(transport_url(url), transport_options=options)


def raw(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0))


def send(connection: Any, number: int, name: str = "a", **options: Any) -> None:
    connection.Producer().publish(
        {"n": number}, exchange=EXCHANGE, routing_key=name, declare=[queue(name)], retry=False, **options
    )


@contextmanager
def taking(connection: Any, *names: str, ack: bool = True, prefetch: int = 10) -> Iterator[list[Any]]:
    """Consume; the list gets the messages."""
    taken: list[Any] = []

    def take(_: Any, message: Any) -> None:
        taken.append(message)
        if ack:
            message.ack()

    with Consumer(connection, [queue(name) for name in names], callbacks=[take], prefetch_count=prefetch):
        yield taken


def drain(connection: Any, until: Callable[[], Any], timeout: float = 30) -> None:
    """Consume until `until()` is true."""
    deadline = time.monotonic() + timeout
    while not until():
        assert time.monotonic() < deadline, "the messages did not come"
        with suppress(TimeoutError):
            connection.drain_events(timeout=0.05)


def numbers(messages: list[Any]) -> list[int]:
    return [message.payload["n"] for message in messages]


def waiting(url: str, name: str = "a") -> list[int]:
    """The numbers in a queue, the head first."""
    payloads = reversed(raw(url).lrange(name, 0, -1))
    return [json.loads(base64.b64decode(json.loads(payload)["body"]))["n"] for payload in payloads]


def held(url: str, prefix: str = "") -> int:
    """How many messages all consumers hold together."""
    client = raw(url)
    return sum(client.hlen(key) for key in client.keys(f"{prefix}unacked.*"))


class Program:
    """A consumer process in a session of its own."""

    def __init__(self, *words: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            words, cwd=cwd, env={**os.environ, **(env or {})}, start_new_session=True, stdin=subprocess.DEVNULL
        )
        GUARD.add_session(self.process.pid)

    def kill(self) -> None:
        kill_session(self.process.pid)
        self.process.wait(30)
        GUARD.forget_session(self.process.pid)


class Feeder(threading.Thread):
    """Sends 0, 1, 2, ... until told to stop; `confirmed` counts what the broker has answered.

    While the broker is away it tries again with the same number.
    """

    def __init__(self, url: str, names: list[str], prefix: str = "") -> None:
        super().__init__(daemon=True)
        self._url, self._names, self._prefix = url, names, prefix
        self._stop_asked = threading.Event()
        self.confirmed = 0

    def run(self) -> None:
        while not self._stop_asked.is_set():
            try:
                with connect(self._url, global_keyprefix=self._prefix) as connection:
                    while not self._stop_asked.is_set():
                        send(connection, self.confirmed, self._names[self.confirmed % len(self._names)])
                        self.confirmed += 1
                        self._stop_asked.wait(0.002)
            except (*connection.connection_errors, OperationalError):  # the second when it was away for long
                self._stop_asked.wait(0.05)

    def finish(self) -> int:
        self._stop_asked.set()
        self.join(60)
        assert not self.is_alive()
        return self.confirmed


def assert_nothing_lost(client: redis.Redis, sent: int, most_repeated: int) -> None:
    done = [int(item) for item in client.lrange("done", 0, -1)]
    assert set(done) == set(range(sent)), sorted(set(range(sent)) - set(done))[:20]
    assert len(done) - sent <= most_repeated


# -- nothing is lost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "prod_"])
def test_a_consumer_killed_at_random_moments_loses_nothing(own_redis: Redis, prefix: str) -> None:
    kills, names, client = 12, ["a", "b"], raw(own_redis.url)
    feeder = Feeder(own_redis.url, names, prefix)
    feeder.start()
    words = (sys.executable, "-m", "tests.integration.redis_consumer", own_redis.url, prefix, *names)
    chance = random.Random(7)
    for number in range(1, kills + 1):
        program = Program(*words)
        wait_until(lambda number=number: int(client.get("ready") or 0) >= number)  # type: ignore[misc]
        pause(chance.uniform(0.0, 0.25))
        program.kill()
        restore_dead(client, prefix)
        assert held(own_redis.url, prefix) == 0
    sent = feeder.finish()
    program = Program(*words)
    try:
        wait_until(lambda: set(range(sent)) <= {int(item) for item in client.lrange("done", 0, -1)}, 60)
    finally:
        program.kill()
    assert_nothing_lost(client, sent, kills * 8)


WORKER_APP = """
import os, redis
from celery import Celery
from limetaskd.tasks.redis_transport import transport_url

URL = os.environ["TEST_URL"]
app = Celery("numbers", broker=transport_url(URL))
app.conf.update(
    task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=2, task_ignore_result=True,
    broker_connection_retry_on_startup=True, broker_transport_options={"global_keyprefix": "prod_"},
    broker_connection_max_retries=None, task_default_queue="a",
)
record = redis.Redis.from_url(URL)

@app.task(name="number")
def number(n):
    record.rpush("done", n)
"""


class Workers:
    """Real Celery workers on the transport."""

    def __init__(self, folder: Path, url: str) -> None:
        (folder / "numberapp.py").write_text(WORKER_APP)
        self._folder = folder
        self._env = {"TEST_URL": url, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
        self._started = 0
        self.url = url

    def start(self, *options: str) -> Program:
        self._started += 1
        return Program(
            sys.executable, "-m", "celery", "-A", "numberapp", "worker", "-c", "2", "-l", "WARNING",
            "--without-mingle", "--without-gossip", "-n", f"w{self._started}@test", *options,
            cwd=self._folder, env=self._env,
        )  # fmt: skip

    def send(self, count: int, first: int = 0) -> None:
        code = f"import numberapp as m\nfor i in range({first}, {first + count}): m.number.delay(i)"
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=self._folder, env={**os.environ, **self._env}, check=True, timeout=60,
        )  # fmt: skip

    def done(self) -> set[int]:
        try:
            return {int(item) for item in raw(self.url).lrange("done", 0, -1)}
        except redis.RedisError:
            return set()


def test_a_celery_worker_killed_at_random_moments_loses_nothing(own_redis: Redis, tmp_path: Path) -> None:
    workers = Workers(tmp_path, own_redis.url)
    chance = random.Random(11)
    sent = 1500
    workers.send(sent)
    kills = 4
    for _ in range(kills):
        before = len(workers.done())
        program = workers.start()
        wait_until(lambda before=before: len(workers.done()) > before, 60)  # type: ignore[misc]
        pause(chance.uniform(0.0, 0.2))
        program.kill()  # no restore by hand: the next worker does it when it starts
    program = workers.start()
    try:
        wait_until(lambda: len(workers.done()) == sent, 90)
        wait_until(lambda: held(own_redis.url, "prod_") == 0, 30)
    finally:
        program.kill()
    assert_nothing_lost(raw(own_redis.url), sent, kills * 6)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_server_that_restarts_is_found_again_and_loses_nothing(own_redis: Redis, tmp_path: Path, end: str) -> None:
    workers = Workers(tmp_path, own_redis.url)
    program = workers.start()
    try:
        workers.send(1)
        wait_until(lambda: workers.done() == {0}, 60)
        for round_number in range(2):
            workers.send(100, 1 + 100 * round_number)
            getattr(own_redis, end)()
            own_redis.start()
        workers.send(1, 201)
        wait_until(lambda: workers.done() == set(range(202)), 90)
    finally:
        program.kill()


def test_senders_and_consumers_outlive_a_server_that_is_killed(own_redis: Redis) -> None:
    url = own_redis.url
    feeder = Feeder(url, ["a"])
    feeder.start()
    taken: list[int] = []
    for _ in range(3):
        with connect(url) as connection, taking(connection, "a") as messages:
            drain(connection, lambda messages=messages: len(messages) > 30)  # type: ignore[misc]
            own_redis.kill()
            with pytest.raises(connection.connection_errors):
                drain(connection, lambda: False)
            taken += numbers(messages)
        own_redis.start()
        # A server that comes back between two sends is not missed: no error can be waited for.
        sent = feeder.confirmed
        wait_until(lambda sent=sent: feeder.confirmed > sent + 1)  # type: ignore[misc]
    sent = feeder.finish()
    with connect(url) as connection, taking(connection, "a") as messages:
        drain(connection, lambda: set(range(sent)) <= {*taken, *numbers(messages)})


# -- holding and giving back -----------------------------------------------------------------------------------------


def test_a_message_is_held_under_the_process_and_released_by_its_acknowledgement(redis_url: str) -> None:
    with connect(redis_url) as connection, taking(connection, "a", ack=False) as messages:
        send(connection, 1)
        drain(connection, lambda: messages)
        assert raw(redis_url).hlen(f"unacked.{redis_owners.this_process()}") == 1
        assert waiting(redis_url) == []
        messages[0].ack()
        assert held(redis_url) == 0


def test_closing_gives_back_in_order_to_the_head_and_marks_it(redis_url: str) -> None:
    with connect(redis_url) as connection:
        for number in range(6):
            send(connection, number)
        with connect(redis_url) as consumer, taking(consumer, "a", ack=False, prefetch=4) as messages:
            drain(consumer, lambda: len(messages) == 4)
            assert waiting(redis_url) == [4, 5]
        assert waiting(redis_url) == [0, 1, 2, 3, 4, 5]
        assert held(redis_url) == 0
        with taking(connection, "a") as messages:
            drain(connection, lambda: len(messages) == 6)
    assert [message.headers.get("redelivered", False) for message in messages] == [True] * 4 + [False] * 2
    assert messages[0].delivery_info["redelivered"] is True


def test_requeue_goes_to_the_head_and_reject_drops(redis_url: str) -> None:
    with connect(redis_url) as connection:
        for number in range(3):
            send(connection, number)
        with taking(connection, "a", ack=False, prefetch=2) as messages:
            drain(connection, lambda: len(messages) == 2)
            messages[1].reject()
            messages[0].requeue()
            messages.clear()
            drain(connection, lambda: len(messages) == 2)
            assert numbers(messages) == [0, 2]


def test_messages_of_the_dead_go_back_at_once_and_those_of_the_living_stay(redis_url: str) -> None:
    client = raw(redis_url)
    with connect(redis_url) as connection:
        for number in range(4):
            send(connection, number)
        with taking(connection, "a", ack=False, prefetch=2) as messages:
            drain(connection, lambda: len(messages) == 2)
            assert restore_dead(client) == 0
            assert restore_dead(client, alive=lambda pid, ticks: False) == 2
            assert waiting(redis_url) == [0, 1, 2, 3]
            assert client.zcard(redis_owners.OWNERS_KEY) == 0
            messages[0].ack()  # too late, and harmless
    assert waiting(redis_url) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("host", "place", "unseen_s", "restored"),
    [
        ("elsewhere", "11111111-1", 3500, 0),
        ("elsewhere", "11111111-1", 3700, 1),
        ("here", "11111111-1", 50, 0),  # this host, another boot or container
        ("here", "11111111-1", 70, 1),
    ],
)
def test_foreign_messages_wait_for_their_time(
    redis_url: str, host: str, place: str, unseen_s: float, restored: int
) -> None:
    client = raw(redis_url)
    owner = redis_owners.Owner(host, place, 1, 1)
    client.hset(f"unacked.{owner}", "lt-x.1", b"1\0a\0{}")
    client.zadd(redis_owners.OWNERS_KEY, {str(owner): float(client.time()[0]) - unseen_s})
    assert restore_dead(client, host="here") == restored
    assert client.llen("a") == restored


def test_an_agent_keeps_alive_what_its_neighbours_hold(redis_url: str) -> None:
    """A long task in a process that polls nothing: who runs beside it says that it lives."""
    client = raw(redis_url)
    me = redis_owners.this_process()
    client.hset(f"unacked.{me}", "lt-x.1", b"1\0a\0{}")
    client.zadd(redis_owners.OWNERS_KEY, {str(me): float(client.time()[0]) - 4000})
    assert restore_dead(client) == 0
    assert client.time()[0] - client.zscore(redis_owners.OWNERS_KEY, str(me)) < 60


def test_zombies_and_reused_pids_are_dead() -> None:
    process = subprocess.Popen(["sleep", "60"])
    ticks = process_start_ticks(process.pid)
    assert ticks is not None
    assert process_may_live(process.pid, ticks)
    assert not process_may_live(process.pid, ticks + 1)
    process.kill()
    wait_until(lambda: not process_may_live(process.pid, ticks))
    process.wait()
    assert not process_may_live(process.pid, ticks)


def test_what_a_channel_held_when_the_server_was_away_goes_back_with_the_next_one(own_redis: Redis) -> None:
    url = own_redis.url
    with connect(url) as connection:
        for number in range(3):
            send(connection, number)
        with taking(connection, "a", ack=False, prefetch=2) as messages:
            drain(connection, lambda: len(messages) == 2)
            own_redis.kill()
            connection.collect()
        own_redis.start()
        assert held(url) == 2
        with pytest.raises(connection.connection_errors):
            messages[0].ack()
    with connect(url) as connection, taking(connection, "a", prefetch=10) as messages:
        drain(connection, lambda: len(messages) == 3)
        assert sorted(numbers(messages)) == [0, 1, 2]
        assert held(url) == 0


def test_a_message_taken_while_the_channel_closes_goes_back(redis_url: str) -> None:
    with connect(redis_url) as connection:
        channel = connection.channel()
        channel.scripts().script_load(POP.text)
        with Consumer(channel, [queue("a")], callbacks=[lambda body, message: None], auto_declare=True):
            send(connection, 1)
            connection.transport.cycle.on_poll_start()  # the script is on its way, nobody has read the answer
            wait_until(lambda: held(redis_url) == 1)
            channel.close()
        assert waiting(redis_url) == [1]


def test_a_channel_that_closes_gives_back_though_the_server_forgot_the_script(redis_url: str) -> None:
    with connect(redis_url) as connection:
        channel = connection.channel()
        with taking(channel, "a", ack=False) as taken:
            send(connection, 1)
            drain(connection, lambda: taken)
            channel.scripts().script_flush()
            connection.transport.cycle.on_poll_start()
            assert channel._sent is not None
            channel.close()
        assert waiting(redis_url) == [1]


def test_basic_get_is_atomic_too(redis_url: str) -> None:
    with connect(redis_url) as connection:
        send(connection, 1)
        channel = connection.channel()
        message = channel.basic_get("a")
        assert held(redis_url) == 1
        message.ack()
        assert held(redis_url) == 0
        assert channel.basic_get("a") is None
        send(connection, 2)
        assert channel.basic_get("a", no_ack=True).payload == {"n": 2}
        assert held(redis_url) == 0


def test_a_consumer_that_acknowledges_nothing_holds_nothing(redis_url: str) -> None:
    with connect(redis_url) as connection:
        taken: list[Any] = []
        send(connection, 1)
        with Consumer(connection, [queue("a")], callbacks=[lambda _, message: taken.append(message)], no_ack=True):
            drain(connection, lambda: taken)
        assert held(redis_url) == 0


# -- as kombu does it ------------------------------------------------------------------------------------------------


def test_priorities_and_fair_turns(redis_url: str) -> None:
    with connect(redis_url) as connection:
        for number in range(4):
            send(connection, number, "a", priority=9)
            send(connection, 10 + number, "b", priority=9)
        send(connection, 99, "a", priority=0)
        with taking(connection, "a", "b") as messages:
            drain(connection, lambda: len(messages) == 9)
    order = numbers(messages)
    assert order[0] == 99
    turns = ["a" if number < 10 else "b" for number in order[1:]]
    assert turns in (["a", "b"] * 4, ["b", "a"] * 4)
    assert [number for number in order[1:] if number < 10] == [0, 1, 2, 3]


def test_plain_kombu_may_send_and_consume(redis_url: str) -> None:
    with Connection(redis_url) as plain, connect(redis_url) as ours:
        with taking(ours, "a") as messages:
            with pytest.raises(TimeoutError):
                ours.drain_events(timeout=0.1)
            send(plain, 1)
            drain(ours, lambda: messages)
        with taking(plain, "a") as messages:
            send(ours, 2)
            drain(plain, lambda: messages)
        assert numbers(messages) == [2]


def test_a_prefix_keeps_two_clusters_apart(redis_url: str) -> None:
    with connect(redis_url, global_keyprefix="one_") as one, connect(redis_url, global_keyprefix="two_") as two:
        send(one, 1)
        send(two, 2)
        with taking(one, "a", ack=False) as messages:
            drain(one, lambda: messages)
            assert restore_dead(raw(redis_url), "two_", alive=lambda pid, ticks: False) == 0
            keys = raw(redis_url).keys("*")
        assert numbers(messages) == [1]
    assert all(key.startswith((b"one_", b"two_")) for key in keys), keys


def test_a_batch_of_sends_wakes_consumers(redis_url: str) -> None:
    with connect(redis_url) as sender, connect(redis_url) as connection, taking(connection, "a") as messages:
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.1)
        producer = sender.Producer()
        with producer.batch():
            for number in range(5):
                producer.publish({"n": number}, exchange=EXCHANGE, routing_key="a")
        drain(connection, lambda: len(messages) == 5)


def test_queues_that_expire_leave_nothing_behind(redis_url: str) -> None:
    with connect(redis_url) as connection:
        short = Queue("short", EXCHANGE, "short", expires=0.2)
        connection.Producer().publish({"n": 1}, exchange=EXCHANGE, routing_key="short", declare=[short])
        client = raw(redis_url)
        assert 0 < client.pttl("short") <= 200
        wait_until(lambda: not client.exists("short"))
        assert client.ttl("short\x06\x16wake") > 0


def test_remote_control_and_a_socket_url_work_with_a_worker(tmp_path: Path) -> None:
    with Redis(["--unixsocket", str(tmp_path / "r.sock")]) as server:
        path = quote(str(tmp_path / "r.sock"), safe="")
        workers = Workers(tmp_path, f"redis+socket:///{path.removeprefix('%2F')}?virtual_host=1")
        (tmp_path / "numberapp.py").write_text(
            WORKER_APP.replace("redis.Redis.from_url(URL)", f"redis.Redis.from_url({server.url!r})")
        )
        program = workers.start()
        try:
            workers.send(3)
            wait_until(lambda: raw(server.url).llen("done") == 3, 60)
            answer = subprocess.run(
                [sys.executable, "-m", "celery", "-A", "numberapp", "inspect", "ping", "-t", "30", "-d", "w1@test"],
                cwd=tmp_path, env={**os.environ, **workers._env}, capture_output=True, text=True, timeout=60,
                check=False,
            )  # fmt: skip
            assert "pong" in answer.stdout, answer.stderr
            assert raw(server.url_of(1)).zcard("prod_" + redis_owners.OWNERS_KEY) == 1
        finally:
            program.kill()


def test_tls_checks_the_certificate_unless_told_otherwise(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    [port] = free_ports(1)
    tls = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    with Redis([*tls, "--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no"]):
        url = f"rediss://127.0.0.1:{port}/0"
        with connect(url) as connection, pytest.raises(connection.connection_errors, match="CERTIFICATE_VERIFY_FAILED"):
            connection.connect()
        for options in (f"ssl_ca_certs={certificate}", "ssl_cert_reqs=CERT_NONE"):
            with connect(f"{url}?{options}") as connection, taking(connection, "a") as messages:
                send(connection, 1)
                drain(connection, lambda messages=messages: messages)  # type: ignore[misc]


def test_sentinel_follows_the_master(own_redis: Redis, tmp_path: Path) -> None:
    [port] = free_ports(1)
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor main 127.0.0.1 {own_redis.port} 1\n"
    )
    program = Program("redis-server", str(configuration), "--sentinel")
    try:
        client = redis.Redis(port=port, retry=Retry(NoBackoff(), 0))
        wait_until(client.ping, ignore=redis.RedisError)
        url = f"sentinel://127.0.0.1:{port}"
        with connect(url, master_name="main") as connection, taking(connection, "a", ack=False) as messages:
            send(connection, 1)
            drain(connection, lambda: messages)
            assert held(own_redis.url) == 1
        assert waiting(own_redis.url) == [1]
    finally:
        program.kill()


def test_a_connection_that_is_given_up_leaves_the_default_timeout_of_the_process_alone(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set and put back in two threads at once, it stayed: sockets of the application then gave up after 50 ms."""
    changes: list[float | None] = []
    monkeypatch.setattr(socket, "setdefaulttimeout", changes.append)
    with Connection(transport_url(redis_url)) as connection:
        channel = connection.default_channel
        channel.client.ping()
        connection.collect(socket_timeout=0.05)
        assert not connection.connected
        assert channel.closed
        connection.default_channel.client.ping()
    assert changes == []


def test_urls() -> None:
    assert transport_url("redis://:p@h:1/2") == "limeredis://:p@h:1/2"
    assert transport_url("rediss://h") == "limerediss://h"
    assert transport_url("redis+socket:///run/r.sock?virtual_host=1") == "limeredis+socket:///run/r.sock?virtual_host=1"
    assert transport_url("sentinel://a:1;sentinel://b:2") == "limesentinel://a:1;limesentinel://b:2"
    assert transport_url("amqp://h//") == "amqp://h//"
    assert Connection(transport_url("rediss://h")).transport_cls == "limerediss"


# -- bad days --------------------------------------------------------------------------------------------------------


def test_a_user_who_may_not_run_scripts_is_told_what_to_allow(own_redis: Redis) -> None:
    own_redis.command("ACL", "SETUSER", "poor", "on", ">secret", "~*", "&*", "+@all", "-@scripting")
    url = own_redis.url.replace("redis://", "redis://poor:secret@")
    with connect(url) as connection:
        with pytest.raises(ScriptingRefusedError, match=r"\+eval \+evalsha"):
            send(connection, 1)
        with (
            taking(connection, "a"),
            pytest.raises(ScriptingRefusedError, match=r"\+eval \+evalsha") as caught,
        ):
            drain(connection, lambda: False)
    assert "secret" not in str(caught.value)


def test_scripts_that_the_server_has_forgotten_are_sent_again(own_redis: Redis) -> None:
    with connect(own_redis.url) as connection, taking(connection, "a") as messages:
        for number in range(3):
            own_redis.command("SCRIPT", "FLUSH")
            send(connection, number)
            own_redis.command("SCRIPT", "FLUSH")
            drain(connection, lambda number=number: len(messages) == number + 1)  # type: ignore[misc]


def test_a_full_server_refuses_sends_and_can_still_be_emptied(own_redis: Redis) -> None:
    with connect(own_redis.url) as connection:
        for number in range(20):
            send(connection, number)
        own_redis.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(redis.exceptions.ResponseError, match="maxmemory"):
            send(connection, 99)
        with taking(connection, "a") as messages:
            drain(connection, lambda: len(messages) == 20)
        assert held(own_redis.url) == 0
        assert numbers(messages) == list(range(20))


def test_an_unreadable_message_is_set_aside(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    client = raw(redis_url)
    with connect(redis_url) as connection, taking(connection, "a") as messages:
        send(connection, 1)
        body = b'{"body": "abc", "headers": {}, "properties": {"body_encoding": "base64", "delivery_tag": "x"}}'
        bad = [b"no json", b"[]", b"\xff", body]
        for payload in bad:
            client.rpush("a", payload)
        with caplog.at_level(logging.CRITICAL):
            drain(connection, lambda: messages)
    assert set(client.lrange("a\x06\x16unreadable", 0, -1)) == set(bad)
    assert held(redis_url) == 0
    assert "cannot be read" in caplog.text


def test_consuming_that_was_cancelled_while_a_message_came_gives_it_back(redis_url: str) -> None:
    with connect(redis_url) as connection:
        channel = connection.channel()
        consumer = Consumer(channel, [queue("a"), queue("b")], callbacks=[lambda body, message: None])
        consumer.consume()
        send(connection, 1)
        connection.transport.cycle.on_poll_start()
        wait_until(lambda: held(redis_url) == 1)
        consumer.cancel_by_queue("a")
        drain(connection, lambda: waiting(redis_url) == [1])
        assert held(redis_url) == 0
