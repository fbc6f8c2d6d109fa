"""What the annotation of a key tells: is it a section, a map, a list, text, or something else (pure)."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel


def options(annotation: Any) -> list[Any]:
    """The types that `annotation` allows, without `Annotated` and unions."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return options(typing.get_args(annotation)[0])
    if origin in {typing.Union, types.UnionType}:
        return [option for item in typing.get_args(annotation) for option in options(item)]
    return [annotation]


def nullable(annotation: Any) -> bool:
    return type(None) in options(annotation)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The model, when the value is a map of known keys."""
    for option in options(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def map_value(annotation: Any) -> Any | None:
    """The type of the values, when the value is a map of free keys."""
    for option in options(annotation):
        if typing.get_origin(option) is dict:
            return typing.get_args(option)[1]
    return None


def map_key(annotation: Any) -> Any | None:
    """The type of the keys, when the value is a map of free keys."""
    for option in options(annotation):
        if typing.get_origin(option) is dict:
            return typing.get_args(option)[0]
    return None


def has_free_keys(annotation: Any) -> bool:
    """Whether the operator chooses the keys below."""
    return map_value(annotation) is not None or Any in options(annotation)


def is_list(annotation: Any) -> bool:
    return any(typing.get_origin(option) is list for option in options(annotation))


def is_container(annotation: Any) -> bool:
    """Whether null means the same as leaving the key out: the value is a map or a list."""
    if nullable(annotation):
        return False
    return section_of(annotation) is not None or map_value(annotation) is not None or is_list(annotation)


def is_text(annotation: Any) -> bool:
    """Whether every value is text, so that `42` in the environment means the text."""
    kinds = [option for option in options(annotation) if option is not type(None)]
    return all(
        kind is str
        or (typing.get_origin(kind) is Literal and all(isinstance(word, str) for word in typing.get_args(kind)))
        for kind in kinds
    )


def is_bool(annotation: Any) -> bool:
    return bool in options(annotation)


def child(annotation: Any, key: str | int) -> Any | None:
    """The annotation of `key` below `annotation`; None when there is no such key."""
    model = section_of(annotation)
    if model is not None:
        field = model.model_fields.get(str(key))
        # The annotation with its metadata off is enough: only kinds are asked for.
        return None if field is None else field.annotation
    value = map_value(annotation)
    if value is not None:
        return value
    for option in options(annotation):
        if option is Any:
            return Any
        if typing.get_origin(option) is list:
            return typing.get_args(option)[0] if isinstance(key, int) else None
    return None


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of `model` and the sections in it."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        inner = section_of(field.annotation)
        if inner is None:
            value = map_value(field.annotation)
            inner = None if value is None else section_of(value)
            if inner is not None:
                yield from known_keys(inner, f"{prefix}{name}.NAME.")
            continue
        yield from known_keys(inner, f"{prefix}{name}.")
