"""What Celery's options say becomes the five rules' input: every combination of the sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kombu
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limetaskd.core.routing import DEFAULT_QUEUE, HEADER_QOS, HEADER_QUEUE, TASK_QOS, TASK_ROUTE
from limetaskd.errors import RoutingError
from limetaskd.tasks.app import build_app
from limetaskd.tasks.router import ROUTE_OPTION
from tests.support.sending import ASAP, BACKGROUND, DEFAULT, SPECIAL, clean_apps, make_settings

SETTINGS = make_settings("amqp://127.0.0.1:1//", prefix="prod")


@pytest.fixture(scope="module")
def app() -> Iterator[Any]:
    with clean_apps():
        app = build_app(SETTINGS)

        def nothing() -> None: ...

        app.task(name="unit.asap", qos="asap", shared=False)(nothing)
        app.task(name="unit.lost", qos="nobody", shared=False)(nothing)
        yield app


def routed(app: Any, name: str, options: dict[str, Any]) -> tuple[str, str]:
    """(configured queue, type)"""
    result = app.amqp.router.route(options, name)
    decision = result[ROUTE_OPTION].decision
    assert result["queue"].name == decision.queue.actual
    assert not {"exchange", "routing_key", "exchange_type"} & set(result)
    return decision.queue.name, decision.type


def expected(name: str, queue: str | None, category: str | None) -> tuple[str, str]:
    if name == "my.special.task":
        return SPECIAL, TASK_ROUTE
    if queue is not None:
        return queue, HEADER_QUEUE
    if category in ("asap", "background"):
        return (ASAP if category == "asap" else BACKGROUND), HEADER_QOS
    if name == "unit.asap":
        return ASAP, TASK_QOS
    return DEFAULT, DEFAULT_QUEUE


@given(
    name=st.sampled_from(["my.special.task", "unit.asap", "unit.lost", "not.known.here"]),
    header=st.sampled_from([None, ASAP, f"prod_{BACKGROUND}", "weird"]),
    option=st.sampled_from([None, BACKGROUND, kombu.Queue(f"prod_{ASAP}")]),
    key=st.sampled_from([None, "lime_default_key", "prod_lime_default_key", SPECIAL]),
    category=st.sampled_from([None, "asap", "background", "nobody"]),
)
def test_truth_table(
    app: Any, name: str, header: str | None, option: Any, key: str | None, category: str | None
) -> None:
    options: dict[str, Any] = {"headers": {}, "exchange": "other", "exchange_type": "topic"}
    if header:
        options["headers"]["__queue"] = header
    if category:
        options["headers"]["__qos_category"] = category
    if option:
        options["queue"] = option
    if key:
        options["routing_key"] = key
    names = {
        f"prod_{BACKGROUND}": BACKGROUND, "lime_default_key": DEFAULT, "prod_lime_default_key": DEFAULT,
    }  # fmt: skip
    plain = ASAP if isinstance(option, kombu.Queue) else option
    wish = header or plain or key
    assert routed(app, name, options) == expected(name, names.get(wish, wish) if wish else None, category)
    assert "exchange" in options  # the caller's own mapping is left alone


@pytest.mark.parametrize("value", [7, 1.5, True, ["a"], {"a": 1}, b"bytes"])
def test_what_is_no_name_is_refused_whichever_rule_would_win(app: Any, value: Any) -> None:
    for options in (
        {"headers": {"__queue": value}},
        {"headers": {"__qos_category": value}},
        {"queue": value},
        {"routing_key": value},
    ):
        for name in ("my.special.task", "unit.asap"):
            with pytest.raises(RoutingError, match=name):
                app.amqp.router.route(options, name)


def test_the_mapped_task_routes_a_starmap(app: Any) -> None:
    assert routed(app, "unit.asap", {}) == (ASAP, TASK_QOS)
    result = app.amqp.router.route({}, "unit.asap", task_type=app.tasks["celery.starmap"])
    assert result["queue"].name == f"prod_{ASAP}"
