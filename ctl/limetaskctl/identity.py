"""Who runs this client, for the daemon's audit log. Declared, not proven: ZeroMQ over ipc:// does not tell."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def identity() -> dict[str, Any]:
    """`{"uid", "user", "pid"}`; `user` null for a uid without a name. With sudo the user is who called it."""
    import pwd

    uid = os.getuid()
    try:
        user: str | None = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = None
    sudo = os.environ.get("SUDO_USER")
    if sudo and sudo != user:
        user = f"{sudo} as {user}"
    return {"uid": uid, "user": user, "pid": os.getpid()}
