"""What comes from elsewhere: variables `LIMETASK_SECTION__KEY__SUBKEY`, and keys `x_file` that name a file with `x`.

Variables win over the file. Section and keys of a variable may be written in any case; a key of a free map
(categories, pools) is lower-cased when it is all capitals, unless the file already has it. A variable's value is the
text itself where text belongs, else YAML.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from limetaskd.config import shape
from limetaskd.config.models import ALIASES, LENIENT, SECTIONS
from limetaskd.config.report import Report, did_you_mean
from limetaskd.config.source import NULL_WORDS, Path, parse_value
from limetaskd.config.types import Variable

PREFIX = "LIMETASK_"
SUFFIX = "_file"
_MOST_SECRET_BYTES = 64 * 1024


def from_text(text: str, annotation: Any) -> Any:
    """The value that `text` means where `annotation` belongs. Raises ValueError, not quoting it."""
    if shape.is_text(annotation):
        return None if shape.nullable(annotation) and text.strip() in NULL_WORDS else text
    if shape.is_bool(annotation) and text.strip() in {"0", "1"}:
        return text.strip() == "1"
    return parse_value(text)


def read_secret(name: object, annotation: Any) -> Any:
    """The value in the file `name`, without one line end. Raises ValueError with the reason."""
    if not isinstance(name, str) or not FilePath(name).is_absolute():
        raise ValueError("must be the absolute path of a file that holds the value")
    shown = f"the file {name}"
    try:
        with FilePath(name).open("rb") as file:
            raw = file.read(_MOST_SECRET_BYTES + 1)
        text = raw.decode("utf-8")
    except OSError as error:
        raise ValueError(f"{shown} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown} is not UTF-8 text") from error
    if len(raw) > _MOST_SECRET_BYTES:
        raise ValueError(f"{shown} is larger than {_MOST_SECRET_BYTES} bytes")
    if text.endswith("\n"):
        text = text[:-1].removesuffix("\r")
    return from_text(text, annotation)


def secret_base(key: str, annotation: Any) -> str | None:
    """`x` when `key` is `x_file` and `x` is a key that `annotation` knows."""
    base = key.removesuffix(SUFFIX)
    if base == key or not base:
        return None
    model = shape.section_of(annotation)
    if model is not None:
        return base if base in model.model_fields and key not in model.model_fields else None
    # Settings passed through to Celery hold secrets too; categories, pools and environments are the operator's words.
    return base if shape.map_value(annotation) is not None and _is_open(annotation) else None


def _is_open(annotation: Any) -> bool:
    return Any in shape.options(shape.map_value(annotation))


def resolve_files(data: Any, annotation: Any, path: Path, report: Report) -> Any:
    """`data` with every `x_file` replaced by `x`."""
    if not isinstance(data, dict):
        return data
    result: dict[Any, Any] = {}
    for key, value in data.items():
        base = secret_base(key, annotation) if isinstance(key, str) else None
        here = (*path, key)
        if base is None:
            inner = shape.child(annotation, key)
            result[key] = value if inner is None else resolve_files(value, inner, here, report)
        elif base in data:
            report.error(here, f"{base} is given too: keep one of the two")
        elif value is not None:
            try:
                result[base] = read_secret(value, shape.child(annotation, base))
            except ValueError as error:
                report.error(here, str(error))
            else:
                report.hidden.add((*path, base))
                line = (report.spelled.get(str(path[0]), path[0]), *path[1:])
                if (*line, key) in report.lines:
                    report.lines[(*line, base)] = report.lines[(*line, key)]
    return result


def apply_environment(sections: Mapping[str, Any], environ: Mapping[str, str], report: Report) -> dict[str, Any]:
    """`sections` (by short name) with what the environment says. The shallowest variable is applied first."""
    result = copy.deepcopy(dict(sections))
    found: list[tuple[int, str, str, list[str]]] = []
    for variable in sorted(environ):
        parts = variable.split("__")
        if not variable.upper().startswith(PREFIX) or len(parts) < 2:
            continue
        section = parts[0][len(PREFIX) :].lower()
        section = ALIASES.get(section, section)
        if section in SECTIONS:
            found.append((len(parts), variable, section, parts[1:]))
        else:
            hint = did_you_mean(section, [*SECTIONS, *ALIASES])
            report.warnings.append(f"{variable}: ignored: there is no section {section or '(empty)'}.{hint}")
    seen: dict[Path, str] = {}
    for _, variable, section, keys in sorted(found, key=lambda item: item[:2]):
        _apply(result, section, keys, variable, environ[variable], report, seen)
    return result


def _apply(
    result: dict[str, Any], section: str, keys: list[str], variable: str, text: str, report: Report,
    seen: dict[Path, str],
) -> None:  # fmt: skip
    if result.get(section) is None:
        result[section] = {}
    holder: Any = result[section]
    annotation: Any = SECTIONS[section]
    path: Path = (section,)
    for index, word in enumerate(keys):
        last = index == len(keys) - 1
        key = _key(word, annotation, holder)
        base = secret_base(key, annotation) if last and key else None
        inner = shape.child(annotation, base or key) if key else None
        if inner is None or not (last or _has_keys(inner)):
            path, key, annotation = (path, key, annotation) if inner is None else ((*path, key), keys[index + 1], inner)
            _unknown(section, path, key, annotation, variable, report)
            return
        path = (*path, base or key)
        if not isinstance(holder, dict):  # the file has something else here: reported as a wrong type
            return
        if not last:
            if holder.get(key) is None:
                holder[key] = {}
            holder, annotation = holder[key], inner
    report.variables[path] = variable
    if path in seen:
        report.error(path, f"given by {seen[path]} too: keep one of the two")
        return
    seen[path] = variable
    try:
        holder[path[-1]] = read_secret(text, inner) if base else from_text(text, inner)
    except ValueError as error:
        report.error(path, str(error))
        return
    if base:
        report.hidden.add(path)


def _has_keys(annotation: Any) -> bool:
    return shape.section_of(annotation) is not None or shape.has_free_keys(annotation)


def _key(word: str, annotation: Any, holder: Any) -> str:
    """The key that `word` of a variable means."""
    if shape.section_of(annotation) is not None:
        return word.lower()
    if not word or not shape.has_free_keys(annotation):
        return ""
    if shape.map_key(annotation) == Variable:  # capitals mean capitals
        return word
    for existing in holder if isinstance(holder, dict) else ():
        if isinstance(existing, str) and existing.lower() == word.lower():
            return existing
    return word.lower() if word.isupper() else word


def _unknown(section: str, path: Path, key: str, annotation: Any, variable: str, report: Report) -> None:
    model = shape.section_of(annotation)
    if not _has_keys(annotation):
        # Only for this line: the key itself may have a value of its own in the file.
        report.found.append((math.inf, f"{variable}: {report.dotted(path)}: is not a map: no key below it can be set"))
        return
    here = (*path, key)
    report.variables[here] = variable
    known = {name: name.upper() for name in model.model_fields} if model else {}
    near = did_you_mean(key, list(known)) if key else ""
    for name in known:
        near = near.replace(f" {name}?", f" {PREFIX}{'__'.join([*map(str, path), name]).upper()}?")
    text = f"unknown key.{near or ' Known here: ' + ', '.join(sorted(known.values())) + '.'}"
    if section in LENIENT and len(path) == 1:
        report.warn(here, text)
    else:
        report.error(here, text)
