"""Workers forked from a preloaded image: shared memory, nothing else shared, and what an image cannot do."""

from __future__ import annotations

import contextlib
import os
import signal
import textwrap
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from limetaskd.core.spec import SPARE
from limetaskd.daemon.launch import Paths
from limetaskd.daemon.upgrade import rehearse_state
from tests.support.crm import SOURCE, configuration
from tests.support.daemon import Daemon
from tests.support.sender import Sender
from tests.support.waiting import wait_until

MakeDaemon = Callable[..., Daemon]
IMAGE = "limetaskd:image"

PROBE = """
    import atexit, os, random, sys
    from limetaskd import task

    OWN = random.Random()
    sys.modules["celery.fixups.django"] = None  # another Celery may not have it
    print("half a line", end="")

    @atexit.register
    def note_exit():
        with open(os.path.join(os.path.dirname(__file__), "exits"), "a") as exits:
            exits.write(f"{os.getpid()} ")

    @task(name="probe.look")
    def look():
        return {
            "pid": os.getpid(), "worker": os.getppid(), "random": random.random(), "session": os.getsid(0),
            "token": os.environ.get("TOKEN"), "nice": os.nice(0), "own": OWN.random(),
        }
"""


@pytest.fixture
def start(amqp_url: str, redis_url: str, make_daemon: MakeDaemon) -> Callable[..., Daemon]:
    """Start a daemon with the given module sources and options of `limetaskd`, and wait for its pools."""

    def run(modules: dict[str, str], wait: bool = True, **options: Any) -> Daemon:
        daemon = make_daemon(configuration(amqp_url, redis_url, imports=list(modules), **options))
        for name, source in modules.items():
            daemon.module(name, source)
        daemon.start()
        if wait:
            daemon.wait_running()
        return daemon

    return run


def helpers(daemon: Daemon) -> dict[str, dict[str, Any]]:
    status = daemon.status()
    assert status is not None
    return {helper["name"]: helper for helper in status["daemon"]["helpers"]}


def origins(daemon: Daemon) -> set[str]:
    status = daemon.status()
    assert status is not None
    return {worker["origin"] for pool in status["pools"] for worker in pool["workers"]}


