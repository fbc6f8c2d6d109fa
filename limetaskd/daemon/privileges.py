"""Becoming `limetaskd.user` before anything else happens, and the folders that only root can make."""

from __future__ import annotations

import grp
import os
import pwd
import sys
from pathlib import Path

from limetaskd.errors import LimetaskError
from limetaskd.plan.model import Plan


def account(name: str) -> pwd.struct_passwd:
    """Raises LimetaskError for an unknown user."""
    try:
        return pwd.getpwnam(name)
    except KeyError as error:
        raise LimetaskError(f"limetaskd.user: there is no user {name!r} on this host") from error


def host_problems(plan: Plan) -> list[str]:
    """What the plan names and this host does not have, one line each: found by `--check` as well as at the start."""
    problems = []
    if plan.user is not None:
        try:
            account(plan.user)
        except LimetaskError as error:
            problems.append(str(error))
    if plan.control.group is not None:
        try:
            grp.getgrnam(plan.control.group)
        except KeyError:
            problems.append(f"limetaskd.control.group: there is no group {plan.control.group!r} on this host")
    if plan.logging.destination != "stderr" and not Path(plan.logging.destination).parent.is_dir():
        problems.append(f"limetaskd.logging.destination: there is no folder {Path(plan.logging.destination).parent}")
    if plan.python is not None and not os.access(plan.python, os.X_OK):
        problems.append(f"limetaskd.python: {plan.python} is not there or cannot be executed")
    return problems


def prepare_folders(plan: Plan) -> None:
    """Make runtime_dir and state_dir (0750), owned by the user we become. Raises LimetaskError, saying which."""
    owner = account(plan.user) if plan.user is not None and os.geteuid() == 0 else None
    # accepted.json in runtime_dir is for every sender on the host; what is secret in there has mode 0600.
    folders = (
        ("runtime_dir", plan.runtime_dir, 0o755),
        ("state_dir", plan.state_dir, 0o750),
        ("state_dir", str(Path(plan.state_dir) / "log"), 0o750),
    )
    for key, folder, mode in folders:
        path = Path(folder)
        try:
            if not path.exists():
                path.mkdir(parents=True, exist_ok=True)
                path.chmod(mode)  # whatever the umask
            holder = path.lstat().st_uid
            if holder not in {0, os.geteuid(), owner.pw_uid if owner is not None else 0}:
                # Below /tmp anybody could have made it first, and would then own our sockets.
                raise LimetaskError(
                    f"limetaskd.{key}: {folder} belongs to uid {holder}: set limetaskd.{key} to a folder of this user"
                )
            if owner is not None:
                os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=not path.is_symlink())
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
    for path in (sys.executable, os.__file__, __file__):
        if not os.access(path, os.R_OK):
            raise LimetaskError(
                f"limetaskd.user: {user} cannot read {path}: install the interpreter and limetaskd where every user "
                "can read them"
            )
