"""The deb on a host without network: installed, upgraded, downgraded, removed, purged, its Python replaced."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from limetaskd.version import __version__
from tests.packages.conftest import NEWER, Packages, tool
from tests.packages.system import Root

MakeRoot = Callable[[str], Root]
SUITES = ["bookworm", "trixie"]
HOME = "/usr/lib/limetaskd"
CONFIGURATION = """
tasks: {routing: {qos: {asap: q_asap}}}
limetaskd: {user: limetaskd, imports: [crm_jobs], strategy: dedicated, application: edited}
"""


@pytest.fixture(params=SUITES)
def installed(request: pytest.FixtureRequest, make_root: MakeRoot, packages: Packages) -> Root:
    root = make_root(request.param)
    output = root.install(packages.deb).output
    assert "warning" not in output.lower(), output
    return root


def mode(root: Root, path: str) -> tuple[int, str, str]:
    """(mode, user, group) with the machine's own names."""
    owner, group = root.run("stat", "-c", "%U %G", path).output.split()
    return stat.S_IMODE(root.file(path).lstat().st_mode), owner, group


def test_what_is_installed(installed: Root) -> None:
    root = installed
    assert root.run("limetaskd", "--version").output == f"limetaskd {__version__}\n"
    assert root.run("limetaskctl", "--version").output == f"limetaskctl {__version__}\n"
    assert root.run("lime-task-handler", "--version").output == f"lime-task-handler {__version__}\n"
    assert root.run("limefu", "--version").output == f"limefu {__version__}\n"
    assert "lime_default_task_queue" in root.run("limetaskd", "--check").output
    assert root.run("readlink", f"{HOME}/bin/python").output == f"python{root.python}\n"
    assert "limetaskd" in root.run("id", "-gn", "limetaskd").output
    assert root.run("getent", "passwd", "limetaskd").output.strip().endswith(":/var/lib/limetaskd:/usr/sbin/nologin")
    assert mode(root, "/etc/limetaskd") == (0o750, "root", "limetaskd")
    assert mode(root, "/etc/limetaskd/limetaskd.yaml") == (0o640, "root", "limetaskd")
    assert mode(root, "/etc/limetaskd/environment") == (0o640, "root", "limetaskd")
    assert mode(root, "/var/lib/limetaskd") == (0o750, "limetaskd", "limetaskd")
    assert mode(root, "/var/log/limetaskd") == (0o750, "limetaskd", "limetaskd")
    # Byte code of this host's Python, so that starting is quick; nobody can write it later.
    tag = root.python.replace(".", "")
    assert list(root.file(f"{HOME}/lib/site-packages/limetaskd").glob(f"**/*.cpython-{tag}.pyc"))
    assert root.run("dpkg", "--verify", "limetaskd").output == ""
    # Nothing starts by itself before it is configured.
    assert not root.file("/etc/systemd/system/multi-user.target.wants/limetaskd.service").exists()


def test_upgrade_keeps_an_edited_configuration_and_downgrade_works(
    installed: Root, packages: Packages, newer: Packages
) -> None:
    root = installed
    for name in ("limetaskd.yaml", "environment"):
        path = root.file(f"/etc/limetaskd/{name}")
        path.write_text(CONFIGURATION if name == "limetaskd.yaml" else "LIMETASKD_OPTIONS=--embedded\n")
    root.file("/etc/limetaskd/limetaskd.yaml").chmod(0o600)
    root.write("/var/lib/limetaskd/scale.json", "{}")
    root.install(newer.deb)
    assert root.run("limetaskd", "--version").output == f"limetaskd {NEWER}\n"
    assert root.file("/etc/limetaskd/limetaskd.yaml").read_text() == CONFIGURATION
    assert mode(root, "/etc/limetaskd/limetaskd.yaml")[0] == 0o600
    assert "a comment of the later version" in root.file("/etc/limetaskd/limetaskd.yaml.dpkg-dist").read_text()
    assert root.file("/var/lib/limetaskd/scale.json").exists()
    assert "edited" in root.run("sh", "-c", "limetaskd --check --json").output
    # Back again: dpkg says so, and it works.
    assert "downgrading" in root.install(packages.deb).output
    assert root.run("limetaskd", "--version").output == f"limetaskd {__version__}\n"
    assert root.file("/etc/limetaskd/limetaskd.yaml").read_text() == CONFIGURATION
    assert root.run("dpkg", "--audit").output == ""


