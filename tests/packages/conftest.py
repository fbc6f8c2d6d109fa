"""Packages, built once for the whole run, and machines to install them on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from limetaskd.version import __version__
from tests.packages.system import Root

ROOT = Path(__file__).resolve().parents[2]
NEWER = "99.0.0"
_TREE = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.egg-info", "dist", "build", ".*_cache", ".demo")
# Building packages and machines takes longer than a test usually may.
LONG_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(LONG_S))


@dataclass(frozen=True)
class Packages:
    """A deb and an rpm of one version."""

    deb: Path
    rpm: Path
    version: str


def tool(name: str) -> str:
    """A program of the environment or the system. Its absence is a failure, with what to do."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    assert found is not None, f"{name} is missing: `make test-packages` as root installs it"
    return found


def build(tree: Path, out: Path) -> Packages:
    """Build both packages from a source tree."""
    done = subprocess.run(
        [sys.executable, str(tree / "packaging" / "build.py"), "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1790000000"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    deb, rpm = (next(out.glob(f"*.{kind}")) for kind in ("deb", "rpm"))
    return Packages(deb, rpm, deb.name.split("_")[1])


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """What this tree builds."""
    return build(ROOT, tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """A later version: the same tree, but for its one version and a line in the configuration that it brings."""
    tree = tmp_path_factory.mktemp("newer") / "tree"
    shutil.copytree(ROOT, tree, ignore=_TREE)
    version = tree / "limetaskd" / "version.py"
    version.write_text(version.read_text().replace(__version__, NEWER))
    configuration = tree / "etc" / "limetaskd.yaml"
    configuration.write_text(configuration.read_text() + "# a comment of the later version\n")
    return build(tree, tmp_path_factory.mktemp("newer-packages"))


@pytest.fixture
def make_root() -> Iterator[Callable[[str], Root]]:
    """`make_root(suite)`: a fresh machine's root."""
    made: list[Root] = []

    def make(suite: str) -> Root:
        made.append(Root(suite))
        return made[-1]

    yield make
    for root in made:
        root.close()
