"""Two clusters that share one RabbitMQ virtual host, or one Redis database, never see each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kombu
import pytest
import redis as redis_client
from celery import chain, chord, group, shared_task

from limetaskd.core.settings import Settings
from limetaskd.tasks.app import build_app
from tests.support.brokers import Redis
from tests.support.sending import (
    ASAP,
    BACKGROUND,
    DEFAULT,
    SPECIAL,
    Worker,
    clean_apps,
    connection,
    make_settings,
    tasks_in,
)
from tests.support.waiting import wait_until

QUEUES = (DEFAULT, ASAP, BACKGROUND, SPECIAL)
PROD, STAGE = {"prefix": "prod", "suffix": "eu"}, {"prefix": "stage", "suffix": "eu"}
# One name is the end of another behind a dot: a topic exchange must not take one for the other.
BARE, DOTTED = {"prefix": ""}, {"prefix": "prod."}


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with clean_apps():
        yield


@shared_task(name="iso.plain")
def plain(*_args: Any) -> None: ...


@shared_task(name="iso.asap", qos="asap")
def asap(*_args: Any) -> None: ...


@pytest.fixture(params=["amqp", "redis", "quorum"])
def two(request: pytest.FixtureRequest) -> tuple[Settings, Settings]:
    """prod and stage on one broker."""
    kind = "quorum" if request.param == "quorum" else "classic"
    url = request.getfixturevalue("redis_url" if request.param == "redis" else "amqp_url")
    prod = make_settings(url, queue_type=kind, **PROD)  # type: ignore[arg-type]
    stage = make_settings(url, queue_type=kind, **STAGE)  # type: ignore[arg-type]
    return prod, stage


def declare(settings: Settings) -> None:
    """As the workers of that cluster would: every queue is there and bound."""
    app = build_app(settings)
    with connection(settings) as client:
        for queue in app.amqp.queues.values():
            queue(client.default_channel).declare()


def waiting(settings: Settings) -> dict[str, list[str]]:
    """What waits in each queue of a cluster (taken out)."""
    return {name: found for name in QUEUES if (found := tasks_in(settings, settings.cluster.actual(name)))}


def routes(app: Any, other: Settings) -> list[tuple[str, Any]]:
    """Every way to send, each with what it should reach in the own cluster. `other`: the cluster to break into."""
    foreign = other.cluster.actual(ASAP)
    key = other.cluster.routing_key("lime_default_key")
    return [
        ("default", plain.delay),
        ("qos", asap.delay),
        ("by name", lambda: app.send_task("unknown.here")),
        ("special", lambda: app.send_task("my.special.task")),
        ("header queue", lambda: plain.apply_async(headers={"__queue": ASAP})),
        ("header actual", lambda: plain.apply_async(headers={"__queue": app.conf.task_default_queue})),
        ("header foreign", lambda: plain.apply_async(headers={"__queue": foreign})),
        ("header qos", lambda: plain.apply_async(headers={"__qos_category": "background"})),
        ("queue=", lambda: plain.apply_async(queue=ASAP)),
        ("queue= foreign", lambda: plain.apply_async(queue=foreign)),
        ("queue= object", lambda: plain.apply_async(queue=kombu.Queue(foreign, kombu.Exchange("lime_exchange"), key))),
        ("exchange and key", lambda: plain.apply_async(exchange="lime_exchange", routing_key=key)),
        ("key alone", lambda: plain.apply_async(routing_key=key)),
        ("default exchange", lambda: plain.apply_async(exchange="", routing_key=foreign)),
        ("own key", lambda: plain.apply_async(exchange="lime_exchange", routing_key="lime_default_key")),
        ("exchange alone", lambda: plain.apply_async(exchange="lime_exchange")),
        ("signature", lambda: plain.s().set(queue=foreign).apply_async()),
        ("chain", lambda: chain(plain.si(), asap.si()).apply_async()),
        ("group", lambda: group(plain.si(), asap.si()).apply_async()),
        ("eta", lambda: plain.apply_async(countdown=1)),
        ("message", lambda: _raw(app, foreign)),
    ]


def _raw(app: Any, foreign: str) -> None:
    """Around app.send_task and the router."""
    message = app.amqp.create_task_message("an-id", "iso.plain", (), {})
    with app.producer_or_acquire() as producer:
        app.amqp.send_task_message(producer, "iso.plain", message, queue=foreign, routing_key="raw")


def test_no_route_reaches_another_cluster(two: tuple[Settings, Settings]) -> None:
    prod, stage = two
    for settings in two:
        declare(settings)
    build_app(stage)
    app = build_app(prod)
    for name, send in routes(app, stage):
        send()
        assert waiting(stage) == {}, name
    if prod.queue_type == "quorum":
        wait_until(lambda: _depth(prod, DEFAULT) >= 7, 30)  # the one with an ETA comes by the delayed delivery
    assert waiting(stage) == {}
    found = waiting(prod)
    assert found[SPECIAL] == ["my.special.task"]
    assert found[BACKGROUND] == ["iso.plain"]
    assert found[ASAP].count("iso.asap") == 2
    assert found[ASAP].count("iso.plain") == 2
    assert found[DEFAULT].count("unknown.here") == 1


def _depth(settings: Settings, name: str) -> int:
    with connection(settings) as client:
        return int(client.default_channel.queue_declare(settings.cluster.actual(name), passive=True).message_count)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_dot_in_a_name_opens_no_way(amqp_url: str, kind: str) -> None:
    bare = make_settings(amqp_url, queue_type=kind, **BARE)  # type: ignore[arg-type]
    dotted = make_settings(amqp_url, queue_type=kind, **DOTTED)  # type: ignore[arg-type]
    for settings in (bare, dotted):
        declare(settings)
    # As a worker does: with the bindings of native delayed delivery.
    for settings, quiet in ((dotted, bare), (bare, dotted)):
        app = build_app(settings)
        plain.delay()
        plain.apply_async(countdown=1)
        app.send_task("my.special.task")
        wait_until(lambda settings=settings: _depth(settings, DEFAULT) == 2, 30)  # type: ignore[misc]
        assert waiting(quiet) == {}
        assert waiting(settings) == {DEFAULT: ["iso.plain"] * 2, SPECIAL: ["my.special.task"]}


def test_every_key_on_redis_has_the_prefix(redis_url: str, redis_server: Redis) -> None:
    settings = make_settings(redis_url, redis_url, **PROD)  # type: ignore[arg-type]
    app = build_app(settings)
    plain.delay()
    plain.apply_async(countdown=3)
    app.backend.mark_as_done("some-task", 1)
    chord([plain.si(), plain.si()], asap.si())()
    client = redis_client.Redis.from_url(redis_url)
    keys = [key.decode() for key in client.keys("*")]
    assert keys
    assert [key for key in keys if not key.startswith(settings.cluster.key_prefix)] == []


@pytest.mark.parametrize("kind", ["amqp", "redis"])
def test_remote_control_stays_inside(kind: str, request: pytest.FixtureRequest, redis_url: str) -> None:
    url = request.getfixturevalue(f"{kind}_url")
    prod, stage = make_settings(url, redis_url, prefix="prod"), make_settings(url, redis_url, prefix="stage")
    with Worker(prod, "-P", "solo", name="one") as one, Worker(stage, "-P", "solo", name="two") as two:
        apps = {"one@test": build_app(prod), "two@test": build_app(stage)}
        for name, app in apps.items():
            wait_until(lambda app=app, name=name: _nodes(app) == {name}, 30)  # type: ignore[misc]
            assert app.send_task("t.add", (1, 2)).get(timeout=30) == 3
        # A broadcast to all ends the workers of one cluster only.
        apps["one@test"].control.shutdown()
        wait_until(lambda: one.process.poll() is not None, 30)
        assert _nodes(apps["two@test"]) == {"two@test"}
        assert two.process.poll() is None


def _nodes(app: Any) -> set[str]:
    return {node for answer in app.control.ping(timeout=2) for node in answer}