def name_of(pid: int) -> str | None:
    """What the process is called now; None when it is dead."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None


def spares(daemon: Daemon) -> list[int]:
    """The pids of processes that are forked ahead and wait; the go-between that forked them may not be gone yet."""
    found = []
    for process in daemon.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if name_of(process.pid) == SPARE and process.ppid() == daemon.pid:
                found.append(process.pid)
    return found


def the_spare(daemon: Daemon) -> int:
    """The one spare, once it is there."""
    found = wait_until(lambda: spares(daemon), 60)
    assert len(found) == 1
    return found[0]


def wait_dead(pid: int) -> None:
    """Dead and collected."""
    wait_until(lambda: name_of(pid) is None)


def replaced(daemon: Daemon, name: str, *others: int) -> dict[str, Any]:
    """kill -9 of a worker and of `others`: its replacement, once that consumes."""
    old = daemon.worker(name)["pid"]
    for pid in (old, *others):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: daemon.worker(name)["ready"] and daemon.worker(name)["pid"] != old, 60)
    return daemon.worker(name)


def pss(pids: Iterable[int]) -> int:
    return sum(psutil.Process(pid).memory_full_info().pss for pid in pids)


def test_workers_are_forked_are_the_daemons_children_and_share_nothing_but_memory(
    start: Callable[..., Daemon],
) -> None:
    daemon = start({"crmtasks": SOURCE, "probe": PROBE}, pools={"background": {"nice": 5}})
    assert origins(daemon) == {"fork"}
    workers = {name: daemon.worker(f"{name}:0")["pid"] for name in ("default", "asap", "background")}
    assert {psutil.Process(pid).ppid() for pid in workers.values()} == {daemon.pid}
    assert helpers(daemon)[IMAGE]["state"] == "RUNNING"
    with Sender(daemon) as sender:
        seen = [sender.result(sender.send("probe.look", queue=queue)) for queue in ("q_asap", "q_background")]
    assert [look["worker"] for look in seen] == [workers["asap"], workers["background"]]
    assert len({look["random"] for look in seen} | {look["own"] for look in seen}) == 4
    assert [look["session"] for look in seen] == [look["worker"] for look in seen]
    assert [look["nice"] for look in seen] == [0, 5]
    image, agent = (psutil.Process(helpers(daemon)[name]["pid"]) for name in (IMAGE, "limetaskd:agent"))
    assert [c for c in image.net_connections(kind="inet") if c.raddr] == []
    inodes = []
    for pid in workers.values():
        links = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        inodes.append({link for link in links if link.startswith("socket:")})
        assert str(daemon.state_dir / "log" / f"{IMAGE}.log") not in links
    assert not inodes[0] & inodes[1]
    assert not inodes[1] & inodes[2]
    assert daemon.stop() == 0
    assert daemon.processes() == []
    exits = {int(pid) for pid in (daemon.modules / "exits").read_text().split()}
    assert exits >= set(workers.values())
    assert not exits & {image.pid, agent.pid}
    texts = {path.stem: path.read_text() for path in (daemon.state_dir / "log").glob("*.log")}
    assert texts[IMAGE].count("half a line") == 1
    assert not any("half a line" in texts[f"{name}:0"] for name in workers)


def test_preloading_saves_memory(start: Callable[..., Daemon]) -> None:
    heavy = "TABLE = [str(number) for number in range(300_000)]\n"
    source = {"crmtasks": SOURCE, "heavy": heavy}
    usage = {}
    for preload in (True, False):
        daemon = start(source, preload=preload)
        assert origins(daemon) == {"fork" if preload else "exec"}
        usage[preload] = pss(process.pid for process in daemon.processes() if process.pid != daemon.pid)
        assert daemon.stop() == 0
    # The image itself is counted in; with an import of some weight it pays for itself at once.
    assert usage[True] < 0.7 * usage[False]


def test_a_pool_with_an_environment_of_its_own_is_started_by_exec(start: Callable[..., Daemon]) -> None:
    daemon = start({"crmtasks": SOURCE, "probe": PROBE}, pools={"asap": {"env": {"TOKEN": "mine"}}})
    assert daemon.worker("asap:0")["origin"] == "exec"
    assert daemon.worker("background:0")["origin"] == "fork"
    with Sender(daemon) as sender:
        assert sender.result(sender.send("probe.look", queue="q_asap"))["token"] == "mine"
        assert sender.result(sender.send("probe.look", queue="q_background"))["token"] is None


THREAD = """
    import threading, time
    threading.Thread(target=time.sleep, args=(3600,), name='poller').start()
