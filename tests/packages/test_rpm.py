"""The rpm, installed with rpm --root into a folder: upgraded, downgraded, erased.

There is no rpm distribution here: dependencies are not resolved (--nodeps), and the root is Debian's, for its shell,
its Python and its account tools. Scriptlets, files, configuration and ghosts are rpm's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from limetaskd.version import __version__
from tests.packages.conftest import NEWER, Packages
from tests.packages.system import Result, Root, call

HOME = "/usr/lib/limetaskd"


@pytest.fixture
def root(make_root: Callable[[str], Root]) -> Root:
    return make_root("bookworm")


def rpm(root: Root, *words: str, check: bool = True) -> Result:
    """rpm with its database in the root, without network."""
    dependencies = [] if words[0].startswith("-q") else ["--nodeps"]
    command = ["unshare", "--net", "rpm", "--root", str(root.path), *dependencies, *words]
    return call(command, check=check)


def package(root: Root, path: Path) -> str:
    shutil.copy(path, root.file("/tmp"))
    return str(path)


def test_the_life_of_the_rpm(root: Root, packages: Packages, newer: Packages) -> None:
    rpm(root, "-i", package(root, packages.rpm))
    for command in ("limetaskd", "limetaskctl", "lime-task-handler", "limefu"):
        assert root.run(command, "--version").output == f"{command} {__version__}\n"
    assert root.run("stat", "-c", "%a %U %G", "/etc/limetaskd/limetaskd.yaml").output == "640 root limetaskd\n"
    assert root.run("stat", "-c", "%a %U %G", "/var/lib/limetaskd").output == "750 limetaskd limetaskd\n"
    assert root.run("readlink", f"{HOME}/bin/python").output == "python3.11\n"
    # Byte code is no file of the package, the chosen Python is (%ghost).
    assert rpm(root, "-qf", f"{HOME}/bin/python").output.startswith("limetaskd-")
    edited = "tasks: {task_queue_name: edited}\nlimetaskd: {user: limetaskd}\n"
    root.file("/etc/limetaskd/limetaskd.yaml").write_text(edited)

    rpm(root, "-U", package(root, newer.rpm))
    assert root.run("limetaskd", "--version").output == f"limetaskd {NEWER}\n"
    assert root.file("/etc/limetaskd/limetaskd.yaml").read_text() == edited
    assert "a comment of the later version" in root.file("/etc/limetaskd/limetaskd.yaml.rpmnew").read_text()
    assert root.run("limefu", "--version").output == f"limefu {NEWER}\n"
    assert root.run("readlink", f"{HOME}/bin/python").output == "python3.11\n"

    refused = rpm(root, "-U", str(packages.rpm), check=False)
    assert refused.code != 0 and "newer" in refused.output
    rpm(root, "-U", "--oldpackage", str(packages.rpm))
    assert root.run("limetaskd", "--version").output == f"limetaskd {__version__}\n"

    rpm(root, "-e", "limetaskd")
    assert not root.file(HOME).exists(), list(root.file(HOME).rglob("*"))[:5]
    assert not root.file("/usr/bin/limefu").is_symlink()
    assert root.file("/etc/limetaskd/limetaskd.yaml.rpmsave").read_text() == edited


def test_what_it_requires(packages: Packages) -> None:
    requires = call(["rpm", "-qp", "--requires", str(packages.rpm)]).output
    assert "python3.12 or python3.11" in requires
    assert "shadow-utils" in requires
    assert call(["rpm", "-qpc", str(packages.rpm)]).output.split() == [
        "/etc/limetaskd/environment", "/etc/limetaskd/limetaskd.yaml",
    ]  # fmt: skip
    assert call(["rpm", "-qp", "--qf", "%{license}", str(packages.rpm)]).output.endswith("BSD-3-Clause")
