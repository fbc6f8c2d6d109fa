"""`make demo`: the example application under an embedded limetaskd, shown step by step. Leaves nothing running.

Everything it writes is in .demo/. Exit code 0: each step did what it says.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "crm"
DEMO = ROOT / ".demo"
BIN = Path(sys.executable).parent
DEADLINE_S = 90.0
_SOCKET_ROOM = 60  # bytes: a socket's path must fit in 107, and the daemon's own part of it is shorter than 47
_LAST_ERRORS = 8
_COLOURS = sys.stdout.isatty() and not os.environ.get("NO_COLOR")


class DemoError(Exception):
    """A step did not do what it should."""


def style(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if _COLOURS else text


def heading(text: str) -> None:
    print(f"\n{style('1;36', '== ' + text)}", flush=True)


def shown(command: list[str]) -> None:
    """Show the command that a reader could type."""
    print(style("2", "$ " + " ".join(command)), flush=True)


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise DemoError(f"waited {DEADLINE_S:.0f} s in vain for {what}")


class Demo:
    """The running demonstration: where it is, and what must be ended."""

    def __init__(self) -> None:
        shutil.rmtree(DEMO, ignore_errors=True)
        DEMO.mkdir()
        self.elsewhere: str | None = None
        base = DEMO
        if len(os.fsencode(DEMO)) > _SOCKET_ROOM:
            self.elsewhere = tempfile.mkdtemp(prefix="limetaskd-demo-")
            base = Path(self.elsewhere)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("LIMETASK_", "LIME_TASK_"))},
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(EXAMPLE),
            "LIMETASK_CONFIG": str(EXAMPLE / "limetaskd.yaml"),
            # Any value of the file can come from the environment, which wins.
            "LIMETASK_LIMETASKD__RUNTIME_DIR": str(base / "run"),
            "LIMETASK_LIMETASKD__STATE_DIR": str(base / "state"),
        }
        self.base = str(base)
        self.log = DEMO / "limetaskd.log"
        self.sender_log = DEMO / "sender.log"
        self.socket = f"ipc://{base}/run/control.sock"
        self.daemon: subprocess.Popen[bytes] | None = None

    # -- commands --------------------------------------------------------------------------------------------------

    def run(self, *command: str, show: bool = True) -> str:
        """Run a command to its end; shows it and its output. Raises DemoError when it fails."""
        if show:
            shown([word for word in command if word not in ("--socket", self.socket)])
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise DemoError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        if show:
            print(done.stdout, end="", flush=True)
        return done.stdout

    def ctl(self, *arguments: str, show: bool = True) -> str:
        return self.run("limetaskctl", "--socket", self.socket, *arguments, show=show)

    def records(self, path: Path) -> list[dict[str, Any]]:
        """The JSON records of a log file."""
        found = []
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                found.append(json.loads(line))
        return found

    def show_errors(self) -> None:
        """What the daemon and its workers logged as errors, or their last words."""
        if not self.log.exists():
            return
        errors = [r for r in self.records(self.log) if r["level"] in ("ERROR", "CRITICAL")]
        lines = [f"{record['process']}: {record['message']}" for record in errors[-_LAST_ERRORS:]]
        for line in lines or self.log.read_text(errors="replace").splitlines()[-_LAST_ERRORS:]:
            print(line, file=sys.stderr)
        print(f"all of it: {self.log}", file=sys.stderr)

    # -- steps -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        heading("1. The daemon: a private broker, a pool of workers for each queue, one owner of the schedule")
        shown(["limetaskd", "--embedded", "--config", "examples/crm/limetaskd.yaml"])
        with self.log.open("ab") as output:
            self.daemon = subprocess.Popen(
                ["limetaskd", "--embedded", "--config", str(EXAMPLE / "limetaskd.yaml")],
                executable=str(BIN / "limetaskd"), env=self.environment, cwd=ROOT,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        begin = time.monotonic()
        wait_for(self.ready, "the workers to consume")
        print(f"every pool consumes after {time.monotonic() - begin:.1f} s; log in {self.log.relative_to(ROOT)}")

    def ready(self) -> bool:
        assert self.daemon is not None
        if self.daemon.poll() is not None:
            raise DemoError(f"limetaskd ended with exit code {self.daemon.returncode}")
        done = subprocess.run(
            [BIN / "limetaskctl", "--socket", self.socket, "status", "--json"],
            env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            return False
        pools = json.loads(done.stdout)["pools"]
        failed = [worker["name"] for pool in pools for worker in pool["workers"] if worker["state"] == "FATAL"]
        if failed:
            raise DemoError(f"cannot start: {', '.join(failed)}")
        return bool(pools) and all(
            pool["workers"] and all(worker["ready"] for worker in pool["workers"]) for pool in pools
        )

    def routes(self) -> None:
        heading("2. Which task goes to which queue")
        self.run("limefu", "tasks", "routes")

    def work(self) -> None:
        heading("3. Another process sends tasks of every QoS category, as user 42")
        shown(["python", "examples/crm/send.py"])
        with self.sender_log.open("wb") as log:
            sender = subprocess.Popen(
                [sys.executable, str(EXAMPLE / "send.py")],
                env=self.environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        try:
            assert sender.stdout is not None
            for line in sender.stdout:
                if line == "all sent\n":
                    break
                print(line, end="", flush=True)
            heading("4. What the operator sees meanwhile")
            self.ctl("status")
            print()
            self.ctl("tasks")
            heading("5. The results, in the sending process")
            for line in sender.stdout:
                print(line, end="", flush=True)
            if sender.wait(DEADLINE_S) != 0:
                raise DemoError(f"the sender failed:\n{self.sender_log.read_text(errors='replace')}")
        finally:
            if sender.poll() is None:
                sender.kill()
                sender.wait()

    def look_at_logs(self) -> None:
        heading("6. What the logs say: where each task was sent (sender), how it ended (worker)")
        for record in self.records(self.sender_log):
            if record.get("task_route_type"):
                print(f"  {record['task_route_task']:<27} -> {record['task_queue']:<27} by {record['task_route_type']}")
        print()
        sent = {r["task_id"] for r in self.records(self.sender_log) if r.get("task_route_type")}

        def ended() -> list[dict[str, Any]] | None:
            records = [r for r in self.records(self.log) if r.get("task_outcome")]
            scheduled = any(r["task_name"] == "crm.tasks.refresh_dashboard" for r in records)
            return records if scheduled and sent <= {r["task_id"] for r in records} else None

        records = wait_for(ended, "an execution record of each task, and of a scheduled run")
        for record in records:
            waited, ran = (record[key] or 0 for key in ("task_latency_ms", "task_duration_ms"))
            print(
                f"  {record['task_name']:<27} {record['task_outcome']:<8} waited {waited:>6.0f} ms"
                f"  ran {ran:>6.0f} ms  user {record['task_user_id'] or '-'}"
            )
        failed = [r for r in records if r["task_outcome"] != "SUCCESS"]
        if failed:
            raise DemoError(f"tasks failed: {failed}")
        print("\n  One of these records, as it stands in the log:")
        print("  " + json.dumps(next(r for r in records if r["task_id"] in sent)))

    def stop(self) -> None:
        heading("7. A clean stop")
        self.ctl("shutdown")
        assert self.daemon is not None
        code = self.daemon.wait(DEADLINE_S)
        print(f"limetaskd ended with exit code {code}")
        if code != 0:
            raise DemoError("the daemon did not stop cleanly")

    def close(self) -> None:
        """End whatever still runs: gracefully, and at once when that takes too long."""
        if self.daemon is not None and self.daemon.poll() is None:
            print("stopping limetaskd ...", flush=True)
            for number, patience_s in ((signal.SIGTERM, 40), (signal.SIGQUIT, 10), (signal.SIGKILL, 10)):
                self.daemon.send_signal(number)
                try:
                    self.daemon.wait(patience_s)
                    break
                except subprocess.TimeoutExpired:
                    continue
        # After an orderly end there is nobody; only a daemon that was killed leaves workers.
        for process in psutil.process_iter(["environ", "cwd"]):
            spec = (process.info["environ"] or {}).get("LIMETASKD_SPEC", "")
            if self.base in spec or (process.info["cwd"] or "").startswith(f"{self.base}/state"):
                process.kill()
        if self.elsewhere:
            shutil.rmtree(self.elsewhere, ignore_errors=True)


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    demo = Demo()
    try:
        demo.start()
        demo.routes()
        demo.work()
        demo.look_at_logs()
        demo.stop()
    except DemoError as error:
        print(f"\n{style('1;31', 'The demo failed')}: {error}", file=sys.stderr)
        demo.show_errors()
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted")
        return 130
    finally:
        # A second Ctrl-C must not leave workers behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        demo.close()
    print(f"\n{style('1;32', 'All of it worked.')} Next: README.md, examples/crm/, docs/operations.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
