"""The entry: a file or a mapping, and the environment, into validated models. All errors at once.

Durations in the models are seconds, sizes bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limetaskd.config.checks import check
from limetaskd.config.models import SECTIONS
from limetaskd.config.overlay import apply_environment, resolve_files
from limetaskd.config.report import Report
from limetaskd.config.source import Document, parse
from limetaskd.config.validate import Models, split_sections, validate
from limetaskd.errors import ConfigError

VARIABLE = "LIMETASK_CONFIG"
DEFAULT_PATH = "/etc/limetaskd/limetaskd.yaml"
_MOST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class LoadedConfig(Models):
    """The models, and where they came from.

    `path`: the real path of the file; `file`: its absolute path as it was given, to be read again by a reload (a link
    may point elsewhere then); both None for a mapping. `name`: how messages call the source.
    """

    path: str | None
    file: str | None
    name: str
    warnings: tuple[str, ...]
    report: Report


def load(path: str | None, environ: Mapping[str, str]) -> LoadedConfig:
    """Read `path` (else $LIMETASK_CONFIG, else `DEFAULT_PATH`). Raises ConfigError with every problem."""
    chosen, how = find(path, environ)
    return _build(parse(_read(chosen, how), chosen), chosen, chosen, environ)


def load_mapping(mapping: Mapping[str, Any], environ: Mapping[str, str]) -> LoadedConfig:
    """The same for a mapping with the same sections; `{}` is all defaults. The environment wins over it."""
    return _build(Document(dict(mapping)), "the configuration mapping", None, environ)


def find(path: str | None, environ: Mapping[str, str]) -> tuple[str, str]:
    """The file to read, and words for who named it."""
    if path:
        return path, "given by --config"
    if environ.get(VARIABLE):
        return environ[VARIABLE], f"named by {VARIABLE}"
    return DEFAULT_PATH, f"the default; another is given by --config FILE or {VARIABLE}=FILE"


def _read(path: str, how: str) -> str:
    if not path.strip() or "\0" in path:
        raise ConfigError([f"{path!r}: not the path of a configuration file ({how})"])
    try:
        with Path(path).open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such configuration file ({how})"]) from None
    except IsADirectoryError:
        raise ConfigError([f"{path}: is a directory, not a configuration file ({how})"]) from None
    except PermissionError:
        raise ConfigError([f"{path}: may not be read by user {os.geteuid()}: check owner and mode ({how})"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror or error} ({how})"]) from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: is not UTF-8 text"]) from None
    if len(raw) > _MOST_BYTES:
        raise ConfigError([f"{path}: is larger than {_MOST_BYTES} bytes: not a configuration file ({how})"])
    return text


def _build(document: Document, name: str, file: str | None, environ: Mapping[str, str]) -> LoadedConfig:
    data = document.data
    if data is None:
        raise ConfigError([f"{name}: is empty: every key has a default, but write at least tasks: {{}}"])
    if not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else "text" if isinstance(data, str) else "one value"
        raise ConfigError([f"{name}: must be a map of sections ({', '.join(SECTIONS)}), not {kind}"])
    report = Report(name, lines=document.lines)
    sections = split_sections(data, report)
    for path, first in document.repeated:
        again = f" (first in line {first})" if first else ""
        report.error(path, f"is given twice{again}: keep one of the two")
    resolved = {
        section: resolve_files(value, SECTIONS[section], (section,), report) for section, value in sections.items()
    }
    models = validate(apply_environment(resolved, environ, report), report)
    check(models, report)
    if report.errors:
        raise ConfigError(report.errors)
    return LoadedConfig(
        tasks=models.tasks,
        features=models.features,
        importer=models.importer,
        limetaskd=models.limetaskd,
        path=None if file is None else os.path.realpath(file),
        file=None if file is None else os.path.abspath(file),  # noqa: PTH100 (links stay)
        name=name,
        warnings=tuple(report.warnings),
        report=report,
    )