"""
LOCK = "import multiprocessing\nLOCK = multiprocessing.Lock()\n"
TEMPORARY = "import tempfile\nFOLDER = tempfile.TemporaryDirectory()\n"
SOCKET = "import socket\nKEPT = socket.create_server(('127.0.0.1', 0))\n"


@pytest.mark.parametrize(
    ("source", "reason"), [(THREAD, "poller"), (SOCKET, "sockets"), (LOCK, "locks"), (TEMPORARY, "TemporaryDirectory")]
)
def test_imports_that_a_fork_would_break_are_told_and_workers_start_by_exec(
    start: Callable[..., Daemon], source: str, reason: str
) -> None:
    daemon = start({"crmtasks": SOURCE, "impolite": source})
    assert origins(daemon) == {"exec"}
    assert name_of(daemon.worker("asap:0")["pid"]) == "asap:0"
    image = helpers(daemon)[IMAGE]
    assert image["state"] == "FATAL"
    assert reason in image["reason"]
    assert any(record.get("action") == "exec_without_image" for record in daemon.logs())
    with Sender(daemon) as sender:
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 3


def test_modules_that_ignore_the_end_of_children_have_an_image_all_the_same(start: Callable[..., Daemon]) -> None:
    daemon = start({"crmtasks": SOURCE, "deaf": "    import signal\n    signal.signal(signal.SIGCHLD, signal.SIG_IGN)"})
    assert origins(daemon) == {"fork"}
    image = helpers(daemon)[IMAGE]["pid"]
    for _ in range(2):
        assert replaced(daemon, "asap:0")["origin"] == "fork"
    assert helpers(daemon)[IMAGE]["pid"] == image


KEEPS_THE_APP = """
    from celery import current_app
    from limetaskd import task

    APP = current_app._get_current_object()

    @task(name="probe.same_app")
    def same_app():
        return current_app._get_current_object() is APP

    @APP.on_after_finalize.connect
    def plan(sender, **_):
        sender.add_periodic_task(0.2, sender.tasks["probe.same_app"].s(), name="probe")
"""


@pytest.mark.parametrize("preload", [True, False])
def test_the_app_that_task_modules_have_seen_is_that_of_workers_and_schedule(
    start: Callable[..., Daemon], preload: bool
) -> None:
    daemon = start({"crmtasks": SOURCE, "keeps": KEEPS_THE_APP}, preload=preload)
    with Sender(daemon) as sender:
        assert sender.result(sender.send("probe.same_app")) is True
        sent = len(daemon.records())
    wait_until(lambda: len(daemon.records()) > sent)  # what it has put into the schedule
    assert {record["task_outcome"] for record in daemon.records()} == {"SUCCESS"}
    assert origins(daemon) == {"fork" if preload else "exec"}


CONFIGURES_THE_APP = """
    from celery import current_app
    from limetaskd import task

    APP = current_app._get_current_object()
    APP.conf.result_expires = 60
    APP.conf.task_acks_late = False
    APP.conf.worker_prefetch_multiplier = 4

    @task(name="probe.conf")
    def conf():
        said = APP.conf.result_expires, APP.conf.task_acks_late, APP.conf.worker_prefetch_multiplier
        return [*said, APP.conf.task_time_limit, APP.conf.worker_proc_alive_timeout, conf.acks_late, conf.time_limit]

    @task(name="probe.configured")
    def configured(): ...

    @task(name="probe.added")
    def added(): ...

    @APP.on_after_finalize.connect
    def plan(sender, **_):
        sender.add_periodic_task(0.2, added.s(), name="added")
