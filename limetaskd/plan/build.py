"""The configuration into the plan that the daemon carries out: the same for `--check`, a start and a reload (pure)."""

from __future__ import annotations

from collections.abc import Mapping

from limetaskd.config import dirs
from limetaskd.config.checks import effective_limits, effective_times
from limetaskd.config.host import Host
from limetaskd.config.layout import lay_out
from limetaskd.config.load import LoadedConfig
from limetaskd.config.models import LimitsConfig, PoolConfig
from limetaskd.config.report import Report
from limetaskd.config.settings import make_settings
from limetaskd.errors import ConfigError
from limetaskd.plan.model import AutoscalePlan, ControlPlan, LimitsPlan, LoggingPlan, Plan, PoolPlan, RestartPlan


def build(
    loaded: LoadedConfig,
    environ: Mapping[str, str],
    *,
    embedded: bool = False,
    cpu_count: int | None = None,
    host: Host | None = None,
) -> Plan:
    """The plan of a configuration. Raises ConfigError with every problem.

    `environ`: prefix, suffix and directories. `cpu_count`: CPUs to share, else those of `host`. `host`: facts, else
    read here; a daemon that has changed its user passes those of its start, so that directories stay.
    """
    host = host or Host.read()
    report = loaded.report.fresh()
    daemon = loaded.limetaskd
    layout = lay_out(loaded.tasks, daemon, report)
    settings = make_settings(loaded, environ, host, embedded, report)
    runtime, state = str(settings.runtime_dir), str(settings.state_dir)
    control = ControlPlan(
        endpoint=daemon.control.endpoint or f"ipc://{runtime.rstrip('/')}/control.sock",
        mode=int(daemon.control.mode, 8),
        group=daemon.control.group,
    )
    _check_sockets(control.endpoint, runtime, state, embedded, daemon.supervisor_socket, report)
    _check_host(loaded, control, host, report)
    pools = _pools(loaded, layout.pools, cpu_count or host.cpus)
    if report.errors:
        raise ConfigError(report.errors)
    return Plan(
        settings=settings,
        strategy=daemon.strategy,
        pools=pools,
        beat_pool=layout.beat,
        python=daemon.python,
        runtime_dir=runtime,
        state_dir=state,
        control=control,
        logging=LoggingPlan(
            format=daemon.logging.format,
            level=daemon.logging.level,
            destination=daemon.logging.destination,
            max_size_bytes=daemon.logging.max_size,
            keep=daemon.logging.keep,
        ),
        restart=RestartPlan(
            initial_s=daemon.restart.initial,
            max_s=daemon.restart.max,
            intensity=daemon.restart.intensity,
            period_s=daemon.restart.period,
        ),
        user=daemon.user,
        supervisor_socket=daemon.supervisor_socket,
        preload=daemon.preload,
        embedded=embedded,
        host=host,
        config_file=loaded.file,
        warnings=(*loaded.warnings, *report.warnings),
    )


def _pools(
    loaded: LoadedConfig, layout: Mapping[str, tuple[tuple[str, ...], PoolConfig]], cpus: int
) -> tuple[PoolPlan, ...]:
    automatic = [name for name, (_, pool) in layout.items() if _wanted(loaded, pool) == "auto"]
    share, rest = divmod(cpus, len(automatic)) if automatic else (0, 0)
    shares = {name: share + (1 if index < rest else 0) for index, name in enumerate(automatic)}
    return tuple(
        _pool(loaded, name, queues, pool, max(1, shares.get(name, 1))) for name, (queues, pool) in layout.items()
    )


def _wanted(loaded: LoadedConfig, pool: PoolConfig) -> int | str:
    if pool.pool == "solo":
        return pool.workers
    return loaded.limetaskd.concurrency if pool.concurrency is None else pool.concurrency


def _pool(loaded: LoadedConfig, name: str, queues: tuple[str, ...], pool: PoolConfig, auto: int) -> PoolPlan:
    wanted = _wanted(loaded, pool)
    soft, hard = effective_times(loaded, pool)
    timeout = loaded.limetaskd.shutdown_timeout if pool.shutdown_timeout is None else pool.shutdown_timeout
    return PoolPlan(
        name=name,
        queues=queues,
        kind=pool.pool,
        concurrency=wanted if isinstance(wanted, int) else max(auto, pool.workers),
        workers=pool.workers,
        prefetch=pool.prefetch,
        time_limit_s=hard,
        soft_time_limit_s=soft,
        shutdown_timeout_s=timeout,
        limits=_limits(effective_limits(loaded.limetaskd.limits, pool.limits)),
        env=dict(pool.env),
        nice=pool.nice,
        autoscale=_autoscale(pool),
        shared=not isinstance(wanted, int),
    )


def _autoscale(pool: PoolConfig) -> AutoscalePlan | None:
    scale = pool.autoscale
    return None if scale is None else AutoscalePlan(scale.min, scale.max, scale.target_latency)


def _limits(limits: LimitsConfig) -> LimitsPlan:
    return LimitsPlan(
        memory_soft_bytes=limits.memory_soft,
        memory_hard_bytes=limits.memory_hard,
        worker_memory_bytes=limits.worker_memory,
        time_grace_s=limits.time_grace,
        sample_interval_s=limits.sample_interval,
    )


def _check_sockets(endpoint: str, runtime: str, state: str, embedded: bool, supervisor: bool, report: Report) -> None:
    runtime_key, state_key = ("limetaskd", "runtime_dir"), ("limetaskd", "state_dir")
    control = endpoint.removeprefix("ipc://")
    sockets = [
        (("limetaskd", "control", "endpoint") if not control.startswith(f"{runtime}/") else runtime_key, control),
        (runtime_key, f"{runtime}/channel.sock"),
    ]
    if supervisor:
        sockets.append((runtime_key, f"{runtime}/supervisor.sock"))
    if embedded:
        sockets.append((state_key, dirs.embedded_socket(state)))
    seen = set()
    for path, socket in sockets:
        length = dirs.too_long(socket)
        if length is not None and path not in seen:
            seen.add(path)
            report.error(
                path,
                f"the socket {socket} has a path of {length} bytes, and Linux takes {dirs.MOST_SOCKET_BYTES}:"
                " choose a shorter directory",
            )


def _check_host(loaded: LoadedConfig, control: ControlPlan, host: Host, report: Report) -> None:
    if host.uid == 0 and loaded.limetaskd.user is None:
        report.warn(("limetaskd", "user"), "task code runs as root: set user to one of its own")
    if control.mode & 0o007:
        report.warn(
            ("limetaskd", "control", "mode"),
            "every user of this host may control the daemon and its tasks",
            f"{control.mode:04o}",
        )
