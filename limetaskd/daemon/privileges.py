"""Becoming `limetaskd.user` before anything else happens, and the folders that only root can make."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from limetaskd.errors import LimetaskError
from limetaskd.plan.model import Plan


def account(name: str) -> pwd.struct_passwd:
    """Raises LimetaskError for an unknown user."""
    try:
        return pwd.getpwnam(name)
    except KeyError as error:
        raise LimetaskError(f"limetaskd.user: there is no user {name!r} on this host") from error


def prepare_folders(plan: Plan) -> None:
    """Make runtime_dir and state_dir (0750), owned by the user we become. Raises LimetaskError, saying which."""
    owner = account(plan.user) if plan.user is not None and os.geteuid() == 0 else None
    for key, folder in (("runtime_dir", plan.runtime_dir), ("state_dir", plan.state_dir)):
        path = Path(folder)
        try:
            path.mkdir(mode=0o750, parents=True, exist_ok=True)
            if key == "runtime_dir":
                # accepted.json is for every sender on the host; what is secret in here has mode 0600.
                path.chmod(0o755)
            (Path(plan.state_dir) / "log").mkdir(mode=0o750, parents=True, exist_ok=True)
            if owner is not None:
                for part in (path, Path(plan.state_dir) / "log"):
                    os.chown(part, owner.pw_uid, owner.pw_gid)
        except OSError as error:
            raise LimetaskError(
                f"limetaskd.{key}: {folder} cannot be used: {error.strerror}. Set limetaskd.{key} to a folder that "
                f"uid {os.geteuid()} may write"
            ) from error
        if owner is None and not os.access(folder, os.W_OK | os.X_OK):
            raise LimetaskError(f"limetaskd.{key}: {folder} is not writable for uid {os.geteuid()}")


def drop(user: str) -> None:
    """Become `user` with its groups. Raises LimetaskError when we are not root and not that user."""
    entry = account(user)
    if os.geteuid() == entry.pw_uid:
        return
    if os.geteuid() != 0:
        raise LimetaskError(f"limetaskd.user: only root can become {user!r}: start as root or as {user}")
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    os.environ.update({"HOME": entry.pw_dir, "USER": user, "LOGNAME": user})
