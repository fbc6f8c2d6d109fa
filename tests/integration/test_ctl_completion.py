"""The completion scripts in the real shells."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import ctl as support
from tests.support.ctl import COMMAND, DEADLINE_S, environment
from tests.support.ctl_server import ControlServer
from tests.support.waiting import wait_until

folder = support.folder
server = support.server


ASK_BASH = """
set -u
source <(limetaskctl completion bash)
complete -p limetaskctl >/dev/null || exit 9
COMP_LINE=$1; COMP_POINT=${#COMP_LINE}
# As readline does it: broken at COMP_WORDBREAKS.
COMP_WORDS=(limetaskctl); COMP_CWORD=0
_limetaskctl
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def shell_path(folder: Path) -> str:
    """A PATH on which `limetaskctl` is the one under test."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "limetaskctl"
    program.write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    program.chmod(0o755)
    return f"{folder / 'bin'}:{os.environ['PATH']}"


def in_shell(arguments: list[str], server: ControlServer, path: str) -> str:
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        env=environment(PATH=path, LIMETASKCTL_SOCKET=str(server.path)),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


@pytest.mark.parametrize("shell", [shell for shell in ("bash", "zsh", "fish") if shutil.which(shell)])
def test_the_scripts_are_good_syntax(server: ControlServer, shell_path: str, folder: Path, shell: str) -> None:
    script = folder / "script"
    script.write_text(in_shell(["limetaskctl", "completion", shell], server, shell_path))
    in_shell([shell, "-n", str(script)], server, shell_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("limetaskctl sta", ["status", "start"]),
        ("limetaskctl status --j", ["--json"]),
        ("limetaskctl restart asap:", ["0"]),
        ("limetaskctl restart as", ["asap", "asap:0"]),
        ("limetaskctl scale as", ["asap="]),
        ("limetaskctl completion ", ["bash", "zsh", "fish"]),
        ("limetaskctl nothing-like-it", []),
    ],
)
def test_bash_completes(server: ControlServer, shell_path: str, line: str, words: list[str]) -> None:
    out = in_shell(["bash", "--norc", "-c", ASK_BASH, "bash", line], server, shell_path)
    assert out.split() == words


RC = {
    "bash": (".bashrc", "PS1='ready> '\nset +o history\nsource <(limetaskctl completion bash)\n"),
    "zsh": (
        ".zshrc",
        "PS1='ready> '\nunset HISTFILE\nautoload -U compinit && compinit -u -D\nsource <(limetaskctl completion zsh)\n",
    ),
}
START = {"bash": ["bash", "--noprofile", "-i"], "zsh": ["zsh", "-d", "-i"]}


@pytest.mark.parametrize("shell", [shell for shell in RC if shutil.which(shell)])
def test_a_shell_completes_at_its_prompt(server: ControlServer, shell_path: str, folder: Path, shell: str) -> None:
    """With the Tab key, in the real line editor; then Enter shows what stood there."""
    name, text = RC[shell]
    (folder / name).write_text(text)
    pid, terminal = pty.fork()
    if pid == 0:
        changed = environment(
            PATH=shell_path, LIMETASKCTL_SOCKET=str(server.path), HOME=str(folder), ZDOTDIR=str(folder), TERM="vt100",
            INPUTRC="/dev/null",
        )  # fmt: skip
        os.execvpe(shell, START[shell], changed)
    shown = b""

    def enter(line: bytes, method: str) -> Any:
        """The parameters with which `method` is called after this line."""
        nonlocal shown
        while b"ready> " not in shown:
            assert select.select([terminal], [], [], DEADLINE_S)[0], shown
            shown += os.read(terminal, 65536)
        shown = b""
        os.write(terminal, line)
        wait_until(lambda: method in server.methods(), DEADLINE_S)
        return server.requests[server.methods().index(method)]["params"]

    assert enter(b"limetaskctl rest\tasap:\t\r", "restart") == {"names": ["asap:0"]}
    assert enter(b"limetaskctl sca\tas\t3 --pers\t\r", "scale")["pools"] == {"asap": 3}
    assert server.requests[-1]["params"]["persist"] is True
    os.close(terminal)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("shell", [shell for shell in ("fish",) if shutil.which(shell)])
def test_fish_completes(server: ControlServer, shell_path: str, shell: str) -> None:
    def offered(line: str) -> list[str]:
        words = f"limetaskctl completion fish | source; complete -C '{line}'"
        return [line.split("\t")[0] for line in in_shell([shell, "-N", "-c", words], server, shell_path).splitlines()]

    assert offered("limetaskctl sta") == ["start", "status"]
    assert offered("limetaskctl restart as") == ["asap", "asap:0"]
    assert offered("limetaskctl scale as") == ["asap="]
    assert offered("limetaskctl status --j") == ["--json"]


def test_completion_is_silent_without_a_daemon(folder: Path, shell_path: str) -> None:
    done = subprocess.run(
        [*COMMAND, "__complete", "status", ""], capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        env=environment(LIMETASKCTL_SOCKET=str(folder / "missing.sock")),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
