"""A send that returned is with the broker; one that cannot be confirmed in time raises. On real brokers."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest
from kombu.exceptions import OperationalError

from limetaskd.core.settings import Settings
from limetaskd.errors import PublishError, RoutingError
from limetaskd.tasks.app import build_app
from limetaskd.tasks.send import send_task
from tests.support import sending_tasks as tasks
from tests.support.brokers import RabbitMQ, Server, free_ports
from tests.support.sending import (
    ASAP,
    BACKGROUND,
    DEFAULT,
    Worker,
    clean_apps,
    connection,
    make_settings,
    take_all,
    tasks_in,
)
from tests.support.waiting import pause, wait_until


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with clean_apps():
        yield


@pytest.fixture(params=["rabbitmq", "redis"])
def own_server(request: pytest.FixtureRequest) -> Server:
    """A broker of this test alone."""
    server: Server = request.getfixturevalue(f"own_{request.param}")
    return server


@pytest.fixture(params=["amqp", "redis"])
def settings(request: pytest.FixtureRequest) -> Settings:
    """Settings of the shared broker."""
    return make_settings(request.getfixturevalue(f"{request.param}_url"), prefix="prod")


def numbers(settings: Settings, actual: str = DEFAULT) -> list[int]:
    return [message.payload[0][0] for message in take_all(settings, actual)]


class Background(threading.Thread):
    """Runs `call`, and keeps what came of it and how long it took (seconds)."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.error: Exception | None = None
        self.seconds = 0.0
        self.start()

    def run(self) -> None:
        begin = time.monotonic()
        try:
            self._call()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error
        self.seconds = time.monotonic() - begin

    def wait(self, timeout: float = 90) -> Background:
        self.join(timeout)
        assert not self.is_alive(), "the send did not return"
        return self


def test_a_message_carries_its_marks_and_is_persistent(settings: Settings) -> None:
    build_app(settings)
    before = time.time()
    result = send_task("crm.rename", (7, "Acme"), qos="asap", user_id="42", task_id="the-id")
    assert result.id == "the-id"
    (message,) = take_all(settings, f"prod_{ASAP}")
    assert message.payload[0] == [7, "Acme"]
    assert message.properties["delivery_mode"] == 2
    headers = message.headers
    assert headers["__user_id"] == "42"
    assert headers["__routed_queue"] == f"prod_{ASAP}"
    assert headers["__routed_type"] == "header_qos"
    assert before <= headers["__sent_at"] <= time.time()


def test_a_bad_destination_raises_before_anything_is_sent(settings: Settings) -> None:
    app = build_app(settings)
    for options in (
        {"headers": {"__queue": 7}},
        {"headers": {"__qos_category": ["asap"]}},
        {"queue": 7},
        {"routing_key": 7},
    ):
        with pytest.raises(RoutingError, match=r"crm\.rename"):
            app.send_task("crm.rename", **options)
        with pytest.raises(RoutingError):
            app.signature("my.special.task", **options).apply_async()
    for name in (DEFAULT, ASAP, "7"):
        assert tasks_in(settings, f"prod_{name}") == []


def test_a_broker_that_comes_back_within_the_time_gets_the_task(own_server: Any) -> None:
    settings = make_settings(own_server.url, publish_timeout_s=80)
    build_app(settings)
    send_task("x", (1,))  # a connection that will be dead
    own_server.kill()
    sender = Background(lambda: send_task("x", (2,)))
    pause(1)
    assert sender.is_alive()
    own_server.start()
    assert sender.wait().error is None
    assert numbers(settings) == [1, 2]


def test_a_broker_that_stays_away_is_an_error_in_time() -> None:
    (port,) = free_ports(1)
    for url in (f"amqp://guest:top-secret@127.0.0.1:{port}//", f"redis://:top-secret@127.0.0.1:{port}/0"):
        build_app(make_settings(url, publish_timeout_s=2))
        sender = Background(lambda: send_task("x", (1,))).wait()
        assert isinstance(sender.error, PublishError)
        assert isinstance(sender.error, OperationalError)  # what handlers of Celery's own errors catch
        assert "\n" not in str(sender.error)
        assert "within 2 s" in str(sender.error)
        assert "top-secret" not in f"{sender.error!r}{sender.error}"
        assert 2 <= sender.seconds < 12


def test_no_retry_when_the_caller_wants_none() -> None:
    (port,) = free_ports(1)
    app = build_app(make_settings(f"amqp://127.0.0.1:{port}//", publish_timeout_s=60))
    sender = Background(lambda: app.send_task("x", retry=False)).wait()
    assert isinstance(sender.error, PublishError)
    assert sender.seconds < 30


@pytest.mark.parametrize("connected", [True, False])
def test_a_broker_that_hangs_is_an_error_in_time(own_server: Any, connected: bool) -> None:
    settings = make_settings(own_server.url, publish_timeout_s=3)
    app = build_app(settings)
    if connected:
        send_task("x", (1,))
    own_server.pause()
    try:
        senders = [Background(lambda: send_task("x", (2,))) for _ in range(15)]  # more than there are connections
        for sender in senders:
            assert isinstance(sender.wait().error, PublishError)
            assert sender.seconds < 20
    finally:
        own_server.resume()
    app.conf.broker_pool_acquire_timeout = 60

    def send() -> bool:
        send_task("x", (3,))
        return True

    wait_until(send, 60, ignore=PublishError)
    assert 3 in numbers(settings)