"""


@pytest.mark.parametrize("preload", [True, False])
def test_what_task_modules_say_to_the_configuration_stands(start: Callable[..., Daemon], preload: bool) -> None:
    schedule = {"configured": {"task": "probe.configured", "schedule": 0.2}}
    daemon = start(
        {"crmtasks": SOURCE, "says": CONFIGURES_THE_APP},
        preload=preload,
        celery={"beat_schedule": schedule, "worker_proc_alive_timeout": 33},
        pools={"asap": {"time_limit": "77s"}},
    )
    assert origins(daemon) == {"fork" if preload else "exec"}
    with Sender(daemon) as sender:
        assert sender.result(sender.send("probe.conf", queue="q_asap")) == [60, False, 4, 77.0, 33, False, 77.0]
    wait_until(lambda: {record["task_name"] for record in daemon.records()} >= {"probe.configured", "probe.added"})


def test_a_spare_waits_and_becomes_the_next_worker(start: Callable[..., Daemon]) -> None:
    daemon = start({"crmtasks": SOURCE, "probe": PROBE}, pools={"asap": {"nice": 5}})
    spare = the_spare(daemon)
    process = psutil.Process(spare)
    assert (process.ppid(), os.getsid(spare)) == (daemon.pid, spare)
    # Its own end of the socket to the image is all that it has.
    links = [str(entry.readlink()) for entry in Path(f"/proc/{spare}/fd").iterdir()]
    assert len([link for link in links if link.startswith("socket:")]) == 1
    assert links.count(str(daemon.state_dir / "log" / f"{IMAGE}.log")) == 2
    worker = replaced(daemon, "asap:0")
    assert (worker["pid"], worker["origin"]) == (spare, "fork")
    assert name_of(spare) == "asap:0"
    assert [word for word in psutil.Process(spare).cmdline() if word][-2:] == ["worker", "asap:0"]
    with Sender(daemon) as sender:
        seen = sender.result(sender.send("probe.look", queue="q_asap"))
    assert (seen["worker"], seen["session"], seen["nice"]) == (spare, spare, 5)
    links = [str(entry.readlink()) for entry in Path(f"/proc/{spare}/fd").iterdir()]
    assert str(daemon.state_dir / "log" / f"{IMAGE}.log") not in links
    last = the_spare(daemon)
    assert last != spare
    assert daemon.stop() == 0
    assert daemon.processes() == []
    assert name_of(last) is None


def test_a_spare_that_was_killed_is_noticed_when_it_is_needed(start: Callable[..., Daemon]) -> None:
    daemon = start({"crmtasks": SOURCE}, restart={"initial": "10ms", "max": "10ms", "intensity": 100})
    image = helpers(daemon)[IMAGE]["pid"]
    spare = the_spare(daemon)
    os.kill(spare, signal.SIGKILL)
    wait_dead(spare)
    worker = replaced(daemon, "asap:0")
    assert worker["origin"] == "fork"
    assert worker["pid"] != spare
    assert helpers(daemon)[IMAGE]["pid"] == image
    assert not any(record.get("action") == "exec_without_image" for record in daemon.logs())
    spare = the_spare(daemon)
    assert replaced(daemon, "background:0")["pid"] == spare
    # Killed at the moment of need: whichever comes first.
    for _ in range(5):
        spare = the_spare(daemon)
        assert replaced(daemon, "asap:0", spare)["pid"] != spare
        wait_dead(spare)
    with Sender(daemon) as sender:
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 3
    assert daemon.stop() == 0
    assert daemon.processes() == []


def test_a_spare_goes_with_its_image_and_with_its_daemon(start: Callable[..., Daemon]) -> None:
    daemon = start({"crmtasks": SOURCE})
    spare = the_spare(daemon)
    os.kill(helpers(daemon)[IMAGE]["pid"], signal.SIGKILL)
    wait_dead(spare)
    spare = the_spare(daemon)  # of the next image
    worker = daemon.worker("asap:0")["pid"]
    daemon.kill()
    wait_until(lambda: spares(daemon) == [])
    daemon.start()
    wait_until(lambda: daemon.status() and daemon.worker("asap:0")["ready"], 60)
    assert daemon.worker("asap:0")["pid"] == worker
    # Somebody has stopped it: it cannot end by itself.
    spare = the_spare(daemon)
    os.kill(spare, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(spare).status() == psutil.STATUS_STOPPED)
    assert daemon.stop() == 0
    assert daemon.processes() == []


def test_a_spare_that_somebody_has_stopped_ends_with_its_image(start: Callable[..., Daemon]) -> None:
    daemon = start({"crmtasks": SOURCE})
    spare = the_spare(daemon)
    os.kill(spare, signal.SIGSTOP)
    os.kill(helpers(daemon)[IMAGE]["pid"], signal.SIGKILL)
    wait_dead(spare)
    spare = the_spare(daemon)
    os.kill(spare, signal.SIGSTOP)
    assert daemon.stop() == 0
    assert daemon.processes() == []


def test_what_a_spare_became_is_as_old_as_its_new_life(start: Callable[..., Daemon]) -> None:
    daemon = start({"crmtasks": SOURCE})
    spare = the_spare(daemon)
    forked = psutil.Process(spare).create_time()
    begun = time.time()
    assert begun - forked > 0.2  # it has waited while the pools came up
    assert replaced(daemon, "asap:0")["pid"] == spare
    daemon.kill()
    daemon.start()
    wait_until(lambda: daemon.status() and daemon.worker("asap:0")["ready"], 60)
    worker = daemon.worker("asap:0")
    assert (worker["pid"], worker["origin"]) == (spare, "adopted")
    assert worker["uptime_s"] <= time.time() - begun


def test_a_restart_takes_changed_modules_and_a_broken_one_leaves_the_old_workers(
    start: Callable[..., Daemon],
) -> None:
    daemon = start({"crmtasks": SOURCE})
    before = helpers(daemon)[IMAGE]["pid"]
    daemon.ctl("restart", "asap")
    assert helpers(daemon)[IMAGE]["pid"] == before  # nothing changed: the image stays
    stale = the_spare(daemon)
    daemon.module("crmtasks", SOURCE.replace("return a + b", "return a + b + 1000"))
    daemon.ctl("restart", "asap")
    assert helpers(daemon)[IMAGE]["pid"] != before
    assert daemon.worker("asap:0")["origin"] == "fork"
    assert name_of(stale) is None
    with Sender(daemon) as sender:
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 1003
        fresh = the_spare(daemon)
        assert replaced(daemon, "asap:0")["pid"] == fresh
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 1003
        # Fails at import the second time only.
        daemon.module("crmtasks", "raise RuntimeError('half-installed')")
        old = daemon.worker("asap:0")["pid"]
        done = daemon.run_ctl("restart", "asap")
        assert done.returncode == 1
        assert "half-installed" in done.stderr
        assert daemon.worker("asap:0")["pid"] == old
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 1003
        # Whoever dies meanwhile comes back as it was.
        assert replaced(daemon, "asap:0")["origin"] == "fork"
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 1003


def test_new_code_that_cannot_be_forked_is_not_undone_by_the_old_image(start: Callable[..., Daemon]) -> None:
    daemon = start({"crmtasks": SOURCE})
    threaded = textwrap.dedent(THREAD) + textwrap.dedent(SOURCE).replace("return a + b", "return a + b + 1000")
    daemon.module("crmtasks", threaded)
    daemon.ctl("restart", "asap")
    assert daemon.worker("asap:0")["origin"] == "exec"
    wait_until(lambda: helpers(daemon)[IMAGE]["state"] == "FATAL", 60)
    assert replaced(daemon, "asap:0")["origin"] == "exec"
    with Sender(daemon) as sender:
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 1003


def test_preload_is_switched_by_a_reload(start: Callable[..., Daemon]) -> None:
    daemon = start({"crmtasks": SOURCE})
    config = yaml.safe_load(daemon.config_path.read_text())
    config["limetaskd"]["preload"] = False
    daemon.configure(config)
    daemon.ctl("reload")
    assert origins(daemon) == {"exec"}
    assert IMAGE not in helpers(daemon)
    config["limetaskd"]["preload"] = True
    daemon.configure(config)
    daemon.ctl("reload")
    assert origins(daemon) == {"fork"}
    assert helpers(daemon)[IMAGE]["state"] == "RUNNING"


DEPLOYS = """
    import os, time
    import crmtasks

    path = crmtasks.__file__
    old = os.stat(path)
    with open(path) as file:
        source = file.read()
    if "+ 1000" not in source:
        with open(path + ".new", "w") as file:
            file.write(source.replace("return a + b", "return a + b + 1000"))
        os.utime(path + ".new", ns=(old.st_atime_ns, old.st_mtime_ns - 10**9))
        os.replace(path + ".new", path)
