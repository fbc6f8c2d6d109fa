"""Where the daemon listens: `--socket`, the environment, then the usual places."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from limetaskctl.errors import UsageError

VARIABLE = "LIMETASKCTL_SOCKET"
_NAME = "control.sock"
_SYSTEM = "/run/limetaskd"
_MAX_PATH_BYTES = 107  # sun_path holds 108 with its end


def parse(text: str) -> str:
    """`ipc://PATH` of an endpoint or a plain path. Raises UsageError for anything else."""
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "ipc", text
    if scheme != "ipc":
        raise UsageError(f"socket {text!r}: only ipc:// endpoints and paths are available in this version")
    if not rest or "\0" in rest:
        raise UsageError(f"socket {text!r}: the path of a socket is missing")
    if len(os.fsencode(rest)) > _MAX_PATH_BYTES:
        raise UsageError(f"socket {text!r}: the path has more than {_MAX_PATH_BYTES} bytes, the most of a UNIX socket")
    return f"ipc://{rest}"


def path_of(endpoint: str) -> str:
    """The path of an `ipc://` endpoint; one that begins with `@` is in the abstract name space."""
    return endpoint.removeprefix("ipc://")


def default(environ: Mapping[str, str], uid: int, system: str = _SYSTEM, run_user: str = "/run/user") -> str:
    """The endpoint when `--socket` is not given.

    $LIMETASKCTL_SOCKET; else `control.sock` in the first of: $RUNTIME_DIRECTORY, /run/limetaskd (when the socket is
    there, or for root), $XDG_RUNTIME_DIR/limetaskd, /run/user/UID/limetaskd, <tmp>/limetaskd-UID.
    """
    if environ.get(VARIABLE):
        return parse(environ[VARIABLE])
    return parse(str(_directory(environ, uid, system, run_user) / _NAME))


def _directory(environ: Mapping[str, str], uid: int, system: str, run_user: str) -> Path:
    # systemd separates several directories with colons; the daemon uses the first as well.
    if runtime := environ.get("RUNTIME_DIRECTORY", "").split(":")[0]:
        return Path(runtime)
    if uid == 0 or _exists(Path(system, _NAME)):
        return Path(system)
    if runtime := environ.get("XDG_RUNTIME_DIR", ""):
        return Path(runtime, "limetaskd")
    if (home := Path(run_user, str(uid))).is_dir():
        return home / "limetaskd"
    from tempfile import gettempdir  # costs as much as all the rest of the client, and is rarely needed

    return Path(gettempdir(), f"limetaskd-{uid}")


def _exists(path: Path) -> bool:
    """Whether `path` is there. A directory that may not be entered hides it: then the answer is no."""
    try:
        return path.exists()
    except PermissionError:
        return False
