"""The systemd units without a systemd that runs: what systemd-analyze says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.packages.conftest import ROOT, tool
from tests.packages.system import Result, call

UNITS = ROOT / "systemd"
STRICT_BELOW = 2.0
OURS_BELOW = 7.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root folder with what the units need to name: programs, targets, and the account."""
    system = tmp_path / "usr/lib/systemd/system"
    system.mkdir(parents=True)
    for unit in UNITS.glob("*.service"):
        (system / unit.name).write_text(unit.read_text())
    host = next(path for path in map(Path, ("/usr/lib/systemd/system", "/lib/systemd/system")) if path.is_dir())
    for name in host.glob("*.target"):
        (system / name.name).write_bytes(name.read_bytes())
    for program in ("usr/bin/limetaskd", "usr/bin/limetaskctl", "usr/lib/limetaskd/libexec/end-leftovers"):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    return tmp_path


def drop_in(root: Path, unit: str, name: str) -> None:
    folder = root / f"etc/systemd/system/{unit}.d"
    folder.mkdir(parents=True)
    (folder / name).write_text((UNITS / name).read_text())


def analyze(root: Path, *words: str) -> Result:
    return call([tool("systemd-analyze"), *words, f"--root={root}"], check=False)


def exposure(root: Path, unit: str) -> float:
    found = analyze(root, "security", "--offline=true", "--no-pager", unit).output
    match = re.search(r"Overall exposure level for \S+ ([0-9.]+)", found)
    assert match, found
    return float(match.group(1))


@pytest.mark.parametrize("unit", ["limetaskd.service", "limetaskd@crm.service"])
@pytest.mark.parametrize("name", [None, "strict.conf", "credentials.conf"])
def test_every_line_is_known_to_systemd(unit: str, name: str | None, root: Path) -> None:
    if name is not None:
        drop_in(root, unit, name)
    # An unknown key is only a line of output: the exit code stays 0.
    assert analyze(root, "verify", "--man=no", unit).output == ""


@pytest.mark.parametrize("unit", ["limetaskd.service", "limetaskd@crm.service"])
def test_exposure(unit: str, root: Path) -> None:
    assert exposure(root, unit) < OURS_BELOW
    drop_in(root, unit, "strict.conf")
    assert exposure(root, unit) < STRICT_BELOW


def test_the_template_is_the_unit_with_names_of_its_own() -> None:
    plain, template = ((UNITS / name).read_text() for name in ("limetaskd.service", "limetaskd@.service"))
    service = plain.partition("\n[Service]\n")[2].replace("limetaskd/environment", "limetaskd/%i.environment")
    for folder in ("RuntimeDirectory", "StateDirectory", "LogsDirectory", "WorkingDirectory=/var/lib/"):
        service = re.sub(rf"({folder}=?)limetaskd$", r"\1limetaskd-%i", service, flags=re.MULTILINE)
    configuration = "Environment=LIMETASK_CONFIG=/etc/limetaskd/%i.yaml\n"
    service = service.replace("EnvironmentFile", f"{configuration}EnvironmentFile", 1)
    assert template.partition("\n[Service]\n")[2] == service
