"""An upgrade in place: the installed code is rehearsed, the daemon becomes it, workers and tasks run on."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.support.crm import SOURCE, configuration
from tests.support.daemon import ROOT, Daemon, command
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]


@pytest.fixture
def daemon(amqp_url: str, redis_url: str, make_daemon: MakeDaemon) -> Daemon:
    """A daemon that runs from a copy of the code, which the test may replace: its own installation."""
    made = make_daemon(configuration(amqp_url, redis_url))
    made.module("crmtasks", SOURCE)
    shutil.copytree(ROOT / "limetaskd", made.folder / "code" / "limetaskd")
    made.environment["PYTHONPATH"] = os.pathsep.join([str(made.folder / "code"), made.environment["PYTHONPATH"]])
    made.start()
    made.wait_running()
    return made


def install(daemon: Daemon, version: str) -> None:
    """Replace the daemon's code by another version."""
    path = daemon.folder / "code" / "limetaskd" / "version.py"
    path.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', path.read_text()))


def test_an_upgrade_keeps_pid_workers_and_running_tasks(daemon: Daemon) -> None:
    pids = {name: daemon.worker(name)["pid"] for name in ("default:0", "asap:0", "background:0")}
    gate, started = daemon.folder / "gate", daemon.folder / "started"
    with Sender(daemon) as sender:
        running = sender.send("crm.wait_for", str(gate), str(started))
        wait_until(started.exists)
        install(daemon, "9.9.1")
        upgraded = daemon.ctl("upgrade")
        assert upgraded["version"] == "9.9.1"
        assert upgraded["pid"] == daemon.pid
        assert Path(f"/proc/{daemon.pid}/comm").read_text() == "limetaskd\n"
        assert {name: daemon.worker(name)["pid"] for name in pids} == pids
        assert daemon.worker("default:0")["active"] == 1
        gate.touch()
        assert isinstance(sender.result(running), int)
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 3
        wait_until(lambda: len(daemon.records(running)) == 1)

        # It is no death of anybody, nor is anything started by the code that goes.
        assert not [record for record in daemon.logs() if record.get("action") in {"died", "post_mortem"}]

        # By signal, and rolling the workers.
        install(daemon, "9.9.2")
        daemon.signal(signal.SIGUSR2)
        wait_until(lambda: (daemon.status() or {"daemon": {"version": ""}})["daemon"]["version"] == "9.9.2", 60)
        wait_until(lambda: daemon.status() and daemon.worker("asap:0")["ready"], 60)
        assert daemon.worker("asap:0")["pid"] == pids["asap:0"]
        install(daemon, "9.9.3")
        daemon.ctl("upgrade", "--roll")
        assert not set(pids.values()) & {daemon.worker(name)["pid"] for name in pids}
        # Children kept over exec are still ours: their deaths are noticed, with how they died.
        os.kill(daemon.worker("asap:0")["pid"], signal.SIGKILL)
        wait_until(lambda: daemon.worker("asap:0")["restarts"] == 1 and daemon.worker("asap:0")["ready"], 60)
        assert sender.result(sender.send("crm.add", 3, 4, qos="asap")) == 7
    assert daemon.stop() == 0
    assert daemon.processes() == []


