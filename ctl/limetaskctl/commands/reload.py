"""`reload [--plan]`: reread the configuration and apply what changed; `--plan` only shows the difference."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from limetaskctl.render import View, clean

WAITS = True


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--plan", action="store_true", help="only show what would change")


def params(args: Namespace) -> dict[str, Any]:
    return {"plan": args.plan}


def render(result: dict[str, Any], _view: View) -> str:
    """`{"changed", "generation", "summary": [line], "diff"}`: the lines, under the generation that is in force."""
    generation = f"generation {clean(result['generation'])}"
    if not result["changed"]:
        return f"nothing changed ({generation})"
    return "\n".join([f"{generation}:", *(f"  {clean(line)}" for line in result["summary"])])
