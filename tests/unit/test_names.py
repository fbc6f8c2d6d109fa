"""Prefix, suffix and routing keys: two clusters never meet."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from limetaskd.core.names import PREFIX_VARIABLE, SUFFIX_VARIABLE, Cluster

WORDS = st.text("ab_.-%*#2E5", min_size=1, max_size=8)
PARTS = st.one_of(st.just(""), WORDS)


@pytest.mark.parametrize(
    ("prefix", "suffix", "actual"),
    [
        ("", "", "lime_x"),
        ("prod", "", "prod_lime_x"),
        ("prod_", "", "prod_lime_x"),
        ("prod-", "", "prod-lime_x"),
        ("prod.", "", "prod.lime_x"),
        ("", "eu", "lime_x_eu"),
        ("", "_eu", "lime_x_eu"),
        ("", "-eu", "lime_x-eu"),
        ("", ".eu", "lime_x.eu"),
        ("prod", "eu", "prod_lime_x_eu"),
        ("prod__", "__eu", "prod__lime_x__eu"),
    ],
)
def test_joints(prefix: str, suffix: str, actual: str) -> None:
    assert Cluster(prefix, suffix).actual("lime_x") == actual


def test_from_the_environment() -> None:
    assert Cluster.from_environment({PREFIX_VARIABLE: " prod ", SUFFIX_VARIABLE: "eu"}) == Cluster("prod", "eu")
    assert Cluster.from_environment({}) == Cluster()


def test_the_seeds_example() -> None:
    cluster = Cluster("prod", "eu")
    assert cluster.actual("lime_default_task_queue") == "prod_lime_default_task_queue_eu"
    assert cluster.actual("lime_task_queue_asap") == "prod_lime_task_queue_asap_eu"


@given(PARTS, PARTS, WORDS)
def test_a_routing_key_is_one_word_of_a_topic(prefix: str, suffix: str, name: str) -> None:
    assert not set(".*#") & set(Cluster(prefix, suffix).routing_key(name))


@given(PARTS, PARTS, WORDS, PARTS, PARTS, WORDS)
def test_routing_keys_meet_only_where_names_meet(p1: str, s1: str, n1: str, p2: str, s2: str, n2: str) -> None:
    one, two = Cluster(p1, s1), Cluster(p2, s2)
    assert (one.routing_key(n1) == two.routing_key(n2)) == (one.actual(n1) == two.actual(n2))


@given(PARTS, PARTS, PARTS, PARTS)
def test_key_prefixes_meet_only_for_one_cluster(p1: str, s1: str, p2: str, s2: str) -> None:
    one, two = Cluster(p1, s1), Cluster(p2, s2)
    assume((one.head, one.tail) != (two.head, two.tail))
    assert one.key_prefix != two.key_prefix


def test_key_prefix() -> None:
    assert Cluster().key_prefix == ""
    assert Cluster("prod").key_prefix == Cluster("prod_").key_prefix == "prod_"
    assert Cluster("prod", "a_b").key_prefix != Cluster("prod_a", "b").key_prefix
