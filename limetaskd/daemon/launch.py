"""From the plan to the start of one process (pure): its command line, environment, spec and paths."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import limetaskd
from limetaskd.core.settings import Settings
from limetaskd.core.spec import SPEC_VARIABLE, ProcessSpec
from limetaskd.daemon.incarnation import Launch
from limetaskd.plan.diff import FOLLOWED_SETTINGS
from limetaskd.plan.model import Plan, PoolPlan
from limetaskd.version import __version__

BOOT = str(Path(limetaskd.__file__).with_name("boot.py"))
AGENT = "limetaskd:agent"
BROKER = "limetaskd:broker"
IMAGE = "limetaskd:image"
OURS = "limetaskd"  # in place of a pool's name
# The daemon waits this much longer than the process itself, which requeues what still runs at its own deadline.
STOP_MARGIN_S = 10.0
HELPER_STOP_S = 10.0
BOARD_SLOTS_MIN = 64
# Helpers run our code: those of another version are replaced, while workers run on until somebody restarts them.
# After an upgrade they are in any case (orphans.py).
HELPER: dict[str, object] = {"version": __version__}


@dataclass(frozen=True)
class Paths:
    """Everything below runtime_dir and state_dir that processes share."""

    runtime_dir: str
    state_dir: str

    def _under(self, base: str, *parts: str) -> str:
        return str(Path(base, *parts))

    @property
    def settings(self) -> str:
        return self._under(self.runtime_dir, "settings.json")

    @property
    def accepted(self) -> str:
        return self._under(self.runtime_dir, "accepted.json")

    @property
    def channel(self) -> str:
        return self._under(self.runtime_dir, "channel.sock")

    @property
    def supervisor(self) -> str:
        return self._under(self.runtime_dir, "supervisor.sock")

    @property
    def pidfile(self) -> str:
        return self._under(self.runtime_dir, "limetaskd.pid")

    @property
    def written(self) -> tuple[str, ...]:
        """Folders of small files that are written whole or not at all."""
        kept, postmortems = self._under(self.state_dir, "kept"), self._under(self.state_dir, "postmortem")
        return self.runtime_dir, self.processes, self.state_dir, kept, postmortems

    @property
    def folders(self) -> tuple[str, str]:
        """The same file in both, so that the change of one of them is noticed."""
        return self._under(self.runtime_dir, "folders.json"), self._under(self.state_dir, "folders.json")

    @property
    def boards(self) -> str:
        return self._under(self.runtime_dir, "boards")

    @property
    def processes(self) -> str:
        return self._under(self.runtime_dir, "processes")

    @property
    def logs(self) -> str:
        return self._under(self.state_dir, "log")

    @property
    def beat(self) -> str:
        return self._under(self.state_dir, "beat.json")

    @property
    def queues(self) -> str:
        return self._under(self.state_dir, "queues.json")

    @property
    def audit(self) -> str:
        return self._under(self.logs, "audit.log")

    @property
    def scale(self) -> str:
        return self._under(self.state_dir, "scale.json")

    @property
    def memory(self) -> str:
        return self._under(self.runtime_dir, "memory.json")

    @property
    def unstored(self) -> str:
        return self._under(self.state_dir, "unstored.json")

    def log(self, name: str) -> str:
        return self._under(self.logs, f"{name}.log")

    def board(self, name: str, generation: int) -> str:
        return self._under(self.boards, f"{name}.{generation}")

    def record(self, name: str, generation: int) -> str:
        return self._under(self.processes, f"{name}.{generation}.json")


def paths_of(plan: Plan) -> Paths:
    return Paths(plan.runtime_dir, plan.state_dir)


def node_name(plan: Plan, pool: str, index: int, generation: int) -> str:
    """Celery's node name without @host: unique over workers, restarts, and daemons that share host and vhost."""
    digest = hashlib.sha256(plan.runtime_dir.encode()).hexdigest()[:8]
    return f"{pool}.{index}.{generation}.{digest}"


def said(settings: Settings) -> dict[str, object]:
    """The settings that are not their defaults.

    So a version that has one setting more does not look like other settings to the workers that run.
    """
    found: dict[str, object] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if value != default:
            found[field.name] = value
    return found


