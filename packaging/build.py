"""Builds the packages: `build.py [--out DIR] [deb] [rpm]`; with --lock: writes requirements.lock anew.

What is built depends on the source tree, requirements.lock and SOURCE_DATE_EPOCH (else the time of the last commit,
else that of CHANGELOG.md) alone: two builds are the same byte for byte. It needs uv and nfpm (`make packages` brings
them), `strip` of binutils, a Python that the packages support, and the network only to fetch what requirements.lock
names.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import string
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "ctl"), str(HERE)]

import bundle  # noqa: E402
import documents  # noqa: E402

from limetaskd.version import __version__  # noqa: E402

RELEASE = "1"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
HOME = Path("usr/lib/limetaskd")
COMMANDS = ("limetaskd", "limetaskctl", "lime-task-handler", "limefu")
EXTRAS = ("redis", "embedded", "elasticsearch")
UNITS = ("limetaskd.service", "limetaskd@.service")
EXAMPLES = ("strict.conf", "credentials.conf")


class BuildError(Exception):
    """Something that the build needs is missing or wrong."""


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 1 with the reason."""
    parser = argparse.ArgumentParser(description="Build the deb and the rpm of limetaskd.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the packages (default: dist)")
    parser.add_argument("--lock", action="store_true", help="resolve the dependencies anew into requirements.lock")
    parser.add_argument("kinds", nargs="*", choices=["deb", "rpm", []], help="default: both")
    options = parser.parse_args(argv)
    try:
        if options.lock:
            bundle.lock(ROOT, EXTRAS)
            return 0
        for package in build(options.out, options.kinds or ["deb", "rpm"]):
            print(package)
    except (BuildError, bundle.BundleError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"build: {error.cmd[0]} failed with exit code {error.returncode}", file=sys.stderr)
        return 1
    return 0


def build(out: Path, kinds: list[str]) -> list[Path]:
    """The packages, in `out`. Raises BuildError, BundleError or CalledProcessError."""
    epoch = source_date(ROOT)
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise BuildError(f"packages are made on {' and '.join(ARCHITECTURES)}, and this is {machine}")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="limetaskd-build-") as folder:
        work = Path(folder)
        stage = work / "stage"
        bundle.make(ROOT, stage / HOME, work / "bundle", machine, epoch)
        add_commands(stage)
        add_units(stage)
        documents.add(ROOT, stage, __version__, RELEASE, epoch)
        normalise(stage, epoch)
        values = {
            "ARCH": ARCHITECTURES[machine],
            "VERSION": __version__,
            "RELEASE": RELEASE,
            "BUILD_TIME": documents.iso_time(epoch),
            "STAGE": str(stage),
            "CONFIG": str(ROOT / "etc"),
            "SCRIPTS": str(write_scripts(work / "scripts")),
        }
        description = work / "nfpm.yaml"
        # An unknown variable is an error here; nfpm would take it for empty.
        description.write_text(string.Template((HERE / "nfpm.yaml").read_text()).substitute(values))
        return [run_nfpm(kind, description, out, epoch) for kind in kinds]


def source_date(root: Path) -> int:
    """Seconds since the epoch that every file of the packages gets."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given:
        if not given.isdigit():
            raise BuildError(f"SOURCE_DATE_EPOCH={given!r} is not a number of seconds")
        return int(given)
    if (root / ".git").exists() and shutil.which("git"):
        seen = subprocess.run(
            ["git", "-C", str(root), "log", "-1", "--format=%ct"], capture_output=True, text=True, check=False
        )
        if seen.returncode == 0 and seen.stdout.strip().isdigit():
            return int(seen.stdout)
    return int((root / "CHANGELOG.md").stat().st_mtime)


def add_commands(stage: Path) -> None:
    """Launchers in bin (limefu's is an alternative), what they run in libexec, and the helpers of systemd."""
    home = stage / HOME
    for folder in (home / "bin", home / "libexec", stage / "usr/bin"):
        folder.mkdir(parents=True, exist_ok=True)
    launcher = (HERE / "bin" / "launcher").read_text()
    targets = bundle.scripts(ROOT)
    if set(targets) != set(COMMANDS):
        raise BuildError(f"pyproject.toml has the commands {sorted(targets)}, the packages {sorted(COMMANDS)}")
    for name, target in targets.items():
        module, _, function = target.partition(":")
        path = home / "bin" / name if name == "limefu" else stage / "usr/bin" / name
        path.write_text(launcher.replace("@NAME@", name))
        path.chmod(0o755)
        program = f"import sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
        (home / "libexec" / name).write_text(program)
    for name in ("end-leftovers", "upgrade-running"):
        shutil.copy(HERE / "bin" / name, home / "libexec")
        (home / "libexec" / name).chmod(0o755)


def add_units(stage: Path) -> None:
    units = stage / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    examples = stage / "usr/share/doc/limetaskd/examples"
    examples.mkdir(parents=True)
    for name in UNITS:
        shutil.copy(ROOT / "systemd" / name, units)
    for name in EXAMPLES:
        shutil.copy(ROOT / "systemd" / name, examples)


def write_scripts(folder: Path) -> Path:
    """The maintainer scripts, each with the shared functions (a file to source may have gone already)."""
    folder.mkdir()
    library = (HERE / "scripts" / "library.sh").read_text()
    for source in sorted((HERE / "scripts").glob("*.*.sh")):
        text = source.read_text().replace("@LIBRARY@\n", library)
        (folder / source.name).write_text(text)
    return folder


def normalise(stage: Path, epoch: int) -> None:
    """Modes 0755 and 0644, nobody's times."""
    for path in [stage, *stage.rglob("*")]:
        if path.is_symlink():
            os.utime(path, (epoch, epoch), follow_symlinks=False)
            continue
        executable = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if executable else 0o644)
    for path in sorted([stage, *stage.rglob("*")], reverse=True):
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def run_nfpm(kind: str, description: Path, out: Path, epoch: int) -> Path:
    """One package; its path."""
    machine = platform.machine()
    arch = ARCHITECTURES[machine] if kind == "deb" else machine
    joint = "_" if kind == "deb" else "-"
    last = f"_{arch}.deb" if kind == "deb" else f".{arch}.rpm"
    target = out.resolve() / f"limetaskd{joint}{__version__}-{RELEASE}{last}"
    subprocess.run(
        [bundle.tool("nfpm"), "package", "--config", str(description), "--packager", kind, "--target", str(target)],
        env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC"}, stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    return target


if __name__ == "__main__":
    sys.exit(main())