def test_a_broker_that_hangs_for_a_while_gets_the_task_once(own_rabbitmq: RabbitMQ) -> None:
    settings = make_settings(own_rabbitmq.url, publish_timeout_s=60)
    build_app(settings)
    send_task("x", (1,))
    own_rabbitmq.pause()
    sender = Background(lambda: send_task("x", (2,)))
    pause(6)
    own_rabbitmq.resume()
    assert sender.wait().error is None
    assert numbers(settings) == [1, 2]


def test_what_was_sent_survives_a_kill_of_the_broker(own_server: Any) -> None:
    settings = make_settings(own_server.url, publish_timeout_s=80)
    build_app(settings)
    returned: list[int] = []
    stop = threading.Event()

    def stream(begin: int) -> None:
        number = begin
        while not stop.is_set():
            send_task("x", (number,))
            returned.append(number)
            number += 1

    senders = [Background(lambda begin=begin: stream(begin)) for begin in (0, 1_000_000)]  # type: ignore[misc]
    for _ in range(2):
        count = len(returned)
        wait_until(lambda count=count: len(returned) > count + 100, 60)  # type: ignore[misc]
        own_server.kill()
        own_server.start()
    count = len(returned)
    wait_until(lambda: len(returned) > count + 20, 60)
    stop.set()
    for sender in senders:
        assert sender.wait().error is None
    arrived = numbers(settings)
    assert set(returned) <= set(arrived)
    assert len(arrived) - len(set(arrived)) <= 4  # only what was in flight at a kill may be there twice


def test_many_threads_send_at_once(settings: Settings) -> None:
    app = build_app(settings)
    senders = [
        Background(lambda base=base: [app.send_task("x", (base + n,)) for n in range(20)])  # type: ignore[misc]
        for base in range(0, 3000, 100)
    ]
    for sender in senders:
        assert sender.wait().error is None
    assert sorted(numbers(settings, f"prod_{DEFAULT}")) == sorted(
        base + n for base in range(0, 3000, 100) for n in range(20)
    )


def test_a_fork_after_sending_disturbs_neither_side(settings: Settings) -> None:
    build_app(settings)
    send_task("x", (1,))
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for n in range(10):
                    send_task("x", (100 * (number + 1) + n,))
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    for n in range(10):
        send_task("x", (1000 + n,))
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    send_task("x", (2,))
    expected = [1, 2, *range(1000, 1010), *range(100, 110), *range(200, 210), *range(300, 310)]
    assert sorted(numbers(settings, f"prod_{DEFAULT}")) == sorted(expected)


def test_a_forked_child_keeps_the_client_of_the_result_store_only_while_it_has_no_connection(
    amqp_url: str, redis_url: str
) -> None:
    app = build_app(make_settings(amqp_url, backend_url=redis_url))
    ours = app.backend

    def kept_in_a_child() -> bool:
        child = os.fork()
        if child == 0:
            os._exit(0 if app.backend is ours else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    assert kept_in_a_child()
    assert ours.client.ping()
    assert not kept_in_a_child()
    assert app.backend is ours


def test_a_producer_or_connection_of_the_application_is_confirmed_too(settings: Settings) -> None:
    app = build_app(settings)
    with connection(settings) as client:
        app.send_task("x", (1,), connection=client)
        with app.amqp.Producer(client, auto_declare=False) as producer:
            app.send_task("x", (2,), producer=producer)
        with app.amqp.Producer(client.channel(), auto_declare=False) as producer:
            app.send_task("x", (3,), producer=producer)
    assert numbers(settings, f"prod_{DEFAULT}") == [1, 2, 3]


def test_a_queue_with_other_arguments_is_named(amqp_url: str) -> None:
    settings = make_settings(amqp_url)
    with connection(settings) as client:
        queue = kombu.Queue(DEFAULT, kombu.Exchange("lime_exchange"), "k", queue_arguments={"x-max-length": 5})
        queue(client.default_channel).declare()
    build_app(settings)
    with pytest.raises(PublishError) as caught:
        send_task("x")
    assert DEFAULT in str(caught.value)
    assert "PRECONDITION_FAILED" in str(caught.value)
    assert "\n" not in str(caught.value)
    send_task("x", qos="asap")  # the others work
    assert tasks_in(settings, ASAP) == ["x"]


def test_a_queue_that_was_deleted_meanwhile_is_declared_anew(amqp_url: str) -> None:
    settings = make_settings(amqp_url)
    build_app(settings)
    send_task("x", (1,))
    with connection(settings) as client:
        client.default_channel.queue_delete(DEFAULT)
    send_task("x", (2,))
    assert numbers(settings) == [2]


def test_a_message_that_the_broker_does_not_accept_is_an_error(own_rabbitmq: RabbitMQ) -> None:
    own_rabbitmq.evaluate(
        'rabbit_policy:set(<<"/">>, <<"full">>, <<"^lime">>, '
        '[{<<"max-length">>, 1}, {<<"overflow">>, <<"reject-publish">>}], 0, <<"queues">>, <<"tests">>).'
    )
    settings = make_settings(own_rabbitmq.url)
    build_app(settings)
    errors = 0
    for number in range(6):
        try:
            send_task("x", (number,))
        except PublishError as error:
            assert DEFAULT in str(error)
            errors += 1
    assert errors == 6 - len(numbers(settings)) > 0


def test_a_broker_that_blocks_its_senders_loses_no_retry(own_rabbitmq: RabbitMQ, redis_url: str) -> None:
    settings = make_settings(own_rabbitmq.url, redis_url, publish_timeout_s=2)
    build_app(settings)
    with Worker(settings, "-P", "solo") as worker:
        # The worker has connections by now: those that exist already are blocked, too.
        assert tasks.again.delay([]).get(timeout=60)
        result = tasks.again.delay([], 3)
        wait_until(lambda: result.state == "RETRY", 30)
        own_rabbitmq.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.0).")
        blocked = Background(lambda: send_task("x", qos="background")).wait()
        assert isinstance(blocked.error, PublishError)
        assert blocked.seconds < 20
        wait_until(lambda: "was not confirmed" in worker.text(), 60)
        own_rabbitmq.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.4).")
        assert [item["retries"] for item in result.get(timeout=60)] == [0, 1, 2]


