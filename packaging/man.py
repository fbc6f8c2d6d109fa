"""Man pages from packaging/man/NAME.SECTION.md: prose by hand, options and keys from the programs themselves.

The source is a small part of Markdown: `# SECTION`, `## sub-section`, paragraphs, `term` / `: text` definitions,
code fenced by three backticks, lists with `* `, `code` and **bold**. A line `@options COMMAND` becomes that command's
options, as its own parser knows them; `@commands` the commands of limetaskctl; `@page FILE SECTIONS...` sections of a
page in docs, whose tables become definitions.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent / "man"


def pages(root: Path, version: str, epoch: int) -> dict[str, str]:
    """{"limetaskd.8": roff, ...}."""
    date = datetime.datetime.fromtimestamp(epoch, tz=datetime.UTC).strftime("%Y-%m-%d")
    found = {}
    for source in sorted(HERE.glob("*.md")):
        name, _, section = source.stem.rpartition(".")
        head = f'.TH "{name.upper()}" "{section}" "{date}" "limetaskd {version}" "limetaskd"\n'
        found[source.stem] = head + ".nh\n.ad l\n" + roff(expand(source.read_text(), root).splitlines())
    return found


def expand(text: str, root: Path) -> str:
    """The source with its `@` lines replaced."""
    lines = []
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "@options":
            lines += OPTIONS[rest]()
        elif word == "@commands":
            lines += ctl_commands()
        elif word == "@page":
            name, *sections = rest.split()
            lines += page((root / "docs" / name).read_text(), sections)
        else:
            lines.append(line)
    return "\n".join(lines)


# Options.


def definition(terms: str, text: str) -> list[str]:
    words = " ".join(text.split()) or "(no more to say)"
    return [terms, f": {words}", ""]


def argparse_options(parser: argparse.ArgumentParser) -> list[str]:
    """Every option and argument of a parser, as definitions."""
    lines = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):
            continue
        value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
        value = value if isinstance(value, str) else " ".join(value)
        if action.choices and not action.metavar:
            value = "|".join(map(str, action.choices))
        if action.option_strings:
            names = ", ".join(f"**{name}**" for name in action.option_strings)
            term = f"{names} {value}".strip() if action.nargs != 0 else names
        else:
            term = f"*{value}*"
        lines += definition(term, (action.help or "").replace("%(default)s", str(action.default)))
    return lines


def ctl_commands() -> list[str]:
    """The commands of limetaskctl with their own options."""
    from limetaskctl.commands import SUMMARIES
    from limetaskctl.parser import build, global_options

    common = {name for action in global_options()._actions for name in action.option_strings}
    lines = []
    for name in SUMMARIES:
        parser = build(name)._subparsers._group_actions[0].choices[name]  # type: ignore[union-attr,index,call-overload]
        own = argparse.ArgumentParser(add_help=False)
        own._actions = [
            action for action in parser._actions
            if not set(action.option_strings) & common and "--help" not in action.option_strings
        ]  # fmt: skip
        parser.color = False  # Python 3.14 would colour it on a terminal
        usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
        for option in ("[-h] ", "[-h]", "[--socket ENDPOINT] ", "[--json] ", "[--timeout S] ",
                       "[--socket ENDPOINT]", "[--json]", "[--timeout S]"):  # fmt: skip
            usage = usage.replace(option, "")
        summary = f"{SUMMARIES[name][0].upper()}{SUMMARIES[name][1:]}."
        lines += [f"## {' '.join(usage.split()).removeprefix('limetaskctl ')}", "", summary, ""]
        lines += argparse_options(own)
    return lines


def handler_options() -> list[str]:
    """lime-task-handler: Celery's options and ours, as click knows them, by group."""
    import click

    from limetaskd.worker.handler import _command

    groups: dict[str, list[str]] = {}
    context = click.Context(_command(None, []), info_name="lime-task-handler")
    for parameter in [*context.command.params, *_help(context)]:
        if not isinstance(parameter, click.Option) or parameter.hidden:
            continue
        names = ", ".join(f"**{name}**" for name in [*parameter.opts, *parameter.secondary_opts])
        value = "" if parameter.is_flag or parameter.count else f" {parameter.make_metavar(context)}"
        group = getattr(parameter, "help_group", None) or "Options"
        group = group if isinstance(group, str) else str(group)
        groups.setdefault(re.sub(r"^\d+\. ?", "", group), []).extend(
            definition(names + value, (parameter.help or "").replace("\b", "").replace("%%", "%"))
        )
    lines = []
    for group, options in groups.items():
        lines += [f"## {group}", "", *options]
    return lines


