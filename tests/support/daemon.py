"""A real limetaskd with folders of its own, driven by the real limetaskctl; everything it started ends with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import psutil

from tests.support.guard import GUARD, folder_pids, kill_folder
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
_STOP_TIMEOUT_S = 90.0
# What the machine or another test run may have set must not reach the daemon under test.
_FOREIGN = ("LIMETASK_", "LIME_TASK_", "LIMETASKD_")
_FOREIGN_NAMES = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "RUNTIME_DIRECTORY", "STATE_DIRECTORY"})


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without anything that configures limetaskd, plus `extra`."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN) and k not in _FOREIGN_NAMES}
    return {**own, **(extra or {})}


def command(name: str) -> str:
    """The installed command `name` of the interpreter that runs the tests."""
    path = Path(sys.executable).with_name(name)
    assert path.exists(), f"{path} is not there: install the project into this interpreter (`make venv`)"
    return str(path)


def parse_lines(text: str) -> list[dict[str, Any]]:
    """The JSON objects among the lines; other lines (a traceback of an interpreter that cannot start) are left out."""
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


class Daemon:
    """One limetaskd. `config`: the whole configuration as a mapping, or the text of a file.

    A mapping gets runtime_dir, state_dir and (when it names neither) short timeouts fit for tests. Modules written
    with `module` are importable by the workers and, through `environment`, by senders.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | str,
        *,
        embedded: bool = False,
        arguments: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        # Short: a UNIX socket's path must fit in 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="lt-d-", dir="/tmp"))
        GUARD.add_folder(str(self.folder))
        self.folder.chmod(0o755)  # another user may be told to run it
        self.runtime_dir = self.folder / "run"
        self.state_dir = self.folder / "state"
        self.modules = self.folder / "app"
        self.modules.mkdir()
        self.config_path = self.folder / "limetaskd.yaml"
        self.stderr_path = self.folder / "stderr.log"
        self.arguments = [*(["--embedded"] if embedded else []), *arguments]
        self.python = python
        paths = [str(self.modules), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        self.environment = clean_environment({"PYTHONPATH": os.pathsep.join(paths), **(env or {})})
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(config)

    # -- before the start ------------------------------------------------------------------------------------------

    def configure(self, config: Mapping[str, Any] | str) -> None:
        """Write the configuration file anew (a running daemon reads it at `reload`)."""
        if isinstance(config, str):
            text = config.replace("{runtime_dir}", str(self.runtime_dir)).replace("{state_dir}", str(self.state_dir))
        else:
            document = {name: section for name, section in config.items() if name != "limetaskd"}
            document["limetaskd"] = {
                "runtime_dir": str(self.runtime_dir),
                "state_dir": str(self.state_dir),
                "shutdown_timeout": "30s",
                **(config.get("limetaskd") or {}),
            }
            text = json.dumps(document, indent=1)  # JSON is YAML
        # Whole or not at all: senders may read it at any moment.
        temporary = self.config_path.with_suffix(".new")
        temporary.write_text(text)
        temporary.replace(self.config_path)

    def module(self, name: str, source: str) -> Path:
        """Write a module that workers can import; `source` may be indented."""
        path = self.modules / f"{name}.py"
        path.write_text(textwrap.dedent(source))
        return path

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start it; returns at once (`wait_running`)."""
        assert not self.alive, "the daemon runs already"
        with self.stderr_path.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    self.python, "-m", "limetaskd.daemon.main", "--config", str(self.config_path), *self.arguments,
                ],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )  # fmt: skip
        return self

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the daemon was not started"
        return self._process.pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait_exit(self, timeout: float = _STOP_TIMEOUT_S) -> int:
        """Wait for the daemon's own end: its exit code (negative: of a signal). Raises TimeoutExpired."""
        assert self._process is not None, "the daemon was not started"
        return self._process.wait(timeout)

    def stop(self, timeout: float = _STOP_TIMEOUT_S) -> int:
        """SIGTERM, and the exit code."""
        if self.alive:
            self.signal(signal.SIGTERM)
        return self.wait_exit(timeout)

    def kill(self) -> None:
        """kill -9 of the daemon's process alone; its workers are left to themselves."""
        if self.alive:
            self.signal(signal.SIGKILL)
        self.wait_exit()

    def close(self) -> None:
        """End everything at once and remove the folders. Can be called again."""
        kill_folder(str(self.folder))
        if self._process is not None:
            self._process.wait(_STOP_TIMEOUT_S)
        shutil.rmtree(self.folder, ignore_errors=True)
        GUARD.forget_folder(str(self.folder))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the operator's side ---------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        return f"ipc://{self.runtime_dir}/control.sock"

    def run_ctl(self, *arguments: str, timeout: float = 90, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run the real limetaskctl against this daemon; whatever its exit code."""
        return subprocess.run(
            [command("limetaskctl"), "--socket", self.endpoint, *arguments],
            env=self.environment,
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def ctl(self, *arguments: str, timeout: float = 90) -> Any:
        """`limetaskctl --json ...`, which must succeed: the document that it prints."""
        done = self.run_ctl(*arguments, "--json", timeout=timeout)
        assert done.returncode == 0, (
            f"limetaskctl {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}\n{self.tail()}"
        )
        return json.loads(done.stdout)

    def status(self) -> dict[str, Any] | None:
        """`status --json`, None while nobody answers. Fails when the daemon has died."""
        done = self.run_ctl("status", "--json", "--timeout", "10")
        if done.returncode == 0:
            document: dict[str, Any] = json.loads(done.stdout)
            return document
        assert self._process is None or self._process.poll() is None, (
            f"the daemon ended with exit code {self._process.returncode}:\n{self.tail()}"
        )
        return None

    def pool(self, name: str) -> dict[str, Any]:
        """One pool of `status`; fails when it is not there."""
        status = self.status()
        found = [pool for pool in status["pools"] if pool["name"] == name] if status else []
        assert found, f"no pool {name} in {status}"
        return dict(found[0])

    def worker(self, name: str) -> dict[str, Any]:
        """One worker (`asap:0`) of `status`; fails when it is not there."""
        for worker in self.pool(name.partition(":")[0])["workers"]:
            if worker["name"] == name:
                return dict(worker)
        raise AssertionError(f"no worker {name}")

    def wait_running(self, *pools: str, timeout: float = 90) -> dict[str, Any]:
        """Until every worker of `pools` (none given: of all pools) is ready; the status then."""
        seen: dict[str, Any] = {}

        def ready() -> bool:
            status = self.status()
            seen.clear()
            seen.update(status or {})
            chosen = [p for p in seen.get("pools", []) if not pools or p["name"] in pools]
            if len(chosen) < max(1, len(pools)):
                return False
            fatal = [w["name"] for p in chosen for w in p["workers"] if w["state"] == "FATAL"]
            assert not fatal, f"{fatal} will not run; status {json.dumps(seen)}\n{self.tail()}"
            return all(p["workers"] and all(w["ready"] for w in p["workers"]) for p in chosen)

        wait_until(
            ready, timeout, lambda: f"{pools or 'every pool'} to consume; status {json.dumps(seen)}\n{self.tail()}\n"
        )
        return dict(seen)

    # -- what it wrote ---------------------------------------------------------------------------------------------

    def logs(self, name: str | None = None) -> list[dict[str, Any]]:
        """The records at the daemon's destination (its stderr), or of the own file of the process `name`."""
        path = self.stderr_path if name is None else self.state_dir / "log" / f"{name}.log"
        return parse_lines(path.read_text(errors="replace")) if path.exists() else []

    def records(self, task_id: str | None = None) -> list[dict[str, Any]]:
        """The execution records among `logs()`: one for each task that has ended for good."""
        return [r for r in self.logs() if r.get("task_outcome") and task_id in (None, r.get("task_id"))]

    def tail(self, lines: int = 40) -> str:
        """The last lines at the destination, for messages of failures."""
        text = self.stderr_path.read_text(errors="replace") if self.stderr_path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    # -- its processes ---------------------------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """Every live process of this daemon, itself and what a killed one left behind included."""
        found = []
        for pid in folder_pids(str(self.folder)):
            try:
                found.append(psutil.Process(pid))
            except psutil.NoSuchProcess:
                continue
        return found

    def named(self, name: str) -> list[psutil.Process]:
        """The processes of the worker (or beat, agent) `name`: its main process first, then its children."""
        found: list[psutil.Process] = []
        for process in self.processes():
            try:
                # A forked process has the environment of its image as far as /proc tells, and a name of its own.
                comm = Path(f"/proc/{process.pid}/comm").read_text().strip()
                spec = process.environ().get("LIMETASKD_SPEC")
                if comm == name[:15] or (spec and json.loads(spec)["name"] == name):
                    found.append(process)
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                continue
        pids = {process.pid for process in found}

        def is_child(process: psutil.Process) -> bool:
            try:
                return process.ppid() in pids
            except psutil.NoSuchProcess:
                return True

        return sorted(found, key=is_child)

    def main_pid(self, name: str) -> int | None:
        """The main process of the worker `name`; None when it has none now."""
        found = self.named(name)
        return found[0].pid if found else None
