"""What the commands share: read the configuration here, become the application's interpreter there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import limetaskd
from limetaskd.errors import ConfigError

if TYPE_CHECKING:
    from limetaskd.plan.model import Plan

EXIT_FAILED, EXIT_USAGE = 1, 2
_CONFIG = "--config"


def split_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """(`--config FILE`, the other arguments). Raises ConfigError when the file's name is missing."""
    path: str | None = None
    rest: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument == "--":
            rest += [argument, *left]
            break
        if argument == _CONFIG:
            if not left:
                raise ConfigError([f"{_CONFIG} needs the path of a file"])
            path = left.pop(0)
        elif argument.startswith(f"{_CONFIG}="):
            path = argument.partition("=")[2]
        else:
            rest.append(argument)
    return path, rest


def run(kind: str, command: str, arguments: list[str]) -> NoReturn:
    """Become `boot.py KIND` under `limetaskd.python`. Configuration errors: their lines on stderr, exit code 2."""
    # `--help` and `--version` explain the command also where nothing is configured yet.
    informative = any(argument in ("--help", "--version") for argument in arguments)
    try:
        path, rest = split_config(arguments)
        if informative:
            become(command, sys.executable, [kind, "--", *rest])
        plan = _read(path)
    except ConfigError as error:
        sys.stderr.writelines(f"{command}: {line}\n" for line in error.problems)
        sys.exit(EXIT_USAGE)
    sys.stderr.writelines(f"{command}: warning: {line}\n" for line in plan.warnings)
    # Not in the environment and not on disk: the settings hold passwords.
    descriptor = os.memfd_create("limetaskd-settings", 0)
    os.write(descriptor, plan.settings.to_json().encode())
    become(command, plan.python or sys.executable, [kind, "--settings", f"/proc/self/fd/{descriptor}", "--", *rest])


def _read(path: str | None) -> Plan:
    """Raises ConfigError."""
    from limetaskd.config.load import load
    from limetaskd.plan.build import build

    return build(load(path, os.environ), os.environ)


def become(command: str, python: str, arguments: list[str]) -> NoReturn:
    """Replace this process."""
    boot = str(Path(limetaskd.__file__).with_name("boot.py"))
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(python, [python, boot, *arguments])
    except OSError as error:
        sys.stderr.write(f"{command}: cannot start the interpreter {python} (limetaskd.python): {error.strerror}\n")
        sys.exit(EXIT_FAILED)
