"""The router: a truth table over every combination of the five sources."""

from __future__ import annotations

from itertools import product

import pytest

from limetaskd.core.names import Cluster
from limetaskd.core.routing import (
    DEFAULT_QUEUE,
    HEADER_QOS,
    HEADER_QUEUE,
    TASK_QOS,
    TASK_ROUTE,
    decide,
    find_queue,
)
from limetaskd.core.settings import Queue, Routing, Settings
from limetaskd.errors import RoutingError

CLUSTERS = [Cluster(), Cluster("prod", "eu")]
TASK = {"routed": "my.special.task", "plain": "my.plain.task"}
HEADER_QUEUES = {"none": None, "empty": "", "known": "q_special", "actual": "ACTUAL", "unknown": "elsewhere"}
CATEGORIES = {"none": None, "empty": "", "known": "asap", "other": "background", "unknown": "nowhere"}


def make(cluster: Cluster) -> Settings:
    names = ["q_default", "q_asap", "q_background", "q_special"]
    queues = [
        Queue(name, cluster.actual(name), "x", "direct", cluster.routing_key("key" if name == "q_default" else name))
        for name in names
    ]
    routing = Routing("q_default", {"asap": "q_asap", "background": "q_background"}, {TASK["routed"]: "q_special"})
    return Settings("crm", "amqp://", None, cluster.prefix, cluster.suffix, "x", queues, routing)


@pytest.mark.parametrize("cluster", CLUSTERS, ids=["bare", "prod_eu"])
@pytest.mark.parametrize(
    ("task", "header", "header_qos", "task_qos"), list(product(TASK, HEADER_QUEUES, CATEGORIES, CATEGORIES))
)
def test_truth_table(cluster: Cluster, task: str, header: str, header_qos: str, task_qos: str) -> None:
    """The expectation is written rule by rule, each on its own."""
    settings = make(cluster)
    queue_header = cluster.actual("q_background") if header == "actual" else HEADER_QUEUES[header]
    decision = decide(
        settings,
        TASK[task],
        header_queue=queue_header,
        header_qos=CATEGORIES[header_qos],
        task_qos=CATEGORIES[task_qos] or None,
    )
    queues = {"known": "q_asap", "other": "q_background"}
    warnings = 0
    if task == "routed":
        expected = (TASK_ROUTE, "q_special")
    elif header == "known":
        expected = (HEADER_QUEUE, "q_special")
    elif header == "actual":
        expected = (HEADER_QUEUE, "q_background")
    elif header == "unknown":
        expected, warnings = (HEADER_QUEUE, "elsewhere"), 1
    else:
        warnings = header_qos == "unknown"
        if header_qos in queues:
            expected = (HEADER_QOS, queues[header_qos])
        else:
            warnings += task_qos == "unknown"
            expected = (TASK_QOS, queues[task_qos]) if task_qos in queues else (DEFAULT_QUEUE, "q_default")
    assert (decision.type, decision.queue.name) == expected
    assert decision.queue.actual == cluster.actual(expected[1])
    assert len(decision.warnings) == warnings
    # Whatever the sources say, the task stays in this cluster.
    key = cluster.routing_key("key" if expected[1] == "q_default" else expected[1])
    assert decision.queue.routing_key == key


@pytest.mark.parametrize("wrong", [5, True, b"q_special", ["q_special"], {"a": 1}, 0.5])
@pytest.mark.parametrize("header", ["header_queue", "header_qos"])
@pytest.mark.parametrize("task", TASK.values())
def test_a_header_that_is_no_string_is_refused(wrong: object, header: str, task: str) -> None:
    with pytest.raises(RoutingError, match="must be a string"):
        decide(make(Cluster()), task, **{header: wrong})  # type: ignore[arg-type]


def test_no_header_reaches_another_cluster() -> None:
    settings = make(Cluster("prod"))
    for name in ("stage_q_default", "q_other", "amq.topic", "prod_unknown"):
        decision = decide(settings, TASK["plain"], header_queue=name)
        assert decision.queue.actual == f"prod_{name}"
        assert decision.warnings


def test_a_configured_name_wins_over_an_actual_one() -> None:
    cluster = Cluster("prod")
    settings = make(cluster)
    trap = Queue("prod_q_asap", "prod_prod_q_asap", "x", "direct", "prod_prod_q_asap")
    settings.queues.append(trap)
    assert find_queue(settings, "prod_q_asap") == trap
    assert find_queue(settings, "prod_q_special") == settings.queue("q_special")
    assert find_queue(settings, "q_nowhere") is None


def test_task_names_match_exactly() -> None:
    settings = make(Cluster())
    for name in ("my.special.task2", "my.special", "MY.SPECIAL.TASK", "my.special.task "):
        assert decide(settings, name).type == DEFAULT_QUEUE