def test_a_retry_that_the_broker_refuses_is_a_failure(own_rabbitmq: RabbitMQ, redis_url: str) -> None:
    settings = make_settings(own_rabbitmq.url, redis_url)
    build_app(settings)
    send_task("x", qos="background")
    own_rabbitmq.evaluate(
        f'rabbit_policy:set(<<"/">>, <<"full">>, <<"^{BACKGROUND}">>, '
        '[{<<"max-length">>, 1}, {<<"overflow">>, <<"reject-publish">>}], 0, <<"queues">>, <<"tests">>).'
    )
    with Worker(settings, "-P", "solo", "-Q", ASAP), pytest.raises(PublishError, match=BACKGROUND):
        tasks.again.delay([], 0, {"queue": BACKGROUND}).get(timeout=60)


def test_a_wrong_password_is_an_error_at_once(rabbitmq: RabbitMQ) -> None:
    build_app(make_settings(f"amqp://guest:wrong-secret@127.0.0.1:{rabbitmq.port}//", publish_timeout_s=80))
    sender = Background(lambda: send_task("x")).wait(40)
    assert isinstance(sender.error, PublishError)
    assert "wrong-secret" not in str(sender.error)


def test_without_confirms_a_send_still_arrives(amqp_url: str) -> None:
    settings = make_settings(amqp_url, publish_confirm=False)
    app = build_app(settings)
    send_task("x", (1,))
    with app.amqp.producer_pool.acquire(block=True) as producer:
        assert not producer.channel.connection.confirm_publish
    wait_until(lambda: numbers(settings) == [1])


def test_another_broker_takes_over(own_rabbitmq: RabbitMQ, amqp_url: str) -> None:
    (port,) = free_ports(1)
    settings = make_settings(amqp_url)
    build_app(make_settings(f"amqp://127.0.0.1:{port}//;{own_rabbitmq.url};{amqp_url}", publish_timeout_s=24))
    send_task("x", (1,))
    assert numbers(make_settings(own_rabbitmq.url)) == [1]
    own_rabbitmq.pause()
    try:
        send_task("x", (2,))
    finally:
        own_rabbitmq.resume()
    assert numbers(settings) == [2]


def test_the_event_of_a_send_is_no_part_of_its_promise(settings: Settings) -> None:
    settings = dataclasses.replace(settings, celery={"task_send_sent_event": True})
    app = build_app(settings)
    events: list[dict[str, Any]] = []
    with app.connection_for_read() as client:
        receiver = app.events.Receiver(client, handlers={"task-sent": events.append})
        with receiver.consumer_context(wakeup=False) as (receiving, _channel, _consumers):
            _drain(receiving)  # on Redis only now it listens
            send_task("x", (1,), task_id="an-id")
            wait_until(lambda: _drain(receiving) or events, 30)
    assert [(event["uuid"], event["queue"]) for event in events] == [("an-id", f"prod_{DEFAULT}")]
    # Nobody may write into the exchange of the events: it has another type already.
    other = make_settings(settings.broker_url, prefix="prod2", celery={"task_send_sent_event": True})
    build_app(other)
    with connection(other) as client:
        kombu.Exchange("prod2_celeryev", type="fanout", durable=True)(client.default_channel).declare()
    for number in (1, 2):
        send_task("x", (number,))
    assert numbers(other, f"prod2_{DEFAULT}") == [1, 2]


def _drain(client: kombu.Connection) -> None:
    try:
        client.drain_events(timeout=0.2)
    except TimeoutError:
        return
