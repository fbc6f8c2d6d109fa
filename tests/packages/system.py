"""Machines for the packages: a root folder of Debian without network, and a systemd booted in it.

A root is an overlay over a cached debootstrap, so it costs nothing and a test may ruin it. All of it needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.waiting import wait_until

CACHE = Path(os.environ.get("LIMETASKD_PACKAGES_CACHE", "/var/tmp/limetaskd-packages"))
# python3-venv: the applications of the tests have environments of their own.
INCLUDED = "systemd,systemd-sysv,python3,python3-venv"
PYTHON_OF = {"bookworm": "3.11", "trixie": "3.13"}
COMMAND_S = 240
REBOOT = 133  # the exit code of systemd-nspawn when the machine wants to be booted again
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Result:
    """What a command in a machine did."""

    def __init__(self, code: int, output: str) -> None:
        self.code = code
        self.output = output

    def __repr__(self) -> str:
        return f"exit code {self.code}:\n{self.output}"


def call(command: Sequence[str], *, check: bool = True, env: dict[str, str] | None = None) -> Result:
    """Run a command; its output with its errors. Raises AssertionError when it fails and `check`."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env=env, timeout=COMMAND_S, check=False, cwd="/",
    )  # fmt: skip
    result = Result(done.returncode, done.stdout)
    assert not check or result.code == 0, f"{' '.join(command)}: {result}"
    return result


def mirror() -> str:
    """Where this machine gets Debian from, as apt knows it; $DEBIAN_MIRROR wins."""
    given = os.environ.get("DEBIAN_MIRROR")
    if given:
        return given
    targets = call(["apt-get", "indextargets", "--format", "$(SITE) $(ORIGIN) $(COMPONENT) $(LABEL)",
                    "Created-By: Packages"]).output  # fmt: skip
    for line in targets.splitlines():
        site, *rest = line.split()
        if rest == ["Debian", "main", "Debian"]:
            return site
    raise AssertionError("apt names no Debian archive (run apt-get update), and DEBIAN_MIRROR is not set")


def base(suite: str) -> Path:
    """A debootstrapped Debian, made once a machine; never written to afterwards."""
    folder = CACHE / f"base-{suite}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f"new-{suite}-", dir=CACHE))
        new.chmod(0o755)
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={INCLUDED}", suite, str(new), mirror()],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"debootstrap of {suite}: {done.stdout[-3000:]}"
        new.rename(folder)
    return folder


class Root:
    """A Debian of its own below a temporary folder."""

    def __init__(self, suite: str) -> None:
        assert os.geteuid() == 0, "tests of packages install into roots of their own: run them as root"
        self.suite = suite
        self.python = PYTHON_OF[suite]
        lower = base(suite)
        self._folder = Path(tempfile.mkdtemp(prefix=f"limetaskd-{suite}-"))
        # nspawn and dpkg care for the modes of the root.
        for part in ("upper", "work", "root"):
            (self._folder / part).mkdir(mode=0o755)
        self.path = self._folder / "root"
        options = f"lowerdir={lower},upperdir={self._folder / 'upper'},workdir={self._folder / 'work'}"
        call(["mount", "-t", "overlay", "limetaskd", "-o", options, str(self.path)])

    def close(self) -> None:
        call(["umount", "--lazy", str(self.path)])
        shutil.rmtree(self._folder)

    def file(self, path: str) -> Path:
        """A path of the machine, seen from here."""
        return self.path / path.lstrip("/")

    def write(self, path: str, text: str) -> None:
        self.file(path).parent.mkdir(parents=True, exist_ok=True)
        self.file(path).write_text(text)

    def run(self, *command: str, check: bool = True) -> Result:
        """A command in the root without a network, not booted."""
        script = 'mount -t proc proc "$1/proc" && shift && exec chroot "$@"'
        words = ["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-c", script, "sh", *[str(self.path)] * 2]
        environment = {"PATH": _PATH, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "HOME": "/root"}
        return call([*words, *command], check=check, env=environment)

    def install(self, package: Path, check: bool = True) -> Result:
        """dpkg -i, as an operator without internet does it; of a conffile question, the default."""
        shutil.copy(package, self.file("/tmp"))
        return self.run("dpkg", "-i", "--force-confdef", "--force-confold", f"/tmp/{package.name}", check=check)

    def make_application(self, uv: str, *requirements: str, folder: str = "/srv/crm") -> None:
        """An application's own venv, with what it requires, made here because the machine has no network."""
        self.run("python3", "-m", "venv", "--without-pip", f"{folder}/venv")
        target = self.file(f"{folder}/venv/lib/python{self.python}/site-packages")
        call([uv, "pip", "install", "--quiet", "--target", str(target), "--python-version", self.python,
              "--python-platform", f"{os.uname().machine}-manylinux_2_28", "--only-binary", ":all:",
              "--link-mode", "copy", *requirements], env={**os.environ})  # fmt: skip


