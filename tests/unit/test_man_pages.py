"""The man pages name every command, every option and every key of the configuration."""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

from limetaskctl.commands import SUMMARIES
from limetaskctl.parser import build
from limetaskd.daemon.main import parser as daemon_parser
from limetaskd.worker.handler import _command
from limetaskd.worker.routes import parser as limefu_parser
from tests.unit.test_configuration_page import _rows

ROOT = Path(__file__).parents[2]


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("man", ROOT / "packaging" / "man.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """{name: its text without the escapes of roff}."""
    made: dict[str, str] = _module().pages(ROOT, "1.2.3", 1790000000)
    escapes = re.compile(r"\\f[BIR]|\\&|\\(?=-)")
    return {name: escapes.sub("", text) for name, text in made.items()}


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every option of a parser and of those of its commands."""
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield name
                yield from _options(sub)


def _missing(page: str, words: Iterator[str]) -> list[str]:
    return [word for word in words if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", page)]


def test_there_is_a_page_for_each_command_and_for_the_configuration(pages: dict[str, str]) -> None:
    assert set(pages) == {"limetaskd.8", "limetaskctl.1", "lime-task-handler.1", "limefu.1", "limetaskd.yaml.5"}
    for name, page in pages.items():
        assert page.startswith(f'.TH "{name.rpartition(".")[0].upper()}" "{name[-1]}" "2026-09-21" "limetaskd 1.2.3"')
        assert page.count(f'.SH "NAME"\n{name.rpartition(".")[0]} - ') == 1
        assert "\n@" not in page


def test_limetaskd(pages: dict[str, str]) -> None:
    assert _missing(pages["limetaskd.8"], _options(daemon_parser())) == []


@pytest.mark.parametrize("command", SUMMARIES)
def test_limetaskctl(command: str, pages: dict[str, str]) -> None:
    assert f'.SS "{command}' in pages["limetaskctl.1"]
    assert _missing(pages["limetaskctl.1"], _options(build(command))) == []


def test_limefu(pages: dict[str, str]) -> None:
    assert _missing(pages["limefu.1"], _options(limefu_parser())) == []


def test_lime_task_handler(pages: dict[str, str]) -> None:
    options = (
        option
        for parameter in _command(None, []).params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for option in (*parameter.opts, *parameter.secondary_opts)
    )
    assert _missing(pages["lime-task-handler.1"], options) == []


def test_the_configuration(pages: dict[str, str]) -> None:
    assert _missing(pages["limetaskd.yaml.5"], iter(_rows())) == []
