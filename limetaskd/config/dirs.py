"""Where the daemon keeps its sockets and its state, by the rules of the configuration (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from limetaskd.config.host import Host

NAME = "limetaskd"
# sun_path has 108 bytes, the last of them a zero.
MOST_SOCKET_BYTES = 107


def runtime_dir(configured: str | None, environ: Mapping[str, str], host: Host) -> str:
    """As configured, else $RUNTIME_DIRECTORY (the first), /run/limetaskd as root, $XDG_RUNTIME_DIR/limetaskd.

    Without $XDG_RUNTIME_DIR: /run/user/UID/limetaskd when that is there, else a folder of the user below `host.tmp`.
    """
    return configured or runtime_candidates(environ, host)[0]


def runtime_candidates(environ: Mapping[str, str], host: Host) -> list[str]:
    """All that `runtime_dir` may be for a process with this environment, and /run/limetaskd, best first."""
    found = []
    first = _first(environ.get("RUNTIME_DIRECTORY"))
    if first:
        found.append(first)
    if host.uid == 0:
        found.append(f"/run/{NAME}")
    if environ.get("XDG_RUNTIME_DIR", "").startswith("/"):
        found.append(f"{environ['XDG_RUNTIME_DIR'].rstrip('/')}/{NAME}")
    elif host.run_user is not None:
        found.append(f"{host.run_user}/{NAME}")
    found += [f"{host.tmp}/{NAME}-{host.uid}", f"/run/{NAME}"]
    return list(dict.fromkeys(found))


def state_dir(configured: str | None, environ: Mapping[str, str], host: Host) -> str:
    """As configured, else $STATE_DIRECTORY (the first), /var/lib/limetaskd as root, $XDG_STATE_HOME/limetaskd."""
    first = _first(environ.get("STATE_DIRECTORY"))
    if configured or first:
        return configured or first
    if host.uid == 0:
        return f"/var/lib/{NAME}"
    base = environ.get("XDG_STATE_HOME", "")
    return f"{base.rstrip('/')}/{NAME}" if base.startswith("/") else f"{host.home}/.local/state/{NAME}"


def _first(value: str | None) -> str:
    """systemd separates several directories by colons."""
    return (value or "").split(":")[0]


def embedded_socket(state: str) -> str:
    return f"{state.rstrip('/')}/embedded/valkey.sock"


def embedded_url(state: str, database: int) -> str:
    """The URL, for kombu and Celery, of a database of the embedded server.

    The path is escaped: kombu splits addresses at `;` and reads `+`, `?`, `#` and `%` as syntax.
    """
    return f"redis+socket://{quote(embedded_socket(state), safe='/')}?virtual_host={database}"


def too_long(path: str) -> int | None:
    """The bytes of a socket's path, when the kernel cannot take so many."""
    length = len(path.encode())
    return length if length > MOST_SOCKET_BYTES else None
