"""The daemon as a service: what systemd is told, users, logs at the destination, broken surroundings."""

from __future__ import annotations

import json
import os
import pwd
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import kombu
import psutil
import pytest

from tests.support.crm import SOURCE, configuration
from tests.support.daemon import ROOT, Daemon
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]


class Manager:
    """The service manager's end of sd_notify."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.lines: list[str] = []

    def heard(self, line: str) -> bool:
        while True:
            try:
                self.lines += self.socket.recv(65536).decode().splitlines()
            except BlockingIOError:
                return any(entry.startswith(line) for entry in self.lines)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify.sock")
    yield made
    made.socket.close()


def test_the_service_manager_is_told(
    manager: Manager, tmp_path: Path, amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify.sock"), "WATCHDOG_USEC": "400000"}
    daemon = make_daemon(configuration(amqp_url, redis_url), env=env)
    daemon.module("crmtasks", SOURCE)
    daemon.start()
    wait_until(lambda: manager.heard("READY=1"), 60)
    status = daemon.status()
    assert status is not None
    assert all(worker["ready"] for pool in status["pools"] for worker in pool["workers"])
    assert manager.heard("STATUS=3 of 3 workers consume")
    wait_until(lambda: manager.lines.count("WATCHDOG=1") >= 2 or manager.heard("nothing"))
    manager.lines.clear()
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: manager.heard("RELOADING=1"))
    wait_until(lambda: manager.heard("READY=1"))
    gate, started = daemon.folder / "gate", daemon.folder / "started"
    with Sender(daemon) as sender:
        sender.send("crm.wait_for", str(gate), str(started))
        wait_until(started.exists)
    daemon.signal(signal.SIGTERM)
    wait_until(lambda: manager.heard("STOPPING=1"))
    wait_until(lambda: manager.heard("EXTEND_TIMEOUT_USEC="))
    gate.touch()
    assert daemon.wait_exit() == 0
    # What was meant for the daemon alone did not reach its workers, or they would have fed the watchdog.
    assert "NOTIFY_SOCKET" not in (daemon.state_dir / "log" / "asap:0.log").read_text()


def installed_for_all(daemon: Daemon) -> None:
    """Let every user run the daemon's interpreter, as an installed package would.

    The interpreter of the tests may be in root's home, which another user cannot enter: it is mounted where all can,
    in a mount namespace that ends with the daemon.
    """
    sources = {
        "python": Path(sys.base_prefix),
        "packages": Path(sysconfig.get_paths()["purelib"]),
        "source": ROOT,
    }
    mounts = []
    for name, source in sources.items():
        target = daemon.folder / name
        target.mkdir()
        mounts.append(f"mount --bind {shlex.quote(str(source))} {target}")
    interpreter = daemon.folder / "python" / "bin" / f"python3.{sys.version_info.minor}"
    script = daemon.folder / "start"
    inner = " && ".join([*mounts, f'exec {interpreter} "$@"'])
    script.write_text(f"#!/bin/sh\nexec unshare --mount sh -c {shlex.quote(inner)} sh \"$@\"\n")
    script.chmod(0o755)
    paths = [daemon.modules, daemon.folder / "source", daemon.folder / "source" / "ctl", daemon.folder / "packages"]
    daemon.environment["LD_LIBRARY_PATH"] = str(daemon.folder / "python" / "lib")  # of an interpreter built shared
    daemon.environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    daemon.python = str(script)


def test_root_becomes_the_configured_user_first(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    assert os.geteuid() == 0, "this test starts the daemon as root: run it as root"
    nobody = pwd.getpwnam("nobody")
    daemon = make_daemon(configuration(amqp_url, redis_url, user="nobody"))
    daemon.module("crmtasks", SOURCE)
    installed_for_all(daemon)
    daemon.start()
    daemon.wait_running()
    processes = daemon.processes()
    assert len(processes) >= 9
    assert {process.uids().effective for process in processes} == {nobody.pw_uid}
    assert {process.gids().effective for process in processes} == {nobody.pw_gid}
    assert daemon.runtime_dir.stat().st_uid == nobody.pw_uid
    with Sender(daemon) as sender:
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 3
    # A reload reads the file with the facts of the start: nothing has changed.
    assert daemon.ctl("reload")["changed"] is False
    assert daemon.stop() == 0


def test_task_code_as_root_is_warned_of_loudly(amqp_url: str, redis_url: str, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(configuration(amqp_url, redis_url))
    daemon.module("crmtasks", SOURCE)
    daemon.start()
    daemon.wait_running()
    assert any(r["level"] == "WARNING" and "root" in r["message"].lower() for r in daemon.logs())


def test_secrets_reach_no_log_status_or_check(amqp_url: str, redis_url: str, make_daemon: MakeDaemon) -> None:
    broker = amqp_url.replace("guest:guest", "guest:s3cr3t-word")
    daemon = make_daemon(configuration(broker, redis_url))
    daemon.module("crmtasks", SOURCE)
    checked = subprocess.run(
        [sys.executable, "-m", "limetaskd.daemon.main", "--config", str(daemon.config_path), "--check"],
        env=daemon.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert checked.returncode == 0
    daemon.start()
    # RabbitMQ refuses the password: the workers wait, and say so.
    wait_until(lambda: daemon.status() and "waits for its broker" in str(daemon.worker("asap:0")["reason"]), 60)
    status = daemon.run_ctl("status", "--json").stdout + daemon.run_ctl("status").stdout
    assert daemon.stop() == 0
    logs = "".join(path.read_text() for path in (daemon.state_dir / "log").glob("*.log"))
    for text in (checked.stdout + checked.stderr, status, logs, daemon.stderr_path.read_text()):
        assert "s3cr3t-word" not in text
        assert "***" in text


def test_logs_go_to_a_file_as_text_and_usr1_reopens_it(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = make_daemon(configuration(amqp_url, redis_url))
    destination = daemon.folder / "all.log"
    daemon.configure(
        configuration(amqp_url, redis_url, logging={"format": "text", "destination": str(destination)})
    )
    daemon.module("crmtasks", SOURCE)
    daemon.start()
    daemon.wait_running()
    wait_until(lambda: "asap:0" in destination.read_text())
    assert not destination.read_text().startswith("{")
    assert daemon.stderr_path.read_text() == ""
    moved = destination.rename(daemon.folder / "all.log.1")
    daemon.signal(signal.SIGUSR1)
    daemon.ctl("restart", "asap")
    wait_until(destination.exists)
    wait_until(lambda: "asap:0" in destination.read_text())
    assert "asap:0" in moved.read_text()
    # A file that cannot be opened is named where the logs still go.
    second = destination.rename(daemon.folder / "all.log.2")
    destination.mkdir()
    daemon.signal(signal.SIGUSR1)
    wait_until(lambda: f"logging.destination {destination} cannot be opened" in second.read_text())
    assert daemon.stop() == 0


def test_a_queue_that_exists_with_other_arguments_is_named_in_one_line(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    with kombu.Connection(amqp_url) as connection:
        kombu.Queue("q_asap", queue_arguments={"x-max-length": 5}, channel=connection.default_channel).declare()
    daemon = make_daemon(configuration(amqp_url, redis_url))
    daemon.module("crmtasks", SOURCE)
    daemon.start()
    wait_until(lambda: daemon.status() and "q_asap" in str(daemon.worker("asap:0")["reason"]), 60)
    wait_until(lambda: daemon.worker("background:0")["ready"], 60)
    reason = daemon.worker("asap:0")["reason"]
    assert "\n" not in reason
    assert "q_asap" in reason
    assert daemon.stop() == 0


def test_an_old_celery_in_the_application_is_refused_with_its_version(
    tmp_path: Path, amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    application = tmp_path / "venv"
    venv.create(application, with_pip=False, symlinks=True)
    (package := next(application.glob("lib/python*/site-packages")) / "celery").mkdir()
    (package / "__init__.py").write_text("__version__ = '5.4.0'\n")
    daemon = make_daemon(configuration(amqp_url, redis_url, python=str(application / "bin" / "python")))
    daemon.module("crmtasks", SOURCE)
    daemon.start()
    wait_until(lambda: daemon.status() and daemon.pool("asap")["state"] == "FATAL", 60)
    assert "celery >= 5.7" in daemon.worker("asap:0")["reason"]
    assert "5.4.0" in daemon.worker("asap:0")["reason"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"user": "no-such-user"}, "limetaskd.user: there is no user 'no-such-user'"),
        ({"control": {"group": "no-such-group"}}, "limetaskd.control.group"),
        ({"logging": {"destination": "/nonexistent/folder/x.log"}}, "limetaskd.logging.destination"),
        ({"python": "/nonexistent/python"}, "limetaskd.python"),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["--check"]])
def test_what_this_host_does_not_have_is_found_before_the_start(
    options: dict[str, object], expected: str, arguments: list[str], make_daemon: MakeDaemon
) -> None:
    daemon = make_daemon(configuration("amqp://", "redis://", **options), arguments=arguments)
    daemon.start()
    assert daemon.wait_exit() == 2
    lines = [line for line in daemon.stderr_path.read_text().splitlines() if "warning" not in line]
    assert len(lines) == 1
    assert expected in lines[0]


@pytest.mark.parametrize("key", ["runtime_dir", "state_dir"])
def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, key: str, make_daemon: MakeDaemon) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    daemon = make_daemon(configuration("amqp://", "redis://", **{key: str(blocked / "below")}))
    daemon.start()
    assert daemon.wait_exit() == 1
    output = daemon.stderr_path.read_text()
    assert f"limetaskd.{key}" in output
    assert "Traceback" not in output
    assert len(output.splitlines()) == 1


def test_the_daemon_runs_without_celery_and_stays_small(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = make_daemon(configuration(amqp_url, redis_url))
    daemon.module("crmtasks", SOURCE)
    daemon.start()
    daemon.wait_running()
    maps = Path(f"/proc/{daemon.pid}/maps").read_text()
    assert "_zmq" in maps or "zmq" in maps
    process = psutil.Process(daemon.pid)
    assert process.num_fds() < 100
    probe = (
        "import json, sys, limetaskd.daemon.main;"
        "print(json.dumps([m for m in sys.modules if m.split('.')[0] in ('celery', 'kombu')]))"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
