"""Plain data into models. What is wrong is reported key by key, and left out so that the rest is checked too."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from limetaskd.config import shape
from limetaskd.config.models import (
    ALIASES,
    LENIENT,
    SECTIONS,
    DaemonConfig,
    FeaturesConfig,
    ImporterConfig,
    TasksConfig,
)
from limetaskd.config.report import NOTHING, Report, did_you_mean
from limetaskd.config.source import Path

_MOST_ROUNDS = 20


@dataclass(frozen=True)
class Models:
    tasks: TasksConfig
    features: FeaturesConfig
    importer: ImporterConfig
    limetaskd: DaemonConfig


def split_sections(data: Mapping[Any, Any], report: Report) -> dict[str, Any]:
    """The known sections of a document by their short names; fills `report.spelled`."""
    result: dict[str, Any] = {}
    homes = {key: name for name, model in SECTIONS.items() for key in model.model_fields}
    for key, value in data.items():
        name = ALIASES.get(key, key) if isinstance(key, str) else key
        if name not in SECTIONS:
            hint = (
                f" It is a key of {homes[key]}: indent it below that."
                if key in homes
                else did_you_mean(str(key), [*SECTIONS, *ALIASES])
            )
            report.warn((str(key),), f"ignored: there is no such section.{hint}")
        elif name in report.spelled:
            report.error((key,), f"is the same section as {report.spelled[name]}: keep one of the two")
        else:
            report.spelled[name] = key
            result[name] = value
    return result


def validate(sections: Mapping[str, Any], report: Report) -> Models:
    """Models of all sections; a wrong value is reported and stands as its default."""
    built = {name: _section(name, model, sections.get(name), report) for name, model in SECTIONS.items()}
    return Models(**built)  # type: ignore[arg-type]


def _section(name: str, model: type[BaseModel], data: Any, report: Report) -> BaseModel:
    if data is None:
        data = {}
    if not isinstance(data, dict):
        report.error((name,), "must be a map: keys and values, indented below it", data)
        return model()
    if name in LENIENT:
        for key in data:
            if key not in model.model_fields:
                hint = did_you_mean(str(key), list(model.model_fields))
                report.warn((name, key), f"unknown key, ignored.{hint}")
    data = copy.deepcopy(data)
    for _ in range(_MOST_ROUNDS):
        try:
            return model.model_validate(data)
        except ValidationError as error:
            places: set[Path] = set()
            for detail in error.errors(include_url=False):
                place = _place(detail["loc"])
                if place not in places:
                    places.add(place)
                    _report(name, model, place, dict(detail), report)
            for place in sorted(places, key=_descending):
                _remove(data, place)
    return model()  # unreachable in practice: each round removes what was wrong


def _place(location: tuple[str | int, ...]) -> Path:
    # pydantic marks an error in a key of a map by a last element.
    return tuple(location[:-1]) if location and location[-1] == "[key]" else tuple(location)


def _descending(place: Path) -> tuple[int, ...]:
    """Deeper places first, later items of a list first."""
    return (-len(place), *(-item for item in place if isinstance(item, int)))


def _remove(holder: Any, place: Path) -> None:
    for key in place[:-1]:
        holder = holder[key]
    last: Any = place[-1] if place else None
    if place and (isinstance(holder, list) or last in holder):
        del holder[last]  # a list by its index


def _report(name: str, model: type[BaseModel], place: Path, detail: dict[str, Any], report: Report) -> None:
    path = (name, *place)
    if detail["type"] == "extra_forbidden":
        report.error(path, f"unknown key.{suggest_key(model, place)}")
        return
    value = detail["input"]
    if detail["loc"] and detail["loc"][-1] == "[key]":
        report.error(path, f"the key {_allowed(detail, False)}")
        return
    annotation: Any = model
    for key in place:
        annotation = shape.child(annotation, key)
    if value is None and not shape.nullable(annotation):
        report.error(path, "must have a value: leave the key out for its default", None)
        return
    report.error(path, _allowed(detail, report.variable(path) is None), value if place else NOTHING)


def suggest_key(model: type[BaseModel], place: Path) -> str:
    """What an unknown key was probably meant to be."""
    parent: Any = model
    for key in place[:-1]:
        parent = shape.child(parent, key)
    holder = shape.section_of(parent)
    word = str(place[-1])
    near = did_you_mean(word, list(holder.model_fields) if holder else [])
    if near:
        return near
    elsewhere = [
        f"{name}.{key}"
        for name, other in SECTIONS.items()
        for key in shape.known_keys(other)
        if key.rpartition(".")[2] == word
    ]
    if elsewhere:
        return f" Did you mean {elsewhere[0]}?"
    known = ", ".join(sorted(holder.model_fields)) if holder else ""
    return f" Known here: {known}."


def _allowed(detail: dict[str, Any], in_file: bool) -> str:
    """What is allowed, in words. `in_file`: quotes decide what a value is."""
    kind, value = detail["type"], detail["input"]
    context = detail.get("ctx", {})
    words = {
        "bool_type": "must be true or false" + (", without quotes" if in_file and isinstance(value, str) else ""),
        "int_type": "must be a whole number" + (", without quotes" if in_file and isinstance(value, str) else ""),
        "int_from_float": "must be a whole number",
        "string_type": "must be text" + (
            f': put it in quotes, as in "{value}"' if in_file and isinstance(value, (int, float)) else ""
        ),
        "string_too_short": "must not be empty",
        "list_type": "must be a list, such as [a, b]",
        "too_short": "must hold at least one item; leave the key out otherwise",
        "dict_type": "must be a map: keys and values",
        "model_type": "must be a map: keys and values",
        "model_attributes_type": "must be a map: keys and values",
        "recursion_loop": "must not contain itself",
    }  # fmt: skip
    if kind in words:
        return words[kind]
    for limit, word in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
        if limit in context:
            return f"must be a number of {word} {context[limit]}"
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", str(context["expected"]))
        near = did_you_mean(str(value), options)
        return f"must be one of {', '.join(options)}{near and '.'}{near}"
    return str(detail["msg"])
