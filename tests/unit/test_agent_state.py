"""The agent's report and what it says of errors."""

from __future__ import annotations

import queue
import time
from typing import Any

from limetaskd.agent.brokers import away, connection_of
from limetaskd.agent.main import answerable, fitting
from limetaskd.agent.watch import Watch
from limetaskd.core.channel import Phase, Reply, State, encode
from tests.support.channel import settings_of


def state_with(queues: int) -> State:
    figures = [{"name": f"queue_{'x' * 100}_{number}", "depth": 1} for number in range(queues)]
    data = {"broker": {"up": True, "error": None}, "queues": figures}
    return State("limetaskd:agent", 1, 2, Phase.CONSUMING, data=data)


def test_a_state_that_fits_is_left_alone() -> None:
    state = state_with(100)
    assert fitting(state) is state


def test_too_many_queues_cost_their_figures_and_not_the_report() -> None:
    state = fitting(state_with(2000))
    assert len(encode(state)) < 1000
    assert state.data == {"broker": {"up": True, "error": None}, "queues": []}
    assert state.reason == "2000 queues are too many to report their figures"


def test_errors_are_one_line_without_secrets() -> None:
    assert str(away(OSError("no\nroute to amqp://u:secret@h//"))) == "no route to amqp://u:***@h//"
    assert str(away(TimeoutError())) == "TimeoutError"


def test_the_connection_has_the_addresses_of_the_workers_and_timeouts() -> None:
    celery = {"broker_use_ssl": {"ssl_cert_reqs": 0}, "broker_transport_options": {"x": 1}}
    settings = settings_of("redis://a:1/2", prefix="prod", celery=celery)
    connection = connection_of(settings)
    assert (connection.transport_cls, connection.hostname, connection.port) == ("limeredis", "a", 1)
    assert connection.ssl == {"ssl_cert_reqs": 0}
    options = connection.transport_options
    assert (options["global_keyprefix"], options["x"], options["socket_timeout"]) == ("prod_", 1, 5.0)


def test_an_answer_that_is_too_large_arrives_with_less() -> None:
    many = [{"id": str(number), "body": "x" * 16_000} for number in range(20)]
    reply = answerable(Reply(1, None, {"tasks": many, "count": 20}))
    assert encode(reply)
    assert 1 <= len(reply.result["tasks"]) < 20
    assert (reply.result["count"], reply.result["cut"]) == (20, True)
    one = answerable(Reply(1, None, {"tasks": [{"id": "a", "body": "\N{GRINNING FACE}" * 200_000}]}))
    assert encode(one)
    assert one.result["tasks"][0]["id"] == "a"
    small = Reply(1, None, {"tasks": many[:1]})
    assert answerable(small) is small


def test_commands_that_take_long_do_not_keep_the_agent_from_the_rest() -> None:
    """A result store that swallows what it is sent: the daemon asks again before the last answer is there."""
    watch: Any = Watch.__new__(Watch)
    watch._jobs = queue.Queue()
    watch._figures_due = time.monotonic()
    watch._obey = lambda command, _params: {"done": command}
    done: list[Any] = []
    for number in range(3):
        watch._jobs.put((number, {}, lambda result, _error: done.append(result)))
    watch._work_until(watch._figures_due)
    assert done == [{"done": 0}]
    # Those that do not take long are carried out one after the other, until the rest is due.
    watch._figures_due = time.monotonic() + 60
    watch._jobs.put((3, {}, lambda _result, _error: setattr(watch, "_figures_due", 0.0)))
    watch._work_until(time.monotonic() + 60)
    assert done == [{"done": number} for number in range(3)]
