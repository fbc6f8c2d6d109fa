"""The installed deb under a real systemd: enabled, started, reloaded, killed, watched, stopped, rebooted."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.packages.conftest import NEWER, Packages, tool
from tests.packages.system import Machine, Root
from tests.support.waiting import pause, wait_until

JOBS = '''
import os
import time
from pathlib import Path

from limetaskd import task


@task(qos="asap", name="jobs.add")
def add(a, b):
    return a + b


@task(name="jobs.mark")
def mark(number):
    """Leaves one file for each run."""
    for run in range(1, 100):
        try:
            Path("/srv/crm/marks", f"{number}.run-{run}").touch(exist_ok=False)
            return number
        except FileExistsError:
            pass


@task(qos="asap", name="jobs.wait")
def wait(gate, started):
    """Runs until the file `gate` exists."""
    Path(started).touch()
    while not Path(gate).exists():
        time.sleep(0.05)


@task(qos="asap", name="jobs.origins")
def origins():
    import sys

    import celery
    import limetaskd
    import pydantic
    import redis

    return {"prefix": sys.prefix, "celery": celery.__file__, "pydantic": pydantic.VERSION, "redis": redis.__file__,
            "limetaskd": limetaskd.__file__}


@task(qos="asap", name="jobs.oom")
def oom():
    return int(Path("/proc/self/oom_score_adj").read_text())
'''

SEND = """
import json, sys
from limetaskd import create_app, send_task
create_app(sys.argv[1])
name, arguments, wanted = sys.argv[2], json.loads(sys.argv[3]), sys.argv[4] == "wait"
results = [send_task(name, tuple(one)) for one in arguments]
print(json.dumps([result.get(timeout=60) if wanted else result.id for result in results]))
"""

CONFIGURATION = """
tasks: {routing: {qos: {asap: q_asap}}}
limetaskd:
  imports: [jobs]
  strategy: dedicated
  concurrency: 2
  shutdown_timeout: 5m
