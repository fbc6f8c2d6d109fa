"""What goes with the programs: man pages, completion, copyright, changelogs, lintian's overrides."""

from __future__ import annotations

import datetime
import email.utils
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from email.parser import HeaderParser
from pathlib import Path

from limetaskctl.completion import script

HERE = Path(__file__).resolve().parent
MAINTAINER = "the limetaskd authors <maintainers@limetaskd.invalid>"
PACKAGES = "usr/lib/limetaskd/lib/site-packages"
_COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/limetaskctl",
    "zsh": "usr/share/zsh/vendor-completions/_limetaskctl",
    "fish": "usr/share/fish/vendor_completions.d/limetaskctl.fish",
}
_ENTRY = re.compile(r"^## \[?([^\]\n:]+)\]?(?::? ?-? ?(\S+))?\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def iso_time(epoch: int) -> str:
    return datetime.datetime.fromtimestamp(epoch, tz=datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def add(root: Path, stage: Path, version: str, release: str, epoch: int) -> None:
    """Write all of it below `stage`."""
    docs = stage / "usr/share/doc/limetaskd"
    docs.mkdir(parents=True, exist_ok=True)
    for name, page in man_pages(root, stage / PACKAGES, version, epoch).items():
        section = name.rpartition(".")[2]
        # limefu is an alternative, and its page goes with it.
        where = "usr/lib/limetaskd/share" if name == "limefu.1" else f"usr/share/man/man{section}"
        compress(stage / where / f"{name}.gz", page)
    for shell, place in _COMPLETIONS.items():
        write(stage / place, script(shell) + "\n")
    write(docs / "copyright", copyright_of(root, stage / PACKAGES))
    compress(docs / "changelog.gz", (root / "CHANGELOG.md").read_text())
    compress(docs / "changelog.Debian.gz", debian_changelog(root, version, release, epoch))
    write(stage / "usr/share/lintian/overrides/limetaskd", (HERE / "lintian-overrides").read_text())
    for page in ("install", "operations", "configuration", "limetaskctl", "task-library"):
        shutil.copyfile(root / "docs" / f"{page}.md", docs / f"{page}.md")


def man_pages(root: Path, packages: Path, version: str, epoch: int) -> dict[str, str]:
    """{name: roff}, made with the bundled packages: their options are Celery's of that version."""
    with tempfile.TemporaryDirectory(prefix="limetaskd-man-") as folder:
        subprocess.run(
            [sys.executable, str(HERE / "man.py"), str(root), version, str(epoch), folder],
            env={**os.environ, "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"},
            check=True,
        )
        return {path.name: path.read_text() for path in sorted(Path(folder).iterdir())}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def compress(path: Path, text: str) -> None:
    """gzip without name and time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def debian_changelog(root: Path, version: str, release: str, epoch: int) -> str:
    """The newest entry of CHANGELOG.md in Debian's form."""
    found = _ENTRY.search((root / "CHANGELOG.md").read_text())
    items = re.findall(r"^- (.*(?:\n  .*)*)", found.group(3), re.MULTILINE) if found else []
    lines = [f"limetaskd ({version}-{release}) stable; urgency=medium", ""]
    for item in items:
        words = " ".join(item.replace("`", "").split())
        lines += _wrap(words)
    lines += ["", f" -- {MAINTAINER}  {email.utils.format_datetime(_utc(epoch))}", ""]
    return "\n".join(lines)


def _utc(epoch: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(epoch, tz=datetime.UTC)


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 78, initial_indent="  * ", subsequent_indent="    ", break_long_words=False)


def copyright_of(root: Path, packages: Path) -> str:
    """Debian's machine-readable form: limetaskd's licence, then each bundled package with its own."""
    licence = (root / "LICENSE").read_text()
    holder = next(line for line in licence.splitlines() if line.startswith("Copyright"))
    blocks = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        "Upstream-Name: limetaskd\n"
        "Comment: /usr/lib/limetaskd/lib/site-packages holds the packages named below, each with its licence files\n"
        " in its .dist-info folder.",
        f"Files: *\nCopyright: {holder.removeprefix('Copyright (c) ')}\nLicense: BSD-3-Clause\n{_indent(licence)}",
    ]
    for folder in sorted(packages.glob("*.dist-info")):
        name, version, licence_name, author = _metadata(folder)
        if name == tomllib.loads((root / "pyproject.toml").read_text())["project"]["name"]:
            continue
        texts = [path.relative_to(packages) for path in sorted(folder.rglob("*")) if _is_licence(path)]
        where = "".join(f"\n /usr/lib/limetaskd/lib/site-packages/{text}" for text in texts)
        blocks.append(
            f"Files: usr/lib/limetaskd/lib/site-packages/{name.replace('-', '_').lower()}*\n"
            f"Copyright: {author}\nLicense: {licence_name}\nComment: {name} {version}.{where}"
        )
    return "\n\n".join(blocks) + "\n"


def _is_licence(path: Path) -> bool:
    return path.is_file() and re.match(r"(licen[cs]e|copying|notice|authors)", path.name, re.IGNORECASE) is not None


def _metadata(folder: Path) -> tuple[str, str, str, str]:
    """Name, version, licence, author of a bundled package."""
    headers = HeaderParser().parsestr((folder / "METADATA").read_text())
    licence = headers.get("License-Expression") or headers.get("License") or ""
    if not licence or "\n" in licence or len(licence) > 60:
        kinds = [value.split("::")[-1].strip() for key, value in headers.items()
                 if key == "Classifier" and value.startswith("License ::")]  # fmt: skip
        licence = " or ".join(kinds) or "see-its-licence-file"
    author = headers.get("Author") or headers.get("Author-email") or headers.get("Maintainer") or "its authors"
    short = re.sub(r"[^A-Za-z0-9.+-]+", "-", licence).strip("-")
    return headers["Name"], headers["Version"], short, " ".join(author.split())


def _indent(text: str) -> str:
    return "\n".join(f" {line}" if line.strip() else " ." for line in text.rstrip().splitlines())
