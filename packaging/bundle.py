"""The self-contained tree: limetaskd and all that it needs, for every Python that the packages support.

A package is installed once for each Python, from requirements.lock with its hashes; the trees are merged into one
site-packages. Pure Python is the same in all of them (that is checked), compiled modules have the ABI in their names.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LOCK = Path(__file__).with_name("requirements.lock")
HEAD = "# What the packages bring, resolved from pyproject.toml by packaging/build.py --lock.\n"
# Of an installation at another place and time; or of no use to anybody who runs limetaskd.
_METADATA = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json", "WHEEL")
_FOLDERS = ("test", "tests", "testing", "sboms", "__pycache__")
_SUFFIXES = (".pyi", ".pyc", ".pxd", ".pyx", ".c", ".h", ".hpp")


class BundleError(Exception):
    """The tree cannot be made."""


def tool(name: str) -> str:
    """The path of a program: of this environment, else of the system. Raises BundleError."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise BundleError(f"{name} is needed to build packages: `make packages` installs it, or does your system")
    return found


def scripts(root: Path) -> dict[str, str]:
    """{command: "module:function"} of pyproject.toml."""
    found: dict[str, str] = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    return found


def lock(root: Path, extras: Sequence[str]) -> None:
    """Write requirements.lock: exact versions and hashes, for all supported Pythons at once."""
    command = [tool("uv"), "pip", "compile", str(root / "pyproject.toml"), "--universal", "--upgrade", "--quiet"]
    command += ["--python-version", PYTHONS[0], "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--no-emit-index-url"]
    for extra in extras:
        command += ["--extra", extra]
    LOCK.write_text(HEAD + subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def make(root: Path, home: Path, work: Path, machine: str, epoch: int) -> None:
    """Make `home` (bin, lib, pyvenv.cfg): an environment for whichever of PYTHONS the host has."""
    packages = home / "lib" / "site-packages"
    packages.mkdir(parents=True)
    wheel = build_wheel(root, work / "wheel", epoch)
    for version in PYTHONS:
        tree = work / version
        install(tree, version, machine, ["--require-hashes", "-r", str(LOCK)])
        install(tree, version, machine, ["--no-deps", str(wheel)])
        prune(tree)
        merge(tree, packages)
    strip(packages)
    link_pythons(home)


def build_wheel(root: Path, folder: Path, epoch: int) -> Path:
    """limetaskd's own wheel, from a copy: setuptools leaves a build folder behind."""
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*", "build", "dist", "tests", "benchmarks")
    shutil.copytree(root, source, ignore=ignored, symlinks=True)
    subprocess.run(
        [tool("uv"), "build", "--wheel", "--quiet", "--out-dir", str(folder / "out"), str(source)],
        env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}, check=True,
    )  # fmt: skip
    return next((folder / "out").glob("*.whl"))


def install(tree: Path, version: str, machine: str, what: Sequence[str]) -> None:
    """Install into `tree` for Python `version`, wheels only."""
    command = [tool("uv"), "pip", "install", "--quiet", "--target", str(tree), "--python-version", version]
    command += ["--python-platform", f"{machine}-manylinux_2_28", "--only-binary", ":all:", "--link-mode", "copy"]
    subprocess.run([*command, "--python", sys.executable, *what], check=True)


def prune(tree: Path) -> None:
    """Drop what nobody needs at run time."""
    shutil.rmtree(tree / "bin", ignore_errors=True)
    for path in sorted(tree.rglob("*"), reverse=True):
        if path.is_dir() and path.name in _FOLDERS:
            shutil.rmtree(path)
        elif path.is_file() and (path.suffix in _SUFFIXES or _is_metadata(path) or path.name.startswith(".")):
            path.unlink()
    for path in tree.iterdir():
        if path.name.startswith("."):
            path.unlink()  # uv's own lock


def _is_metadata(path: Path) -> bool:
    return path.parent.suffix == ".dist-info" and path.name in _METADATA


def merge(tree: Path, packages: Path) -> None:
    """Copy `tree` into `packages`. Raises BundleError when a file differs from that of another Python."""
    for path in sorted(tree.rglob("*")):
        target = packages / path.relative_to(tree)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        elif not target.exists():
            shutil.copyfile(path, target)
            if path.suffix == "" and path.stat().st_mode & 0o100 and _is_elf(path):
                target.chmod(0o755)  # the embedded server
        elif not filecmp.cmp(path, target, shallow=False):
            raise BundleError(f"{path.relative_to(tree)} is not the same for all of Python {', '.join(PYTHONS)}")


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def strip(packages: Path) -> None:
    """Without symbols, and scripts that nobody starts without their `#!`."""
    for path in sorted(packages.rglob("*")):
        if not path.is_file():
            continue
        if _is_elf(path):
            subprocess.run([tool("strip"), "--strip-unneeded", str(path)], check=True)
        elif path.suffix == ".py" and path.read_bytes().startswith(b"#!"):
            path.write_bytes(b"\n" + path.read_bytes().partition(b"\n")[2])  # the lines keep their numbers


def link_pythons(home: Path) -> None:
    """A venv for each Python: its bin/python3.N, its lib/python3.N/site-packages."""
    (home / "bin").mkdir(parents=True)
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    for version in PYTHONS:
        (home / "bin" / f"python{version}").symlink_to(f"../../../bin/python{version}")
        (home / "lib" / f"python{version}").mkdir()
        (home / "lib" / f"python{version}" / "site-packages").symlink_to("../site-packages")