def test_a_detached_daemon_upgrades_in_place_too(amqp_url: str, redis_url: str, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(configuration(amqp_url, redis_url), arguments=["--daemon"])
    daemon.module("crmtasks", SOURCE)
    shutil.copytree(ROOT / "limetaskd", daemon.folder / "code" / "limetaskd")
    daemon.environment["PYTHONPATH"] = os.pathsep.join(
        [str(daemon.folder / "code"), daemon.environment["PYTHONPATH"]]
    )
    daemon.start()
    assert daemon.wait_exit(30) == 0
    wait_until(lambda: daemon.run_ctl("status").returncode == 0, 60)

    def status() -> dict[str, Any]:
        return dict(json.loads(daemon.run_ctl("status", "--json").stdout))

    wait_until(lambda: all(w["ready"] for pool in status()["pools"] for w in pool["workers"]), 60)
    before = status()
    install(daemon, "9.9.9")
    assert daemon.ctl("upgrade")["version"] == "9.9.9"
    after = status()
    assert after["daemon"]["pid"] == before["daemon"]["pid"] == int((daemon.runtime_dir / "limetaskd.pid").read_text())
    assert [w["pid"] for p in after["pools"] for w in p["workers"]] == [
        w["pid"] for p in before["pools"] for w in p["workers"]
    ]
    # It has no standard error, so logs go where they went, and no reload takes that for a change.
    assert not daemon.ctl("reload")["changed"]
    log = daemon.state_dir / "log" / "limetaskd.jsonl"
    wait_until(lambda: "reloaded: nothing changed" in log.read_text())
    assert daemon.run_ctl("shutdown").returncode == 0
    wait_until(lambda: not daemon.processes())


def test_many_upgrade_signals_and_draining_tasks_do_no_harm(daemon: Daemon) -> None:
    gate, started = daemon.folder / "gate", daemon.folder / "started"
    with Sender(daemon) as sender:
        running = sender.send("crm.wait_for", str(gate), str(started))
        wait_until(started.exists)
        daemon.ctl("restart", "default")  # the old worker drains now
        for number in (signal.SIGUSR2, signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            daemon.signal(number)
        wait_until(lambda: [r for r in daemon.logs() if r.get("action") == "starts"][1:])
        wait_until(lambda: (daemon.status() or {"daemon": {"state": ""}})["daemon"]["state"] == "running", 60)
        assert daemon.alive
        gate.touch()
        assert isinstance(sender.result(running), int)
        assert len(wait_until(lambda: daemon.records(running))) == 1
    wait_until(lambda: daemon.worker("default:0")["draining"] == [], 60)
    assert daemon.stop() == 0
    assert daemon.processes() == []


def test_a_version_that_fails_its_rehearsal_leaves_the_old_one_in_charge(daemon: Daemon) -> None:
    pid = daemon.worker("asap:0")["pid"]
    code = daemon.folder / "code" / "limetaskd" / "plan" / "build.py"
    good = code.read_text()
    code.write_text("raise ImportError('a file of the new version is missing')\n")
    done = daemon.run_ctl("upgrade")
    assert done.returncode == 1
    assert "a file of the new version is missing" in done.stderr
    code.write_text(good)
    daemon.configure("limetaskd: {strategy: sometimes}\n")
    done = daemon.run_ctl("upgrade")
    assert done.returncode == 1
    assert "limetaskd.strategy" in done.stderr
    assert daemon.worker("asap:0")["pid"] == pid
    assert daemon.stop() == 0


def edit(daemon: Daemon, file: str, old: str, new: str) -> None:
    """Change the installed code at one place."""
    path = daemon.folder / "code" / "limetaskd" / file
    text = path.read_text()
    assert text.count(old) == 1, f"{file} has {text.count(old)} times {old!r}"
    path.write_text(text.replace(old, new))


def hold_rehearsal(daemon: Daemon) -> tuple[Path, Path]:
    """The next rehearsal touches the first file and goes on when the second one is there."""
    begun, gate = daemon.folder / "rehearsal-begun", daemon.folder / "rehearsal-gate"
    line = "        problems = [*rehearse_start(plan), *rehearse_state(paths_of(plan))]\n"
    wait = (
        "        import time\n"
        f"        Path({str(begun)!r}).touch()\n"
        f"        while not Path({str(gate)!r}).exists():\n"
        "            time.sleep(0.01)\n"
    )
    edit(daemon, "daemon/main.py", line, line + wait)
    return begun, gate


def in_background(daemon: Daemon, *arguments: str) -> subprocess.Popen[str]:
    """`limetaskctl` that runs on while the test does; ended with its daemon."""
    return subprocess.Popen(
        [command("limetaskctl"), "--socket", daemon.endpoint, *arguments],
        env=daemon.environment, cwd=daemon.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def starts(daemon: Daemon) -> int:
    return len([record for record in daemon.logs() if record.get("action") == "starts"])


def stop_in_the_rehearsal(daemon: Daemon, sender: Sender) -> tuple[str, Path, str]:
    """Ask for an upgrade, stop the daemon amid its rehearsal: a task that runs, what ends it, what the client says."""
    gate, started = daemon.folder / "gate", daemon.folder / "started"
    running = sender.send("crm.wait_for", str(gate), str(started))
    wait_until(started.exists)
    begun, go = hold_rehearsal(daemon)
    upgrade = in_background(daemon, "upgrade")
    wait_until(begun.exists)
    daemon.signal(signal.SIGTERM)
    wait_until(lambda: [record for record in daemon.logs() if record.get("action") == "stopping"])
    go.touch()
    said, _ = upgrade.communicate(timeout=60)
    assert upgrade.returncode == 1
    return running, gate, said


def test_a_stop_during_the_rehearsal_is_not_undone(daemon: Daemon) -> None:
    with Sender(daemon) as sender:
        running, gate, said = stop_in_the_rehearsal(daemon, sender)
        assert "limetaskd is stopping" in said
        gate.touch()
        assert isinstance(sender.result(running), int)
    assert daemon.wait_exit(60) == 0
    assert starts(daemon) == 1
    assert daemon.processes() == []


def test_a_stop_that_is_cut_short_during_an_upgrade_has_stopped_nothing_for_good(daemon: Daemon) -> None:
    with Sender(daemon) as sender:
        _running, gate, _said = stop_in_the_rehearsal(daemon, sender)
        daemon.kill()
        gate.touch()
        daemon.start()
        daemon.wait_running()
        assert {daemon.worker(name)["state"] for name in ("default:0", "asap:0", "background:0")} == {"RUNNING"}
    assert daemon.stop() == 0


def test_a_stop_does_not_wait_for_a_rehearsal(daemon: Daemon) -> None:
    begun, _never = hold_rehearsal(daemon)
    upgrade = in_background(daemon, "upgrade")
    wait_until(begun.exists)
    assert daemon.stop(40) == 0
    upgrade.communicate(timeout=60)
    assert daemon.processes() == []
    assert starts(daemon) == 1


SLOW = """
    import os, time
    from pathlib import Path
    FOLDER = Path({folder!r})
    if (FOLDER / "hold").exists():
        (FOLDER / "held").touch()
        while not (FOLDER / "go").exists():
            time.sleep(0.01)
        if (FOLDER / "break").exists():
            raise ImportError("half of a module")
"""


def hold_successor(daemon: Daemon) -> tuple[Path, subprocess.Popen[str], int]:
    """Begin a restart of asap:0 whose new process hangs in its imports: what lets it go on, the restart, its pid."""
    for name in ("held", "go"):
        (daemon.folder / name).unlink(missing_ok=True)
    (daemon.folder / "hold").touch()
    before = {process.pid for process in daemon.named("asap:0")}
    restart = in_background(daemon, "restart", "asap")
    wait_until((daemon.folder / "held").exists)
    new = [process.pid for process in daemon.named("asap:0") if process.pid not in before]
    return daemon.folder / "go", restart, new[0]


def test_the_process_that_consumes_outlives_a_restart_that_fails_after_a_kill_or_beside_an_upgrade(
    amqp_url: str, redis_url: str, make_daemon: MakeDaemon
) -> None:
    daemon = make_daemon(configuration(amqp_url, redis_url, preload=False, strategy="dedicated"))
    daemon.module("crmtasks", SLOW.format(folder=str(daemon.folder)))
    shutil.copytree(ROOT / "limetaskd", daemon.folder / "code" / "limetaskd")
    daemon.environment["PYTHONPATH"] = os.pathsep.join([str(daemon.folder / "code"), daemon.environment["PYTHONPATH"]])
    daemon.start()
    daemon.wait_running()
    old = daemon.worker("asap:0")["pid"]

    # Beside an upgrade: refused, the old version and the old process go on.
    begun, gate = hold_rehearsal(daemon)
    upgrade = in_background(daemon, "upgrade")
    wait_until(begun.exists)
    go, restart, _new = hold_successor(daemon)
    (daemon.folder / "break").touch()
    (daemon.folder / "hold").rename(daemon.folder / "held-back")  # the rehearsal itself imports well
    gate.touch()
    said, _ = upgrade.communicate(timeout=60)
    assert upgrade.returncode == 1
    assert "asap:0 is being restarted" in said
    go.touch()
    restart.communicate(timeout=60)
    assert daemon.worker("asap:0")["pid"] == old
    assert daemon.worker("asap:0")["ready"]

    # The daemon is killed meanwhile: the next one finds both, and the newer one dies.
    go, restart, new = hold_successor(daemon)
    daemon.kill()
    restart.communicate(timeout=60)
    daemon.start()
    wait_until(lambda: daemon.status() and daemon.worker("asap:0")["ready"])
    go.touch()
    wait_until(lambda: not psutil.pid_exists(new) and daemon.worker("asap:0"))
    assert daemon.worker("asap:0")["pid"] == old
    assert daemon.worker("asap:0")["draining"] == []
    assert daemon.worker("asap:0")["ready"]

    # The same, and the newer one consumes: the restart is completed.
    (daemon.folder / "break").unlink()
    go, restart, new = hold_successor(daemon)
    daemon.kill()
    restart.communicate(timeout=60)
    daemon.start()
    wait_until(lambda: daemon.status() and daemon.worker("asap:0")["ready"])
    assert daemon.worker("asap:0")["pid"] == old
    go.touch()
    wait_until(lambda: daemon.worker("asap:0")["pid"] == new and daemon.worker("asap:0")["ready"])
    wait_until(lambda: not psutil.pid_exists(old))
    assert daemon.stop() == 0
    assert daemon.processes() == []


def helper_pids(daemon: Daemon) -> dict[str, int]:
    status = daemon.status()
    assert status is not None
    found = {helper["name"]: helper["pid"] for helper in status["daemon"]["helpers"]}
    return {**found, "beat": status["daemon"]["beat"]["pid"]}


def test_the_same_version_with_one_setting_more_replaces_the_helpers_alone(daemon: Daemon) -> None:
    names = ("default:0", "asap:0", "background:0")
    workers = {name: daemon.worker(name)["pid"] for name in names}
    helpers = helper_pids(daemon)
    line = "    scheduled_tasks: bool = True\n"
    edit(daemon, "core/settings.py", line, line + "    one_more: dict[str, Any] = field(default_factory=dict)\n")
    daemon.ctl("upgrade")
    assert {name: daemon.worker(name)["pid"] for name in names} == workers
    assert all(daemon.worker(name)["draining"] == [] for name in names)
    wait_until(lambda: all(helper_pids(daemon).values()))
    assert not set(helper_pids(daemon).values()) & set(helpers.values())


def test_processes_that_cannot_be_imported_refuse_an_upgrade(daemon: Daemon) -> None:
    for module in ("agent.main", "beat.main", "worker.main", "worker.image"):
        path = daemon.folder / "code" / "limetaskd" / f"{module.replace('.', '/')}.py"
        good = path.read_text()
        path.write_text("raise ImportError('half an installation')\n")
        refused(daemon, f"cannot import limetaskd.{module}: ImportError: half an installation")
        path.write_text(good)


def refused(daemon: Daemon, reason: str) -> None:
    """An upgrade is refused for `reason`, in one line, and leaves nothing behind."""
    before = starts(daemon)
    done = daemon.run_ctl("upgrade")
    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    assert starts(daemon) == before
    left = {"--rehearse", "rehearse", "sleep"}
    assert not [process for process in daemon.processes() if left & set(arguments(process))]
    assert daemon.worker("asap:0")["ready"]
    status = daemon.status()
    assert status is not None
    assert reason in status["daemon"]["last_upgrade_error"]
    assert "the last upgrade was refused" in status["daemon"]["status"]


def arguments(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def test_task_modules_and_a_full_disk_refuse_an_upgrade(daemon: Daemon) -> None:
    daemon.module("crmtasks", SOURCE + "\n    import subprocess\n    subprocess.Popen(['sleep', '600'])\n    1 / 0\n")
    refused(daemon, "cannot import crmtasks: ZeroDivisionError: division by zero")
    daemon.module("crmtasks", SOURCE)
    begun, gate = hold_rehearsal(daemon)
    upgrade = in_background(daemon, "upgrade")
    wait_until(begun.exists)
    memory = daemon.runtime_dir / "memory.json"
    memory.unlink()
    memory.mkdir()
    gate.touch()
    said, _ = upgrade.communicate(timeout=60)
    assert upgrade.returncode == 1
    assert f"{memory} cannot be written" in said
    assert starts(daemon) == 1
    memory.rmdir()
    daemon.ctl("upgrade")
    assert starts(daemon) == 2


def test_what_only_a_new_daemon_can_take_stays_over_an_upgrade(daemon: Daemon, tmp_path: Path) -> None:
    pids = {name: daemon.worker(name)["pid"] for name in ("default:0", "asap:0", "background:0")}
    file = daemon.config_path
    good = yaml.safe_load(file.read_text())
    changed = copy.deepcopy(good)
    changed["limetaskd"] |= {
        "runtime_dir": str(tmp_path / "elsewhere"),
        "state_dir": str(tmp_path / "other-state"),
        "user": "nobody" if os.geteuid() != 0 else "daemon",
        "supervisor_socket": True,
        "control": {"endpoint": f"ipc://{tmp_path}/other.sock", "mode": "0600"},
    }
    file.write_text(yaml.safe_dump(changed))
    daemon.ctl("upgrade")
    assert starts(daemon) == 2
    assert {name: daemon.worker(name)["pid"] for name in pids} == pids
    assert not (tmp_path / "elsewhere").exists()
    assert not (daemon.runtime_dir / "supervisor.sock").exists()
    assert (daemon.runtime_dir / "control.sock").stat().st_mode & 0o777 == 0o660
    messages = [record["message"] for record in daemon.logs()]
    said = [message for message in messages if "takes effect when limetaskd is restarted" in message]
    assert {line.partition(":")[0] for line in said} == set(changed["limetaskd"]) - set(good["limetaskd"]) | {
        "runtime_dir", "state_dir"
    }  # fmt: skip
    # A reload says the same, and there is still one schedule and one set of workers.
    waits = daemon.ctl("reload", "--plan")["diff"]["restart"]
    assert sorted(change["key"] for change in waits) == [
        "control", "runtime_dir", "state_dir", "supervisor_socket", "user"
    ]  # fmt: skip
    assert len(daemon.named("default:beat")) <= 1
    assert daemon.stop() == 0
    assert daemon.processes() == []


@pytest.mark.parametrize("key", ["runtime_dir", "state_dir"])
def test_folders_that_changed_before_the_daemon_died_are_for_the_start_after_a_stop(
    daemon: Daemon, tmp_path: Path, key: str
) -> None:
    pids = {name: daemon.worker(name)["pid"] for name in ("default:0", "asap:0", "background:0")}
    before = daemon.config_path.read_text()
    changed = yaml.safe_load(before)
    changed["limetaskd"][key] = str(tmp_path / "new")
    daemon.config_path.write_text(yaml.safe_dump(changed))
    daemon.kill()
    daemon.start()
    wait_until(lambda: daemon.status() and daemon.status()["daemon"]["state"] == "running", 60)  # type: ignore[index]
    assert {name: daemon.worker(name)["pid"] for name in pids} == pids
    (said,) = [record["message"] for record in daemon.logs() if "takes effect when" in record["message"]][:1]
    assert said.startswith(f"{key}: ")
    assert daemon.stop() == 0
    assert daemon.processes() == []
    # Now it takes effect.
    if key == "runtime_dir":
        daemon.runtime_dir = tmp_path / "new"
    daemon.start()
    daemon.wait_running()
    assert (tmp_path / "new" / "folders.json").exists()
    assert daemon.stop() == 0
    assert not list(tmp_path.rglob("folders.json"))


def test_a_state_dir_that_takes_no_more_keeps_no_daemon_from_its_workers(daemon: Daemon) -> None:
    pid = daemon.worker("asap:0")["pid"]
    (daemon.state_dir / "folders.json").unlink()
    (daemon.state_dir / "folders.json").mkdir()  # a write fails there
    daemon.ctl("upgrade")
    daemon.kill()
    daemon.start()
    wait_until(lambda: daemon.status() and daemon.worker("asap:0")["ready"], 60)
    assert daemon.worker("asap:0")["pid"] == pid
    assert daemon.stop() == 0


def test_logs_that_cannot_be_opened_refuse_an_upgrade(daemon: Daemon, tmp_path: Path) -> None:
    changed = yaml.safe_load(daemon.config_path.read_text())
    changed["limetaskd"]["logging"] = {"destination": str(tmp_path)}
    daemon.config_path.write_text(yaml.safe_dump(changed))
    refused(daemon, f"limetaskd.logging.destination: {tmp_path}: Is a directory")


def test_a_start_that_fails_leaves_what_it_took_over_to_the_next_one(make_daemon: MakeDaemon) -> None:
    made = {"limetaskd": {"imports": ["crmtasks"], "strategy": "all-in-one", "supervisor_socket": True}}
    daemon = make_daemon(made, embedded=True)
    daemon.module("crmtasks", SOURCE)
    shutil.copytree(ROOT / "limetaskd", daemon.folder / "code" / "limetaskd")
    daemon.environment["PYTHONPATH"] = os.pathsep.join([str(daemon.folder / "code"), daemon.environment["PYTHONPATH"]])
    daemon.start()
    status = daemon.wait_running()
    (worker,) = [worker for pool in status["pools"] for worker in pool["workers"]]
    server = helper_pids(daemon)["limetaskd:broker"]
    gate, started = daemon.folder / "gate", daemon.folder / "started"
    with Sender(daemon) as sender:
        running = sender.send("crm.wait_for", str(gate), str(started))
        wait_until(started.exists)

        # A socket cannot be bound.
        daemon.kill()
        blocked = daemon.runtime_dir / "supervisor.sock"
        blocked.unlink()
        (blocked / "x").mkdir(parents=True)
        daemon.start()
        assert daemon.wait_exit(60) == 1
        shutil.rmtree(blocked)
        daemon.start()
        daemon.wait_running()
        assert daemon.worker(worker["name"])["pid"] == worker["pid"]
        assert helper_pids(daemon)["limetaskd:broker"] == server

        # The newer code passes its rehearsal and fails later, with everything taken over.
        good, broken = "        guard.start()\n", "        raise LimetaskError('no such thing')\n"
        edit(daemon, "daemon/main.py", good, broken)
        upgrade = in_background(daemon, "upgrade")
        assert daemon.wait_exit(60) == 1
        said, _ = upgrade.communicate(timeout=60)
        assert upgrade.returncode == 1
        assert "did not come up, and limetaskd" in said
        edit(daemon, "daemon/main.py", broken, good)
        daemon.start()
        daemon.wait_running()
        assert daemon.worker(worker["name"])["pid"] == worker["pid"]
        assert daemon.worker(worker["name"])["active"] == 1
        assert helper_pids(daemon)["limetaskd:broker"] == server
        gate.touch()
        assert isinstance(sender.result(running), int)
        assert len(wait_until(lambda: daemon.records(running))) == 1
    assert daemon.stop() == 0
    assert daemon.processes() == []


def test_a_schedule_whose_daemon_is_killed_while_it_restarts_comes_back(daemon: Daemon) -> None:
    status = daemon.status()
    assert status is not None
    beat = status["daemon"]["beat"]
    os.kill(beat["pid"], signal.SIGSTOP)  # it does not end
    restart = in_background(daemon, "restart", beat["name"])
    memory = daemon.runtime_dir / "memory.json"
    wait_until(lambda: daemon.status()["daemon"]["beat"]["state"] == "STOPPING")  # type: ignore[index]
    daemon.ctl("stop", "background")  # any event saves the memory again
    wait_until(lambda: json.loads(memory.read_text())["units"]["background:0"]["stopped"])
    daemon.kill()
    restart.communicate(timeout=60)
    os.kill(beat["pid"], signal.SIGKILL)
    daemon.start()
    wait_until(lambda: daemon.status() and daemon.status()["daemon"]["beat"]["state"] == "RUNNING", 60)  # type: ignore[index]
    assert daemon.worker("background:0")["state"] == "STOPPED"
