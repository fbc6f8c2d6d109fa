"""Tasks that workers execute: canvas, retries, ETA, users, on real brokers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain, chord, group

from limetaskd.core.settings import Settings
from limetaskd.tasks.app import build_app
from limetaskd.tasks.user import task_user
from tests.support import sending_tasks as tasks
from tests.support.sending import ASAP, BACKGROUND, DEFAULT, Worker, clean_apps, make_settings

KINDS = ("amqp", "quorum", "redis")
DEFAULT_, ASAP_, BACKGROUND_ = (f"prod_{name}" for name in (DEFAULT, ASAP, BACKGROUND))


@pytest.fixture(scope="module", params=KINDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Settings]:
    """A worker on every queue of a cluster with a prefix."""
    rabbitmq, redis_server = (request.getfixturevalue(name) for name in ("rabbitmq", "redis_server"))
    results = redis_server.url_of(15 - KINDS.index(request.param))
    broker = results if request.param == "redis" else rabbitmq.new_vhost()
    kind = "quorum" if request.param == "quorum" else "classic"
    settings = make_settings(broker, results, prefix="prod", queue_type=kind)
    with Worker(settings, "-P", "threads", "-c", "4"):
        yield settings


@pytest.fixture
def app(cluster: Settings) -> Iterator[Any]:
    with clean_apps():
        yield build_app(cluster)


def get(result: Any) -> Any:
    return result.get(timeout=60)


def test_a_task_says_how_it_came(app: Any) -> None:
    first = get(tasks.where.delay())
    assert (first["queue"], first["type"], first["user"]) == (DEFAULT_, "default_queue", None)
    second = get(tasks.where_asap.delay())
    assert (second["queue"], second["type"]) == (ASAP_, "task_qos")
    third = get(tasks.where_asap.apply_async(headers={"__qos_category": "background"}))
    assert (third["queue"], third["type"]) == (BACKGROUND_, "header_qos")
    fourth = get(tasks.where.apply_async(queue=ASAP))
    assert (fourth["queue"], fourth["type"]) == (ASAP_, "header_queue")
    later = get(tasks.where.apply_async(countdown=1.5))
    assert later["queue"] == DEFAULT_


def test_chains_groups_and_chords(app: Any) -> None:
    assert get(chain(tasks.add.s(1, 2), tasks.add.s(3), tasks.add.s(4)).apply_async()) == 10
    assert get(group(tasks.add.s(1, 1), tasks.add.s(2, 2)).apply_async()) == [2, 4]
    assert get(chord([tasks.add.s(1, 1), tasks.add.s(2, 2)], tasks.total.s())()) == 6
    assert get(chain(tasks.where.si(), tasks.where_asap.si()).apply_async())["queue"] == ASAP_
    assert get(tasks.add.chunks([(1, 1), (2, 2), (3, 3)], 2).apply_async()) == [[2, 4], [6]]
    first, second, third, fourth = (app.AsyncResult(task_id) for task_id in get(tasks.canvas.delay()))
    assert [get(first), get(second), get(third), get(fourth)] == [6, 2, 4, 6]


def test_a_retry_goes_where_its_first_try_went(app: Any) -> None:
    history = get(tasks.again.apply_async(([],), headers={"__queue": BACKGROUND}))
    assert [(item["queue"], item["type"]) for item in history] == [(BACKGROUND_, "header_queue")] * 3
    assert [item["retries"] for item in history] == [0, 1, 2]
    sent = [item["sent_at"] for item in history]
    assert sent == sorted(set(sent))  # each try its own time
    history = get(tasks.again.apply_async(([], 1.2)))
    assert [item["queue"] for item in history] == [ASAP_] * 3
    # Other headers in the retry do not lead elsewhere; `queue=` does.
    history = get(tasks.again.apply_async(([], 0, {"headers": {"__qos_category": "background"}})))
    assert [item["queue"] for item in history] == [ASAP_] * 3
    history = get(tasks.again.apply_async(([], 0, {"queue": BACKGROUND})))
    assert [item["queue"] for item in history] == [ASAP_, BACKGROUND_, BACKGROUND_]


def test_children_inherit_the_user_and_no_wish(app: Any) -> None:
    with task_user("42"):
        result = tasks.parent.apply_async(headers={"__queue": BACKGROUND})
    children = [get(app.AsyncResult(task_id)) for task_id in get(result)]
    assert [child["queue"] for child in children] == [DEFAULT_, ASAP_, *[DEFAULT_] * 4]
    assert {child["user"] for child in children} == {"42"}
    assert {child["current"] for child in children} == {"42"}
    history = get(tasks.again.apply_async(([],), headers={"__user_id": "7"}))
    assert [item["user"] for item in history] == ["7"] * 3
    assert get(tasks.where.delay())["user"] is None
