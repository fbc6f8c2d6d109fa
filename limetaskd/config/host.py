"""Facts of this host and this process that a plan depends on: read once at the edge, passed in everywhere else."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Host:
    """`uid`: the effective user at the start, before `user` is taken on. `cpus`: those this process may use."""

    uid: int
    home: str
    tmp: str
    cpus: int
    run_user: str | None  # /run/user/UID, when it is there

    @classmethod
    def read(cls) -> Host:
        uid = os.geteuid()
        run_user = f"/run/user/{uid}"
        return cls(
            uid=uid,
            home=str(Path("~").expanduser()),
            tmp=tempfile.gettempdir(),
            cpus=usable_cpus(),
            run_user=run_user if os.access(run_user, os.W_OK | os.X_OK) else None,
        )


def usable_cpus(cgroup_file: str = "/proc/self/cgroup", cgroup_root: str = "/sys/fs/cgroup") -> int:
    """CPUs that this process may use: its affinity, and the smallest `cpu.max` quota above it, rounded up."""
    cpus = len(os.sched_getaffinity(0))
    quota = cpu_quota(cgroup_file, cgroup_root)
    return cpus if quota is None else max(1, min(cpus, -int(-quota // 1)))


def cpu_quota(cgroup_file: str, cgroup_root: str) -> float | None:
    """The smallest quota, in CPUs, of the cgroup (v2) and all above it; None: no limit, or no such cgroup."""
    try:
        lines = Path(cgroup_file).read_text().splitlines()
    except OSError:
        return None
    group = next((line[3:] for line in lines if line.startswith("0::")), None)
    if group is None:
        return None
    quotas = []
    root = Path(cgroup_root)
    folder = root / group.strip("/")
    for place in (folder, *folder.parents):
        quota = _quota_of(place)
        if quota is not None:
            quotas.append(quota)
        if place == root:
            break
    return min(quotas, default=None)


def _quota_of(folder: Path) -> float | None:
    try:
        limit, period = (folder / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None  # the root has no such file; an unreadable one limits nothing that we know of
