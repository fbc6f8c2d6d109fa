"""The commands of README and docs are run, so that they stay true. CONTRIBUTING.md describes the marking.

Of each page, in order, in one folder: a `yaml` or `python` block that begins with a comment that is a file name
is written; every line of a `console` block that begins with `$ ` must exit with 0; one that ends with ` &` stays in the
background, and the next line waits until the daemon that it started consumes. Of `sh` blocks, which are shown only, the
workers by hand are run one by one until they are ready, and the targets of `make` must exist.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import clean_environment
from tests.support.guard import GUARD, kill_folder
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
# Its examples are compared with their output, against a daemon of examples: tests/integration/test_ctl_commands.py.
_ELSEWHERE = {"limetaskctl.md"}
PAGES = sorted(
    page
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
    if page.name not in _ELSEWHERE and "```console" in page.read_text()
)
_BLOCK = re.compile(r"^```(console|yaml|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"# ([\w/]+\.(?:py|yaml))\n")
_COMMAND_TIMEOUT_S = 100


class Page:
    """One page as it is carried out: its folder, and the environment that its `export` lines change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = clean_environment(
            {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                # The standard places, moved: the page shows commands as an operator types them.
                "RUNTIME_DIRECTORY": str(folder / "run"),
                "STATE_DIRECTORY": str(folder / "state"),
                "PYTHONDONTWRITEBYTECODE": "1",
            }
        )
        self.background: subprocess.Popen[bytes] | None = None
        self.log = folder / "background.log"

    def run(self, command: str) -> None:
        if command.endswith(" &"):
            with self.log.open("ab") as log:
                self.background = subprocess.Popen(
                    ["bash", "-c", f"exec {command.removesuffix(' &')}"],
                    env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            wait_until(self.consumes, 90, lambda: f"`{command}` to consume\n{self._log_tail()}\n")
            return
        done = subprocess.run(
            ["bash", "-c", f"set -e\n{command}\nenv -0 > .environment"],
            env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (
            f"`{command}`: exit code {done.returncode}\n{done.stdout}{done.stderr}\n{self._log_tail()}"
        )
        pairs = (item.partition("=") for item in (self.folder / ".environment").read_text().split("\0") if item)
        self.environment = {name: value for name, _, value in pairs}

    def consumes(self) -> bool:
        assert self.background is not None
        assert self.background.poll() is None, f"ended with {self.background.returncode}\n{self._log_tail()}"
        done = subprocess.run(
            ["limetaskctl", "status", "--json"],
            env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            return False
        pools = json.loads(done.stdout)["pools"]
        return bool(pools) and all(
            pool["workers"] and all(worker["ready"] for worker in pool["workers"]) for pool in pools
        )

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""


@pytest.fixture
def page() -> Iterator[Page]:
    folder = Path(tempfile.mkdtemp(prefix="lt-p-", dir="/tmp"))
    GUARD.add_folder(str(folder))
    made = Page(folder)
    yield made
    kill_folder(str(folder))
    if made.background is not None:
        made.background.wait(30)
    shutil.rmtree(folder, ignore_errors=True)
    GUARD.forget_folder(str(folder))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_page_is_true(path: Path, page: Page) -> None:
    for kind, text in _BLOCK.findall(path.read_text()):
        if kind != "console":
            name = _NAMED.match(text)
            if name:
                file = page.folder / name[1]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
            continue
        for line in text.splitlines():
            if line.startswith("$ "):
                page.run(line.removeprefix("$ "))


def _shown(first_word: str) -> list[str]:
    """The lines of `sh` blocks that begin with `first_word`, without their comments."""
    pages = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
    blocks = [text for page in pages for text in re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.M | re.S)]
    lines = [line.partition(" #")[0].strip() for text in blocks for line in text.splitlines()]
    return [line for line in lines if line.split(" ")[0] == first_word]


@pytest.mark.parametrize("command", _shown("lime-task-handler"))
def test_workers_by_hand(command: str, page: Page, redis_url: str) -> None:
    page.environment |= {
        "LIMETASK_TASKS__BROKER_CONNECTION_STRING": redis_url,
        "LIMETASK_TASKS__BACKEND_CONNECTION_STRING": redis_url,
        "LIMETASK_CONFIG": str(page.folder / "limetaskd.yaml"),
    }
    (page.folder / "limetaskd.yaml").write_text(
        "tasks: {routing: {qos: {asap: lime_task_queue_asap, scheduled: lime_task_queue_scheduled}}}\n"
    )
    with page.log.open("wb") as log:
        page.background = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            env=page.environment, cwd=page.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    worker = page.background

    def ready() -> bool:
        assert worker.poll() is None, f"`{command}` ended with {worker.returncode}\n{page.log.read_text()}"
        return "ready" in page.log.read_text()

    wait_until(ready, 60, lambda: f"`{command}` to be ready\n{page.log.read_text()}\n")
    worker.terminate()
    assert worker.wait(60) == 0, page.log.read_text()


@pytest.mark.parametrize("command", _shown("make"))
def test_targets_of_make(command: str) -> None:
    target = command.removeprefix("make ").strip()
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command


def test_links_lead_somewhere() -> None:
    """Every relative link of README, CONTRIBUTING and docs names a file; a fragment names a heading."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
    broken = []
    for source in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", source.read_text()):
            if "://" in target:
                continue
            name, _, fragment = target.partition("#")
            file = source.parent / name if name else source
            headings = file.read_text() if file.is_file() else ""
            known = {
                re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
                for heading in re.findall(r"^#+ (.*)$", headings, re.MULTILINE)
            }
            if not file.exists() or (fragment and fragment not in known):
                broken.append(f"{source.name}: {target}")
    assert not broken


def test_the_demo_works() -> None:
    """`make demo`, with the interpreter that runs the tests."""
    assert "scripts/demo.py" in (ROOT / "Makefile").read_text()
    done = subprocess.run(
        [sys.executable, "scripts/demo.py"], env=clean_environment(), cwd=ROOT, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All of it worked." in done.stdout