def _help(context: object) -> list[object]:
    option = context.command.get_help_option(context)  # type: ignore[attr-defined]
    return [option] if option is not None else []


def _limetaskd() -> list[str]:
    from limetaskd.daemon.main import parser

    return argparse_options(parser())


def _limetaskctl() -> list[str]:
    from limetaskctl.parser import build

    return argparse_options(build(None))


def _limefu() -> list[str]:
    from limetaskd.worker.routes import parser

    top = parser()
    tasks = top._subparsers._group_actions[0].choices["tasks"]  # type: ignore[union-attr,index,call-overload]
    routes = tasks._subparsers._group_actions[0].choices["routes"]
    return [*argparse_options(top), "## limefu tasks routes", "", *argparse_options(routes)]


OPTIONS: dict[str, Callable[[], list[str]]] = {
    "limetaskd": _limetaskd,
    "limetaskctl": _limetaskctl,
    "lime-task-handler": handler_options,
    "limefu": _limefu,
}


# Pages of docs.


def page(text: str, sections: Iterable[str]) -> list[str]:
    """The named `## sections` of a Markdown page (`-` = what stands before the first), tables as definitions."""
    wanted = set(sections)
    lines, current = [], "-"
    for line in text.splitlines():
        if line.startswith("# "):
            continue
        if line.startswith("## "):
            current = line.removeprefix("## ").strip()
            if current in wanted:
                lines += [f"## {current}", ""]
            continue
        if current not in wanted or re.fullmatch(r"\|[ |-]*\|", line):
            continue
        if line.startswith("| key "):
            continue
        if line.startswith("| "):
            key, default, meaning = (cell.strip() for cell in line.strip("|").split(" | ", 2))
            lines += definition(f"**{key.strip('`')}** (default {default})", meaning or "For the application.")
        elif line.startswith("### "):
            lines += [f"**{line.removeprefix('### ')}**", ""]
        else:
            lines.append(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line))
    return lines


# Roff.


def roff(lines: list[str]) -> str:
    """The body of the page."""
    out: list[str] = []
    fenced = False
    for line in lines:
        if line.startswith("```"):
            fenced = not fenced
            out.append(".PP\n.RS 4\n.nf" if fenced else ".fi\n.RE")
        elif fenced:
            out.append(_escape(line) or ".sp")
        elif line.startswith("# "):
            out.append(f'.SH "{_escape(line[2:])}"')
        elif line.startswith("## "):
            out.append(f'.SS "{_escape(line[3:])}"')
        elif line.startswith(": "):
            # The line before was the term.
            term = out.pop()
            out += [".TP", term, inline(line[2:])]
        elif line.startswith("* "):
            out += ['.IP "\\(bu" 2', inline(line[2:])]
        elif not line.strip():
            if out and not out[-1].startswith((".PP", ".SH", ".SS")):
                out.append(".PP")
        else:
            out.append(inline(line.strip()))
    text = "\n".join(out) + "\n"
    # A paragraph macro before another macro says nothing.
    text = re.sub(r"(\.PP\n)+(?=\.(TP|SH|SS|PP|IP)|\Z)", "", text)
    return re.sub(r"(?<=\n)(\.S[HS] [^\n]*\n)\.PP\n", r"\1", text)


def inline(text: str) -> str:
    """One line of prose: bold, italics and code."""
    parts = re.split(r"(`[^`]+`|\*\*[^*]+\*\*|(?<!\w)\*[^*\s][^*]*\*)", text)
    out = []
    for part in parts:
        if part.startswith("**") and part.endswith("**") and len(part) > 4:
            out.append(f"\\fB{_escape(part[2:-2], start=False)}\\fR")
        elif len(part) > 2 and part[0] == part[-1] and part[0] in "`*":
            out.append(f"\\f{'B' if part[0] == '`' else 'I'}{_escape(part[1:-1], start=False)}\\fR")
        else:
            out.append(_escape(part, start=not out))
    return "".join(out)


def _escape(text: str, *, start: bool = True) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    text = text.replace("~", "\\(ti").replace("^", "\\(ha").replace('"', "\\(dq")
    return f"\\&{text}" if start and text.startswith(".") else text


if __name__ == "__main__":
    # man.py ROOT VERSION EPOCH FOLDER: from the programs of the packages that the interpreter sees first.
    for page_name, page_text in pages(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])).items():
        Path(sys.argv[4], page_name).write_text(page_text)