"""


def test_a_restart_takes_modules_that_changed_while_the_image_imported(start: Callable[..., Daemon]) -> None:
    daemon = start({"crmtasks": SOURCE, "deploys": DEPLOYS})
    with Sender(daemon) as sender:
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 3
        daemon.ctl("restart", "asap")
        assert sender.result(sender.send("crm.add", 1, 2, qos="asap")) == 1003
    image = helpers(daemon)[IMAGE]["pid"]
    daemon.ctl("restart", "asap")
    assert helpers(daemon)[IMAGE]["pid"] == image  # it has what is there now


HANGS = """
    import os, time
    with open(os.path.join(os.path.dirname(__file__), "hangs"), "w") as file:
        file.write(str(os.getpid()))
    time.sleep(3600)
"""


def test_an_image_that_hangs_in_imports_ends_with_its_daemon(start: Callable[..., Daemon]) -> None:
    daemon = start({"hangs": HANGS}, wait=False)
    note = daemon.modules / "hangs"
    wait_until(lambda: note.exists() and note.read_text())
    image = int(note.read_text())
    assert name_of(image) is not None
    daemon.kill()
    wait_until(lambda: image not in {process.pid for process in daemon.processes()})


def test_a_killed_image_comes_back_and_workers_do_not_notice(start: Callable[..., Daemon]) -> None:
    daemon = start({"crmtasks": SOURCE})
    before = {name: daemon.worker(name)["pid"] for name in ("asap:0", "background:0")}
    image = helpers(daemon)[IMAGE]["pid"]
    os.kill(image, signal.SIGKILL)
    os.kill(before["asap:0"], signal.SIGKILL)
    wait_until(lambda: daemon.worker("asap:0")["ready"] and daemon.worker("asap:0")["pid"] != before["asap:0"], 60)
    wait_until(lambda: helpers(daemon)[IMAGE]["state"] == "RUNNING", 60)
    assert helpers(daemon)[IMAGE]["pid"] != image
    assert daemon.worker("background:0")["pid"] == before["background:0"]
    # What the killed worker left behind was collected: no zombies.
    wait_until(
        lambda: not [c for c in psutil.Process(daemon.pid).children(recursive=True) if c.status() == "zombie"]
    )


def test_state_of_a_killed_daemon_is_known_to_the_next_one(start: Callable[..., Daemon]) -> None:
    daemon = start({"crmtasks": SOURCE}, restart={"initial": "100ms"})
    os.kill(daemon.worker("asap:0")["pid"], signal.SIGKILL)
    wait_until(lambda: daemon.worker("asap:0")["ready"] and daemon.worker("asap:0")["restarts"] == 1, 60)
    daemon.ctl("stop", "background")
    daemon.ctl("scale", "asap=3")
    memory = daemon.runtime_dir / "memory.json"
    wait_until(lambda: '"concurrency": 3' in memory.read_text())
    pid = daemon.worker("asap:0")["pid"]
    daemon.kill()
    daemon.start()
    wait_until(lambda: daemon.status() and daemon.worker("asap:0")["ready"], 60)
    worker = daemon.worker("asap:0")
    assert (worker["pid"], worker["restarts"], worker["concurrency"], worker["origin"]) == (pid, 1, 3, "adopted")
    assert daemon.worker("background:0")["state"] == "STOPPED"
    for damaged in (memory.read_bytes()[:40], b"\xff\xfe\x00not text"):
        daemon.kill()
        memory.write_bytes(damaged)
        (problem,) = rehearse_state(Paths(str(daemon.runtime_dir), str(daemon.state_dir)))
        assert problem.startswith(f"{memory}: ")
        daemon.start()
        wait_until(lambda: daemon.status() and daemon.worker("asap:0")["ready"], 60)
        assert daemon.worker("asap:0")["pid"] == pid
        assert any(record.get("action") == "set_aside" for record in daemon.logs())
        assert Path(f"{memory}.damaged").read_bytes() == damaged
    assert daemon.stop() == 0
    assert not memory.exists()
