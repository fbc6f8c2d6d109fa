"""The text of a configuration file into plain data, with the line of every key.

YAML 1.1 with `None` as one more null, or JSON. A key given twice, a key that is not text and a syntax error are
found here, where their lines are known.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from limetaskd.errors import ConfigError

Path = tuple[str | int, ...]

NULL_WORDS = ("", "~", "null", "Null", "NULL", "None")


class Loader(yaml.SafeLoader):
    """YAML 1.1 where a bare `None` is null too."""


Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("None"), ["N"])


@dataclass
class Document:
    """What a file holds: `data`, the `lines` (from 1) of its keys and items, and `repeated` keys with both lines."""

    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    repeated: list[tuple[Path, int]] = field(default_factory=list)  # path, line of the first


def parse(text: str, name: str) -> Document:
    """Read `text` of the file `name`. Raises ConfigError, naming file, line and column, for text that is neither."""
    if name.endswith(".json"):
        return _parse_json(text, name)
    if text.lstrip().startswith("{"):
        # JSON under another name, or a YAML flow mapping; JSON may be indented with tabs, YAML may not.
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return _parse_yaml(text, name)
        return _parse_json(text, name)
    return _parse_yaml(text, name)


def parse_value(text: str) -> Any:
    """One value of the environment, as YAML. Raises ValueError without quoting it: it may be a secret."""
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError("is not a valid YAML value") from error


def _fail(name: str, what: str, line: int | None = None, column: int | None = None) -> NoReturn:
    place = name if line is None else f"{name}:{line}" if column is None else f"{name}:{line}:{column}"
    raise ConfigError([f"{place}: {what}"])


def _parse_json(text: str, name: str) -> Document:
    def refuse(word: str) -> NoReturn:
        _fail(name, f"{word} is no JSON value: give a number")

    repeated: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            keys = [key for key, _ in items]
            repeated.extend(key for key in result if keys.count(key) > 1)
        return result

    if not text.strip():
        return Document()
    try:
        data = json.loads(text, object_pairs_hook=pairs, parse_constant=refuse)
    except json.JSONDecodeError as error:
        _fail(name, f"not valid JSON: {error.msg}", error.lineno, error.colno)
    except RecursionError:
        _fail(name, "not usable JSON: nested too deeply")
    document = Document(data)
    try:
        # JSON is YAML but for tabs between the tokens, and a JSON string holds no bare tab: this finds the lines.
        node = yaml.compose(text.replace("\t", " "), Loader)
        if node is not None:
            _walk(node, (), document, name, {})
    except (yaml.YAMLError, RecursionError):
        document.lines.clear()
        document.repeated = [((key,), 0) for key in repeated]
    return document


def _parse_yaml(text: str, name: str) -> Document:
    document = Document()
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return document
        _walk(node, (), document, name, {})
        document.data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "cannot be read"
        if what.startswith("but ") and error.context:
            what = f"{error.context} {what}"
        hint = ": indent with spaces, not with tabs" if "'\\t'" in what else ""
        if "mapping values are not allowed" in what:
            hint = ": a colon is missing before this place, or a text with a colon needs quotes"
        _fail(name, f"not valid YAML: {what}{hint}", *((mark.line + 1, mark.column + 1) if mark else ()))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        _fail(name, f"not valid YAML: the character U+{int(error.character):04X} is not allowed", line)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        _fail(name, f"not usable YAML: {'nested too deeply' if isinstance(error, RecursionError) else error}")
    return document


def _walk(node: yaml.Node, path: Path, document: Document, name: str, seen: dict[int, bool]) -> None:
    """Note lines and repeated keys below `node`. `seen`: nodes already met, and whether we are still inside them."""
    if id(node) in seen:  # an alias: walked where it is first met only
        if seen[id(node)]:
            _fail(name, "an alias refers to what it stands in", node.start_mark.line + 1)
        return
    seen[id(node)] = True
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            document.lines.setdefault((*path, index), item.start_mark.line + 1)
            _walk(item, (*path, index), document, name, seen)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.tag != "tag:yaml.org,2002:str" or not isinstance(key_node, yaml.ScalarNode):
                if not isinstance(key_node, yaml.ScalarNode):
                    _fail(name, "a key must be text, not a list or a map", line)
                _fail(name, f'the key {key_node.value} is not text: put it in quotes, as in "{key_node.value}"', line)
            here = (*path, key_node.value)
            if key_node.value in first:
                document.repeated.append((here, first[key_node.value]))
            first.setdefault(key_node.value, line)
            document.lines[here] = line
            _walk(value, here, document, name, seen)
    seen[id(node)] = False
