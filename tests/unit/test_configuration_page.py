"""docs/configuration.md names every key of the models, and no other, with the default that the models have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from limetaskctl.commands import LATER
from limetaskd.config import unsupported
from limetaskd.config.models import SECTIONS, PoolConfig, Section
from limetaskd.config.shape import map_value, section_of

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
_ROW = re.compile(r"^\| `([a-zA-Z0-9_.]+)` \| `(.*?)` \| ", re.MULTILINE)
_POOL = "limetaskd.pools.NAME"


def _rows() -> dict[str, Any]:
    return {key: yaml.safe_load(default) for key, default in _ROW.findall(PAGE.read_text())}


def _keys(model: type[Section], path: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation)
        here = f"{path}.{name}"
        required = field.default is not None  # a section that may be null is described in one row
        if inner is not None and issubclass(inner, Section) and required and not here.startswith(_POOL):
            yield from _keys(inner, here)
        else:
            yield here
        if here == "limetaskd.pools":
            assert map_value(field.annotation) is not None
            yield from _keys(PoolConfig, _POOL)


def test_every_key_is_described() -> None:
    expected = {key for name, model in SECTIONS.items() for key in _keys(model, name)}
    assert set(_rows()) == expected


def test_every_default_is_the_real_one() -> None:
    document: dict[str, Any] = {}
    pool: dict[str, Any] = {}
    for key, default in _rows().items():
        if key.startswith(f"{_POOL}."):
            pool[key.removeprefix(f"{_POOL}.")] = default
            continue
        *path, last = key.split(".")
        inner = document
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = default
    for name, model in SECTIONS.items():
        assert model.model_validate(document[name]) == model(), name
    assert PoolConfig.model_validate(pool) == PoolConfig()


def test_what_is_not_there_yet_is_said() -> None:
    """Every key of `unsupported.py` has the remark, so that it is removed together with the entry there."""
    text = PAGE.read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    said = {key for key, line in rows.items() if "not there yet" in line}
    daemon = {".".join(("limetaskd", *map(str, path))) for path in unsupported.DAEMON}
    pools = {".".join((_POOL, *map(str, path))) for path in unsupported.POOL}
    assert said == daemon | pools


def test_the_commands_that_are_to_come_are_named() -> None:
    text = (PAGE.parent / "operations.md").read_text().partition("## Not there yet")[2]
    named = re.search(r"Commands: (.*?)\.", text, re.DOTALL)
    assert named is not None
    assert set(re.findall(r"`(\w+)`", named[1])) == set(LATER)
