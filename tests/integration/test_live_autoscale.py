"""An autoscaled pool grows under load, says why, and yields to an operator, on both brokers."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.crm import SOURCE, configuration
from tests.support.daemon import Daemon
from tests.support.jobs import Urls, urls  # noqa: F401
from tests.support.sender import Sender
from tests.support.waiting import wait_until


def test_a_pool_grows_with_its_queue_and_says_why(urls: Urls, make_daemon: Callable[..., Daemon]) -> None:  # noqa: F811
    pools = {"asap": {"concurrency": 1, "autoscale": {"min": 1, "max": 5, "target_latency": "500ms"}}}
    daemon = make_daemon(configuration(urls.broker, urls.backend, pools=pools))
    daemon.module("crmtasks", SOURCE)
    daemon.start()
    daemon.wait_running()
    pid = daemon.worker("asap:0")["pid"]
    assert daemon.pool("asap")["concurrency"] == 1
    gate = daemon.folder / "gate"
    with Sender(daemon) as sender:
        ids = sender.send_many("crm.wait_for", [[str(gate)]] * 12, qos="asap")
        # On a host without room for more slots it says so instead; the tests' machine may be very busy.
        wait_until(
            lambda: daemon.worker("asap:0")["active"] == 5 or "CPUs" in str(daemon.ctl("why", "asap")["decisions"]),
            60, lambda: f"five at once, not {daemon.ctl('why', 'asap')}",
        )  # fmt: skip
        why = daemon.ctl("why", "asap")
        assert why["autoscale"] == {"min": 1, "max": 5, "target_latency_s": 0.5}
        assert why["decisions"][-1]["depth"] is not None
        # An operator's word counts more, until he takes it back.
        daemon.ctl("scale", "asap=6")
        assert daemon.worker("asap:0")["concurrency"] == 6
        assert daemon.ctl("why", "asap")["set_by_operator"] is True
        assert "set by an operator" in daemon.run_ctl("why", "asap").stdout
        gate.touch()
        assert all(isinstance(value, int) for value in sender.results(ids))
        daemon.ctl("scale", "asap=default")
        assert daemon.worker("asap:0")["concurrency"] <= 5
    assert daemon.worker("asap:0")["pid"] == pid
    assert daemon.ctl("why", "background")["autoscale"] is None
    assert daemon.run_ctl("why", "nope").returncode == 1