def test_remove_keeps_and_purge_forgets(installed: Root) -> None:
    root = installed
    root.write("/var/lib/limetaskd/log/asap:0.log", "a line\n")
    root.run("dpkg", "-r", "limetaskd")
    assert not root.file(HOME).exists(), list(root.file(HOME).rglob("*"))[:5]
    assert not root.file("/usr/bin/limefu").is_symlink()
    assert root.file("/etc/limetaskd/limetaskd.yaml").exists()
    assert root.file("/var/lib/limetaskd/log/asap:0.log").exists()
    root.run("dpkg", "-P", "limetaskd")
    for path in ("/etc/limetaskd", "/var/lib/limetaskd", "/var/log/limetaskd", HOME):
        assert not root.file(path).exists(), path
    assert list(root.file("/usr").rglob("*lime*")) == []


def test_a_host_with_its_own_limefu_keeps_it(make_root: MakeRoot, packages: Packages) -> None:
    root = make_root("bookworm")
    root.write("/opt/crm/bin/limefu", "#!/bin/sh\necho a CRM of its own\n")
    root.file("/opt/crm/bin/limefu").chmod(0o755)
    root.run("update-alternatives", "--install", "/usr/bin/limefu", "limefu", "/opt/crm/bin/limefu", "50")
    root.install(packages.deb)
    assert root.run("limefu").output == "a CRM of its own\n"
    root.run("update-alternatives", "--set", "limefu", f"{HOME}/bin/limefu")
    assert root.run("limefu", "--version").output == f"limefu {__version__}\n"
    root.run("dpkg", "-P", "limetaskd")
    assert root.run("limefu").output == "a CRM of its own\n"


def test_the_python_of_the_host_may_change(installed: Root) -> None:
    """An upgrade of the system takes python3.11 away and brings another: the trigger chooses again."""
    root = installed
    # Any interpreter that the bundle supports does; here, the same one by the name of another version is only a name.
    root.run("rm", f"{HOME}/bin/python")
    assert root.run("limetaskd", "--version").output == f"limetaskd {__version__}\n"
    root.run("dpkg-trigger", "--by-package=python3-minimal", "/usr/bin/python3")
    root.run("dpkg", "--triggers-only", "limetaskd")
    assert root.run("readlink", f"{HOME}/bin/python").output == f"python{root.python}\n"
    for name in (f"{HOME}/bin/python", *(f"{HOME}/bin/python3.{minor}" for minor in range(11, 15))):
        root.file(name).unlink(missing_ok=True)
    refused = root.run("limetaskd", "--version", check=False)
    assert refused.code == 1
    assert "no Python 3.11, 3.12, 3.13 or 3.14 in /usr/bin: install one" in refused.output


PROBE = '''
import json, sys
import celery, pydantic, redis, limetaskd
from limetaskd import task

@task(qos="asap", name="crm.probe")
def probe():
    return {"python": sys.prefix, "celery": celery.__file__, "pydantic": pydantic.VERSION, "redis": redis.__file__,
            "limetaskd": limetaskd.__file__}

print(json.dumps(probe()), file=sys.stderr)
'''


@pytest.mark.parametrize("suite", SUITES)
def test_workers_in_the_venv_of_the_application(suite: str, make_root: MakeRoot, packages: Packages) -> None:
    """Its own Celery and another pydantic win; limetaskd and a missing redis are found though not installed there."""
    root = make_root(suite)
    root.install(packages.deb)
    root.make_application(tool("uv"), "celery==5.7.0", "pydantic==2.12.5")
    root.write("/srv/crm/crm_jobs.py", PROBE)
    root.write("/etc/limetaskd/limetaskd.yaml", CONFIGURATION.replace(
        "limetaskd: {", "limetaskd: {python: /srv/crm/venv/bin/python, "))  # fmt: skip
    shown = root.run("sh", "-c", "cd /srv/crm && limefu tasks routes").output
    assert "crm.probe" in shown
    own = f"/srv/crm/venv/lib/python{root.python}/site-packages"
    assert '"python": "/srv/crm/venv"' in shown
    assert f'"celery": "{own}/celery/__init__.py"' in shown
    assert '"pydantic": "2.12.5"' in shown
    assert f'"limetaskd": "{HOME}/lib/site-packages/limetaskd/__init__.py"' in shown
    assert f'"redis": "{HOME}/lib/site-packages/redis/__init__.py"' in shown
    bundled = Path(root.file(f"{HOME}/lib/site-packages"))
    assert not list(bundled.glob("pydantic-2.12.5*"))