"""
SUITES = ["bookworm", "trixie"]


class Host(Machine):
    """A machine with limetaskd, its own broker and a small application."""

    def __init__(self, root: Root, package: Packages) -> None:
        root.install(package.deb)
        root.write("/srv/crm/jobs.py", JOBS)
        root.write("/srv/crm/send.py", SEND)
        root.file("/srv/crm/marks").mkdir()
        root.file("/srv/crm/marks").chmod(0o777)
        root.file("/etc/limetaskd/limetaskd.yaml").write_text(CONFIGURATION)
        root.file("/etc/limetaskd/environment").write_text("LIMETASKD_OPTIONS=--embedded\nPYTHONPATH=/srv/crm\n")
        super().__init__(root)

    def configure(self, text: str) -> None:
        self.root.file("/etc/limetaskd/limetaskd.yaml").write_text(text)

    def start(self) -> None:
        self.run("systemctl", "start", "limetaskd")

    def send(self, name: str, *arguments: list[object], wait: bool = True, config: str = "limetaskd") -> list[object]:
        """Send one task for each of `arguments`; their results (or ids)."""
        output = self.run(
            "setpriv", "--reuid=limetaskd", "--regid=limetaskd", "--clear-groups",
            "/usr/lib/limetaskd/bin/python", "/srv/crm/send.py", f"/etc/limetaskd/{config}.yaml", name,
            json.dumps(arguments), "wait" if wait else "go",
        ).output  # fmt: skip
        results: list[object] = json.loads(output.splitlines()[-1])
        return results

    def workers(self, socket: str = "/run/limetaskd/control.sock") -> dict[str, int]:
        """{worker: pid} of those that consume."""
        status = json.loads(self.run("limetaskctl", "--socket", socket, "status", "--json").output)
        return {
            worker["name"]: worker["pid"]
            for pool in status["pools"] for worker in pool["workers"] if worker["ready"]
        }  # fmt: skip

    def drop_in(self, *lines: str) -> None:
        text = "\\n".join(["[Service]", *lines])
        self.sh(f"mkdir -p /run/systemd/system/limetaskd.service.d; printf '{text}\\n' "
                "> /run/systemd/system/limetaskd.service.d/test.conf; systemctl daemon-reload")  # fmt: skip

    def fresh(self) -> None:
        """As after the boot, the service not running."""
        self.sh("systemctl stop limetaskd; systemctl reset-failed limetaskd; "
                "rm -rf /run/systemd/system/limetaskd.service.d /srv/crm/marks/*; systemctl daemon-reload",
                check=False)  # fmt: skip
        self.configure(CONFIGURATION)

    def journal(self) -> str:
        return self.run("journalctl", "-u", "limetaskd*", "--no-pager", "-o", "cat", "-n", "150", check=False).output


@pytest.fixture(scope="module", params=SUITES)
def booted(request: pytest.FixtureRequest, packages: Packages) -> Iterator[Host]:
    root = Root(request.param)
    try:
        machine = Host(root, packages)
        try:
            yield machine
        finally:
            machine.close()
    finally:
        root.close()


@pytest.fixture
def host(booted: Host) -> Iterator[Host]:
    booted.fresh()
    yield booted
    print(booted.journal())  # shown when the test failed


def test_systemd_of_the_host_knows_every_line(host: Host) -> None:
    for unit in ("limetaskd.service", "limetaskd@crm.service"):
        found = host.run("systemd-analyze", "verify", "--man=no", unit, check=False).output
        assert [line for line in found.splitlines() if "limetaskd" in line] == []


def test_enabled_started_and_serving(host: Host) -> None:
    host.run("systemctl", "enable", "limetaskd")
    host.start()
    assert host.property("ActiveState") == "active"
    assert "workers consume" in host.property("StatusText")
    assert host.send("jobs.add", [2, 3], [20, 22]) == [5, 42]
    # The daemon's protection from the kernel's OOM killer (where the container may have one) is not for task code.
    assert "OOMScoreAdjust=-500" in host.run("systemctl", "cat", "limetaskd").output
    assert host.send("jobs.oom", []) == [0]
    # Every log line of every process is one JSON object in the journal.
    lines = host.run("journalctl", f"_PID={host.main_pid()}", "-o", "cat", "--no-pager").output.splitlines()
    records = [json.loads(line) for line in lines]
    assert any(record.get("task_outcome") == "SUCCESS" for record in records)


def test_files_and_their_modes(host: Host) -> None:
    host.start()
    modes = host.sh("stat -c '%a %U:%G %n' /run/limetaskd /run/limetaskd/control.sock /run/limetaskd/settings.json "
                    "/run/limetaskd/accepted.json /var/lib/limetaskd /var/lib/limetaskd/embedded /var/log/limetaskd")
    assert modes.splitlines() == [
        "755 limetaskd:limetaskd /run/limetaskd",
        "660 limetaskd:limetaskd /run/limetaskd/control.sock",
        "600 limetaskd:limetaskd /run/limetaskd/settings.json",
        "644 limetaskd:limetaskd /run/limetaskd/accepted.json",
        "750 limetaskd:limetaskd /var/lib/limetaskd",
        "700 limetaskd:limetaskd /var/lib/limetaskd/embedded",
        "750 limetaskd:limetaskd /var/log/limetaskd",
    ]


def test_reload(host: Host) -> None:
    host.start()
    before = host.main_pid(), host.workers()
    host.configure(CONFIGURATION.replace("{asap: q_asap}", "{asap: q_asap, b: q_b}"))
    host.run("systemctl", "reload", "limetaskd")
    assert host.main_pid() == before[0]
    after = wait_until(lambda: len(host.workers()) == 3 and host.workers())
    assert before[1].items() <= after.items()
    # One that cannot work is refused with its reason, and changes nothing.
    host.configure("limetaskd: {strategie: all-in-one}\n")
    assert host.run("systemctl", "reload", "limetaskd", check=False).code != 0
    assert "strategie" in host.journal()
    assert host.property("ActiveState") == "active"
    assert host.workers() == after


def test_workers_outlive_a_killed_daemon_and_are_taken_over(host: Host) -> None:
    host.start()
    before, workers = host.main_pid(), host.workers()
    host.send("jobs.wait", ["/srv/crm/marks/gate", "/srv/crm/marks/started"], wait=False)
    wait_until(host.root.file("/srv/crm/marks/started").exists)
    host.sh(f"kill -9 {before}")
    wait_until(lambda: host.main_pid() not in {0, before} and host.property("ActiveState") == "active", 60)
    assert host.workers() == workers
    host.sh("touch /srv/crm/marks/gate")
    assert host.send("jobs.add", [1, 1]) == [2]
    # ... yet none is left when it is stopped.
    host.run("systemctl", "stop", "limetaskd")
    assert host.processes() == []
    assert host.property("ActiveState") == "inactive"
    assert not host.root.file("/run/limetaskd").exists()


def test_a_stop_between_death_and_restart_leaves_nobody(host: Host) -> None:
    host.start()
    assert len(host.processes()) > 5
    # Died young: a pause comes before the restart.
    host.sh(f"kill -9 {host.main_pid()}")
    wait_until(lambda: host.property("SubState") == "stop-post")
    assert len(host.processes()) > 5
    host.run("systemctl", "stop", "limetaskd")
    assert host.processes() == []
    assert host.property("ActiveState") in {"inactive", "failed"}


def test_a_configuration_that_cannot_work_after_a_death_leaves_nobody(host: Host) -> None:
    host.start()
    host.configure("limetaskd: {strategie: all-in-one}\n")
    host.sh(f"kill -9 {host.main_pid()}")
    wait_until(lambda: host.property("ActiveState") == "failed", 60)
    assert host.processes() == []
    assert "did you mean" in host.journal() or "strategy" in host.journal()


def test_the_watchdog_replaces_a_daemon_that_hangs(host: Host) -> None:
    host.drop_in("WatchdogSec=4s")
    host.start()
    before, workers = host.main_pid(), host.workers()
    host.sh(f"kill -STOP {before}")
    wait_until(lambda: host.main_pid() not in {0, before} and host.property("ActiveState") == "active", 90)
    assert "Watchdog timeout" in host.run("journalctl", "-u", "limetaskd", "-o", "cat", "--no-pager").output
    assert host.workers() == workers
    assert host.send("jobs.add", [3, 4]) == [7]


def test_a_drain_may_take_longer_than_the_stop_timeout(host: Host) -> None:
    host.drop_in("TimeoutStopSec=3s")
    host.start()
    host.send("jobs.wait", ["/srv/crm/marks/gate", "/srv/crm/marks/started"], wait=False)
    wait_until(host.root.file("/srv/crm/marks/started").exists)
    host.run("systemctl", "stop", "--no-block", "limetaskd")
    wait_until(lambda: host.property("ActiveState") == "deactivating")
    pause(8)
    assert host.property("ActiveState") == "deactivating"
    assert len(host.processes()) >= 2
    host.sh("touch /srv/crm/marks/gate")
    wait_until(lambda: host.property("ActiveState") in {"inactive", "failed"})
    assert host.property("Result") == "success"
    assert host.processes() == []


def test_a_reboot_keeps_queued_tasks(host: Host) -> None:
    host.run("systemctl", "enable", "limetaskd")
    host.start()
    host.run("limetaskctl", "stop", "default")
    host.send("jobs.mark", *[[number] for number in range(50)], wait=False)
    host.reboot()
    wait_until(lambda: host.property("ActiveState") == "active", 60)
    marks = host.root.file("/srv/crm/marks")
    wait_until(lambda: len(list(marks.iterdir())) >= 50, 60)
    assert sorted(path.name for path in marks.iterdir()) == sorted(f"{number}.run-1" for number in range(50))
    host.run("systemctl", "disable", "limetaskd")


def test_the_strict_sandbox(host: Host) -> None:
    host.sh("mkdir -p /run/systemd/system/limetaskd.service.d; cp /usr/share/doc/limetaskd/examples/strict.conf "
            "/run/systemd/system/limetaskd.service.d/; systemctl daemon-reload")
    host.start()
    before = host.main_pid()
    assert host.send("jobs.add", [2, 3]) == [5]
    host.run("systemctl", "reload", "limetaskd")
    workers = host.workers()
    host.sh(f"kill -9 {before}")
    wait_until(lambda: host.main_pid() not in {0, before} and host.property("ActiveState") == "active", 60)
    assert host.workers() == workers
    host.run("systemctl", "stop", "limetaskd")
    assert host.processes() == []


def test_credentials(host: Host) -> None:
    host.sh("install -d -m 0700 /etc/limetaskd/secrets; echo redis://localhost:1/0 > /etc/limetaskd/secrets/broker;"
            "chmod 600 /etc/limetaskd/secrets/broker; mkdir -p /run/systemd/system/limetaskd.service.d;"
            "cp /usr/share/doc/limetaskd/examples/credentials.conf /run/systemd/system/limetaskd.service.d/;"
            "systemctl daemon-reload")  # fmt: skip
    host.configure(
        "tasks: {broker_connection_string_file: /run/credentials/limetaskd.service/broker}\n"
        "limetaskd: {imports: [jobs]}\n"
    )
    host.start()
    assert host.send("jobs.add", [2, 3]) == [5]


def test_workers_in_the_venv_of_the_application(host: Host) -> None:
    """Its own Celery and another pydantic win; limetaskd, and a redis that it has not, are the bundled ones."""
    host.root.make_application(tool("uv"), "celery==5.7.0", "pydantic==2.12.5")
    host.configure(CONFIGURATION + "  python: /srv/crm/venv/bin/python\n")
    host.start()
    assert "workers consume" in host.property("StatusText")
    [found] = host.send("jobs.origins", [])
    own = f"/srv/crm/venv/lib/python{host.root.python}/site-packages"
    bundled = "/usr/lib/limetaskd/lib/site-packages"
    assert found == {
        "prefix": "/srv/crm/venv", "celery": f"{own}/celery/__init__.py", "pydantic": "2.12.5",
        "redis": f"{bundled}/redis/__init__.py", "limetaskd": f"{bundled}/limetaskd/__init__.py",
    }  # fmt: skip
    command = host.sh(f"tr '\\0' ' ' < /proc/{host.main_pid()}/cmdline")
    assert command.startswith("/usr/lib/limetaskd/bin/python -I ")


def test_several_applications(host: Host) -> None:
    for name in ("crm", "shop"):
        host.sh(f"printf 'LIMETASKD_OPTIONS=--embedded\\nPYTHONPATH=/srv/crm\\n' > /etc/limetaskd/{name}.environment")
        host.root.write(f"/etc/limetaskd/{name}.yaml", CONFIGURATION + f"  runtime_dir: /run/limetaskd-{name}\n")
    refused = host.run("systemctl", "start", "limetaskd@nobody", check=False)
    assert refused.code != 0
    host.run("systemctl", "start", "limetaskd@crm", "limetaskd@shop")
    try:
        assert host.send("jobs.add", [1, 2], config="crm") == [3]
        assert host.send("jobs.add", [3, 4], config="shop") == [7]
        crm = host.workers("/run/limetaskd-crm/control.sock")
        assert not set(crm.values()) & set(host.workers("/run/limetaskd-shop/control.sock").values())
        host.run("systemctl", "reload", "limetaskd@crm")
        host.run("systemctl", "stop", "limetaskd@shop")
        assert host.processes("limetaskd@shop.service") == []
        assert host.workers("/run/limetaskd-crm/control.sock") == crm
        host.sh(f"kill -9 {host.main_pid('limetaskd@crm')}")
        wait_until(lambda: host.property("NRestarts", "limetaskd@crm") == "1"
                   and host.property("ActiveState", "limetaskd@crm") == "active", 60)  # fmt: skip
        assert host.workers("/run/limetaskd-crm/control.sock") == crm
    finally:
        host.sh("systemctl stop limetaskd@crm limetaskd@shop", check=False)
    assert host.processes("limetaskd@crm.service") == []


def test_upgrade_has_no_gap_and_removal_stops(host: Host, newer: Packages) -> None:
    """Last of its module: it ends without the package."""
    host.start()
    before, workers = host.main_pid(), host.workers()
    host.send("jobs.wait", ["/srv/crm/marks/gate", "/srv/crm/marks/started"], wait=False)
    wait_until(host.root.file("/srv/crm/marks/started").exists)
    host.root.file("/srv/newer.deb").write_bytes(newer.deb.read_bytes())
    host.run("dpkg", "-i", "--force-confdef", "--force-confold", "/srv/newer.deb")
    # In place, with no gap: the same pid, new workers beside the old one that still runs a task.
    # (Its socket is away for the moment of the replacement.)
    wait_until(lambda: not set(host.workers().values()) & set(workers.values()) and len(host.workers()) == 2,
               90, ignore=AssertionError)  # fmt: skip
    status = json.loads(host.run("limetaskctl", "status", "--json").output)
    assert status["daemon"]["version"] == NEWER
    assert host.main_pid() == before
    assert host.send("jobs.add", [5, 5]) == [10]
    assert any(pid in host.processes() for pid in workers.values())
    host.sh("touch /srv/crm/marks/gate")
    wait_until(lambda: not any(pid in host.processes() for pid in workers.values()), 60)
    assert host.property("ActiveState") == "active"
    host.run("dpkg", "-P", "limetaskd")
    assert host.processes() == []
    assert host.main_pid() == 0
    assert not host.root.file("/var/lib/limetaskd").exists()