def _fingerprint(plan: Plan, document: dict[str, object]) -> str:
    settings = {key: value for key, value in said(plan.settings).items() if key not in FOLLOWED_SETTINGS}
    text = json.dumps([settings, plan.python, document], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _launch(
    spec: ProcessSpec, env: dict[str, str], nice: int | None, python: str | None, *, shared_interpreter: bool = False
) -> Launch:
    argv = [python or sys.executable, BOOT, spec.kind, spec.name]
    if nice is not None:
        argv = ["nice", "-n", str(nice), *argv]
    return Launch(
        argv=tuple(argv),
        env={**env, SPEC_VARIABLE: spec.to_json()},
        log_path=spec.log,
        stop_timeout_s=spec.shutdown_timeout_s + STOP_MARGIN_S if spec.kind == "worker" else HELPER_STOP_S,
        board_path=spec.board,
        board_slots=max(BOARD_SLOTS_MIN, 4 * spec.concurrency) if spec.board else 0,
        fingerprint=spec.fingerprint,
        concurrency=spec.concurrency,
        spec=spec,
        nice=nice,
        # The environment of its own may be meant for its imports, which an image has behind it.
        # The agent runs in the daemon's interpreter, the image in that of the workers: only if they are one.
        forkable=not env and (spec.kind in {"worker", "beat"} or (spec.kind == "agent" and shared_interpreter)),
    )


def worker_launch(plan: Plan, pool: PoolPlan, index: int, generation: int) -> Launch:
    """Worker `index` of `pool`."""
    paths = paths_of(plan)
    name = f"{pool.name}:{index}"
    document: dict[str, object] = {
        "kind": pool.kind, "prefetch": pool.prefetch, "env": pool.env, "nice": pool.nice,
        "limits": [pool.time_limit_s, pool.soft_time_limit_s],
    }  # fmt: skip
    spec = ProcessSpec(
        kind="worker",
        name=name,
        pool=pool.name,
        generation=generation,
        settings=paths.settings,
        channel=paths.channel,
        log=paths.log(name),
        node=node_name(plan, pool.name, index, generation),
        queues=pool.queues,
        concurrency=pool.slots(index),
        pool_kind=pool.kind,
        prefetch=pool.prefetch,
        time_limit_s=pool.time_limit_s,
        soft_time_limit_s=pool.soft_time_limit_s,
        shutdown_timeout_s=pool.shutdown_timeout_s,
        board=paths.board(name, generation),
        record=paths.record(name, generation),
        fingerprint=_fingerprint(plan, document),
    )
    launch = _launch(spec, pool.env, pool.nice, plan.python)
    most = pool.autoscale.max if pool.autoscale is not None else pool.concurrency
    return dataclasses.replace(
        launch,
        board_slots=max(launch.board_slots, 2 * most),
        queues=tuple(plan.settings.queue(name).actual for name in pool.queues),
    )


def _helper_spec(plan: Plan, kind: str, name: str, pool: str, generation: int) -> ProcessSpec:
    """What the processes have in common that run our code alone."""
    paths = paths_of(plan)
    return ProcessSpec(
        kind=kind,
        name=name,
        pool=pool,
        generation=generation,
        settings=paths.settings,
        channel=paths.channel,
        log=paths.log(name),
        record=paths.record(name, generation),
        fingerprint=_fingerprint(plan, HELPER),
    )


def beat_launch(plan: Plan, pool_name: str, generation: int) -> Launch:
    """The schedule's process, which belongs to the pool that owns it."""
    pool = plan.pool(pool_name)
    spec = _helper_spec(plan, "beat", f"{pool_name}:beat", pool_name, generation)
    spec = dataclasses.replace(spec, state=paths_of(plan).beat)
    return _launch(spec, pool.env if pool else {}, None, plan.python)


def agent_launch(plan: Plan, generation: int) -> Launch:
    """The broker I/O of the daemon, in the daemon's own interpreter."""
    spec = _helper_spec(plan, "agent", AGENT, OURS, generation)
    return _launch(spec, {}, None, None, shared_interpreter=plan.python is None)


def image_launch(plan: Plan, generation: int) -> Launch:
    """The process that has imported everything and forks workers and the schedule."""
    # Without a record: it ends with its daemon, so that nobody has to find it.
    spec = dataclasses.replace(_helper_spec(plan, "image", IMAGE, OURS, generation), record=None)
    # It waits for requests in silence; one that does not answer them is ended where they are made.
    return dataclasses.replace(_launch(spec, {}, None, plan.python), silence_matters=False)


def broker_launch(plan: Plan, argv: list[str]) -> Launch:
    """The embedded server. It speaks no channel: `ping` tells when it is ready."""
    return Launch(
        argv=tuple(argv),
        env={},
        log_path=paths_of(plan).log(BROKER),
        stop_timeout_s=HELPER_STOP_S,
        reports=False,
    )