class Machine:
    """A root whose systemd is booted, without network, in a container."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self._console = (root.path.parent / "console").open("wb")
        self._process = self._boot()
        self.wait_booted()

    def _boot(self) -> subprocess.Popen[bytes]:
        # The unified hierarchy also where this machine has an older layout: it is what Debian 12 boots with.
        return subprocess.Popen(
            ["systemd-nspawn", "-q", "-D", str(self.root.path), "--private-network", "--register=no", "--keep-unit",
             "--console=pipe", "-b"],
            stdin=subprocess.DEVNULL, stdout=self._console, stderr=self._console, start_new_session=True,
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        )  # fmt: skip

    def leader(self) -> int | None:
        """The pid, seen from here, of the systemd of the machine."""
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            children = (task / "children").read_text().split()
            if children:
                return int(children[0])
        return None

    def wait_booted(self) -> None:
        """Until systemd has brought up what is enabled. Raises AssertionError with the console's text."""
        wait_until(
            lambda: self.run("systemctl", "is-system-running", check=False).output.strip() in {"running", "degraded"},
            timeout=120, message=lambda: f"the machine to boot: {self.console()}",
        )  # fmt: skip

    def console(self) -> str:
        return Path(self._console.name).read_text(errors="replace")[-3000:]

    def run(self, *command: str, check: bool = True) -> Result:
        """A command inside, as root."""
        assert self._process.poll() is None, f"the machine is down: {self.console()}"
        leader = self.leader()
        if leader is None:
            assert not check, "the machine has no init"
            return Result(1, "no init")
        environment = [f"PATH={_PATH}", "HOME=/root", "LC_ALL=C.UTF-8"]
        words = ["nsenter", "-t", str(leader), "--all", "--wdns=/", "env", "-i", *environment]
        return call([*words, *command], check=check)

    def sh(self, script: str, check: bool = True) -> str:
        return self.run("sh", "-c", script, check=check).output

    def property(self, name: str, unit: str = "limetaskd") -> str:
        return self.run("systemctl", "show", "--property", name, "--value", unit).output.strip()

    def main_pid(self, unit: str = "limetaskd") -> int:
        return int(self.property("MainPID", unit))

    def processes(self, unit: str = "limetaskd.service") -> list[int]:
        """Every pid of a unit's control group; a template's instance lies in a slice of its own."""
        script = f"cat $(find /sys/fs/cgroup -type d -name '{unit}')/cgroup.procs 2>/dev/null"
        return [int(pid) for pid in self.sh(script, check=False).split() if pid.isdigit()]

    def reboot(self) -> None:
        """Returns when it is up again."""
        self.run("systemctl", "reboot", check=False)
        # With --keep-unit, nspawn leaves it to its caller to start it again.
        assert self._process.wait(timeout=COMMAND_S) == REBOOT, self.console()
        self._process = self._boot()
        self.wait_booted()

    def close(self) -> None:
        leader = self.leader() if self._process.poll() is None else None
        if leader is not None:
            os.kill(leader, 9)  # the init of its namespace: all of the machine goes with it
        deadline = time.monotonic() + 30
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._console.close()
