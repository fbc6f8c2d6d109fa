"""Shell completion: three small scripts that all ask `limetaskctl __complete WORDS...` for the candidates.

So every shell offers the same, options always match the parser, and names of pools, workers and queues are those of
the running daemon. When it cannot be reached, no names are offered: completion is never in the way.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from limetaskctl.commands import SUMMARIES, load
from limetaskctl.errors import CtlError

ASK_S = 0.7

_BASH = r"""# bash completion of limetaskctl: source it, or install it in /usr/share/bash-completion/completions
_limetaskctl() {
    local line="${COMP_LINE:0:COMP_POINT}" cur head i
    local -a words
    # By white space alone: bash itself would break asap:0 and asap=4 into three words.
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    cur="${words[${#words[@]}-1]}"
    COMPREPLY=()
    while IFS=$'\t' read -r candidate _; do
        COMPREPLY+=("$candidate")
    done < <("${words[0]}" __complete "${words[@]:1}" 2>/dev/null)
    # What stands before bash's own break is not to be repeated.
    head=""
    [[ $COMP_WORDBREAKS == *:* && $cur == *:* ]] && head="${cur%"${cur##*:}"}"
    [[ $COMP_WORDBREAKS == *=* && $cur == *=* ]] && head="${cur%"${cur##*=}"}"
    for i in "${!COMPREPLY[@]}"; do
        COMPREPLY[i]="${COMPREPLY[i]#"$head"}"
    done
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -F _limetaskctl limetaskctl"""

_ZSH = r"""#compdef limetaskctl
# zsh completion of limetaskctl: source it after compinit, or install it as _limetaskctl in a directory of $fpath
_limetaskctl() {
    local line
    local -a values shown
    for line in "${(@f)$("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
        [[ -n $line ]] || continue
        values+=("${line%%$'\t'*}")
        shown+=("${line/$'\t'/  -- }")
    done
    (( ${#values} )) || return 1
    if [[ ${#values} -eq 1 && ${values[1]} == *= ]]; then
        compadd -S '' -- "${values[@]}"
    else
        compadd -l -d shown -- "${values[@]}"
    fi
}
if [[ ${funcstack[1]} == _limetaskctl ]]; then
    _limetaskctl "$@"
else
    compdef _limetaskctl limetaskctl
fi"""

_FISH = r"""# fish completion of limetaskctl: source it, or install it as ~/.config/fish/completions/limetaskctl.fish
function __limetaskctl_candidates
    set -l words (commandline -opc) (commandline -ct)
    command $words[1] __complete $words[2..-1] 2>/dev/null
end
complete -c limetaskctl -f -a '(__limetaskctl_candidates)'"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}

# Asks the daemon: (method, endpoint given on the line) -> result.
Ask = Callable[[str, str | None], dict[str, Any]]


def script(shell: str) -> str:
    """The completion script of `bash`, `zsh` or `fish`."""
    return _SCRIPTS[shell]


def candidates(words: list[str], options: argparse.ArgumentParser, ask: Ask) -> list[tuple[str, str]]:
    """What may stand instead of the last of `words` (those after `limetaskctl`): (word, what it is).

    `options`: a parser with the global options.
    """
    *before, current = words or [""]
    command, arguments, awaiting, endpoint = _read(before, options)
    if awaiting is not None:
        found = _values(awaiting, current, ask, endpoint)
    elif current.startswith("-"):
        found = _options(_parser(command, options), arguments)
    elif command is None:
        found = iter(SUMMARIES.items())
    else:
        found = _arguments(command, arguments, ask, endpoint)
    return [(word, about) for word, about in found if word.startswith(current)]


def _parser(command: str | None, options: argparse.ArgumentParser) -> argparse.ArgumentParser:
    if command is None:
        return options
    parser = argparse.ArgumentParser(add_help=True, parents=[options], conflict_handler="resolve")
    load(command).add_arguments(parser)
    return parser


def _read(
    before: list[str], options: argparse.ArgumentParser
) -> tuple[str | None, list[str], argparse.Action | None, str | None]:
    """The command, its arguments and options so far, the option whose value comes next, and --socket's value."""
    parser, command, arguments, endpoint = options, None, [], None
    awaiting: argparse.Action | None = None
    for word in before:
        if awaiting is not None:
            endpoint = word if "--socket" in awaiting.option_strings else endpoint
            awaiting = None
        elif word.startswith("--socket="):
            endpoint = word.removeprefix("--socket=")
        elif word.startswith("-"):
            arguments.append(word)
            action = _option(parser, word)
            awaiting = action if action is not None and action.nargs is None else None
        elif command is None and word in SUMMARIES:
            command, parser = word, _parser(word, options)
        else:
            arguments.append(word)
    return command, arguments, awaiting, endpoint


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.help != argparse.SUPPRESS]


def _option(parser: argparse.ArgumentParser, word: str) -> argparse.Action | None:
    return next((action for action in _actions(parser) if word in action.option_strings), None)


def _options(parser: argparse.ArgumentParser, given: list[str]) -> Iterator[tuple[str, str]]:
    for action in _actions(parser):
        if action.option_strings and not set(action.option_strings) & set(given):
            yield max(action.option_strings, key=len), action.help or ""


def _values(action: argparse.Action, current: str, ask: Ask, endpoint: str | None) -> Iterator[tuple[str, str]]:
    """Values of an option."""
    if "--socket" in action.option_strings:
        parent = Path(current) if current.endswith("/") else Path(current).parent
        prefix = "" if "/" not in current else current[: current.rindex("/") + 1]
        for path in sorted(parent.iterdir()) if parent.is_dir() else ():
            if path.is_dir():
                yield f"{prefix}{path.name}/", ""
            elif path.is_socket():
                yield f"{prefix}{path.name}", ""
    elif "--pool" in action.option_strings:
        yield from _pools(ask, endpoint)


def _arguments(command: str, given: list[str], ask: Ask, endpoint: str | None) -> Iterator[tuple[str, str]]:
    """Arguments of a command: names that the daemon knows, or the shells."""
    names = [word for word in given if not word.startswith("-")]
    if command in {"start", "stop", "restart"}:
        found = [*_pools(ask, endpoint), *_workers(ask, endpoint)]
        yield from (item for item in found if item[0] not in names)
    elif command in {"pause", "resume"}:
        yield from (item for item in _queues(ask, endpoint) if item[0] not in names)
    elif command == "scale":
        yield from ((f"{name}=", about) for name, about in _pools(ask, endpoint))
    elif names:
        return
    elif command in {"status", "drain", "why"}:
        yield from _pools(ask, endpoint)
    elif command == "logs":
        yield from _workers(ask, endpoint)
    elif command == "purge":
        yield from _queues(ask, endpoint)
    elif command == "completion":
        yield from ((shell, "") for shell in _SCRIPTS)


def _queues(ask: Ask, endpoint: str | None) -> Iterator[tuple[str, str]]:
    for queue in _ask(ask, "queues", "queues", endpoint):
        yield str(queue.get("name")), "queue"


def _pools(ask: Ask, endpoint: str | None) -> Iterator[tuple[str, str]]:
    for pool in _ask(ask, "status", "pools", endpoint):
        yield str(pool.get("name")), f"pool, {pool.get('state')}"


def _workers(ask: Ask, endpoint: str | None) -> Iterator[tuple[str, str]]:
    for pool in _ask(ask, "status", "pools", endpoint):
        workers = pool.get("workers")
        for worker in workers if isinstance(workers, list) else ():
            yield str(worker.get("name")), f"worker, {worker.get('state')}"


def _ask(ask: Ask, method: str, key: str, endpoint: str | None) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = ask(method, endpoint)[key]
        return found
    except (CtlError, KeyError):
        return []  # no daemon: nothing to offer, and nothing may be printed into the line that is being typed
