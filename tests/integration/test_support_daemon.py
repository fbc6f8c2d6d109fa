"""The daemon helper that the other integration tests rely on: what it starts ends with it."""

from __future__ import annotations

import psutil

from tests.support.daemon import Daemon
from tests.support.guard import folder_pids
from tests.support.waiting import wait_until


def test_close_ends_everything_of_a_killed_daemon(redis_url: str) -> None:
    daemon = Daemon(
        {
            "tasks": {"broker_connection_string": redis_url, "backend_connection_string": redis_url},
            "limetaskd": {"concurrency": 2},
        }
    )
    try:
        daemon.start()
        daemon.wait_running("all")
        main = daemon.named("all:0")[0]
        assert daemon.main_pid("all:0") == main.pid
        wait_until(lambda: len(daemon.named("all:0")) == 3, message="a main process and two children")
        assert daemon.worker("all:0")["pid"] == main.pid
        assert any(record["process"] == "limetaskd" for record in daemon.logs())
        daemon.kill()
        assert psutil.pid_exists(main.pid)
    finally:
        daemon.close()
    assert folder_pids(str(daemon.folder)) == []
    assert not daemon.folder.exists()
