"""What keys say together: limits against each other, workers against slots, the broker against what is asked of it."""

from __future__ import annotations

from limetaskd.config.layout import lay_out
from limetaskd.config.models import LimitsConfig, PoolConfig
from limetaskd.config.passthrough import check_passthrough
from limetaskd.config.report import Report
from limetaskd.config.source import Path
from limetaskd.config.unsupported import check_unsupported
from limetaskd.config.urls import AMQP_SCHEMES, scheme_of
from limetaskd.config.validate import Models
from limetaskd.core.units import format_duration, format_size


def check(models: Models, report: Report) -> None:
    """Report everything that is wrong between keys that are right by themselves."""
    lay_out(models.tasks, models.limetaskd, report)
    _check_times(models, report)
    _check_memory(("limetaskd", "limits"), models.limetaskd.limits, models.limetaskd.limits, report)
    for name, pool in models.limetaskd.pools.items():
        _check_pool(("limetaskd", "pools", name), pool, models, report)
    restart = models.limetaskd.restart
    if restart.initial > restart.max and not report.touches("limetaskd", "restart"):
        report.error(
            ("limetaskd", "restart", "initial"),
            f"must not be above limetaskd.restart.max ({format_duration(restart.max)})",
            format_duration(restart.initial),
        )
    check_unsupported(models, report)
    check_passthrough(models, report)


def effective_times(models: Models, pool: PoolConfig) -> tuple[float | None, float | None]:
    """Soft and hard time limit of a pool, in seconds: its own when given, a null included, else the general ones."""
    given = pool.model_fields_set
    soft = pool.soft_time_limit if "soft_time_limit" in given else models.tasks.task_soft_time_limit
    hard = pool.time_limit if "time_limit" in given else models.tasks.task_time_limit
    return soft, hard


def effective_limits(general: LimitsConfig, own: LimitsConfig) -> LimitsConfig:
    """The limits of a pool: its own where given, a null included, else the general ones."""
    return general.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})


def _check_times(models: Models, report: Report) -> None:
    soft, hard = models.tasks.task_soft_time_limit, models.tasks.task_time_limit
    if soft is not None and hard is not None and soft > hard:
        report.error(
            ("tasks", "task_soft_time_limit"),
            f"must not be above tasks.task_time_limit ({format_duration(hard)})",
            format_duration(soft),
        )


def _check_pool(path: Path, pool: PoolConfig, models: Models, report: Report) -> None:
    soft, hard = effective_times(models, pool)
    own = pool.model_fields_set & {"soft_time_limit", "time_limit"}
    if own and soft is not None and hard is not None and soft > hard:
        key = "soft_time_limit" if "soft_time_limit" in pool.model_fields_set else "time_limit"
        report.error(
            (*path, key),
            f"the soft limit {format_duration(soft)} of this pool is above its hard limit {format_duration(hard)}",
        )
    if pool.limits.model_fields_set:
        _check_memory((*path, "limits"), pool.limits, effective_limits(models.limetaskd.limits, pool.limits), report)
    _check_slots(path, pool, models, report)
    if pool.pool in ("threads", "solo") and soft is not None:
        report.warn((*path, "pool"), f"soft time limits do not work in a {pool.pool} pool")
    if pool.pool in ("threads", "solo") and hard is not None:
        report.warn((*path, "pool"), f"a {pool.pool} task above its time limit is ended with its whole worker")


def _check_slots(path: Path, pool: PoolConfig, models: Models, report: Report) -> None:
    own = pool.concurrency
    concurrency = models.limetaskd.concurrency if own is None else own
    if pool.pool == "solo":
        if isinstance(own, int) and own != pool.workers:
            report.error(
                (*path, "concurrency"),
                f"a solo worker runs one task at a time: set workers: {own}, and leave concurrency out",
                own,
            )
        if pool.autoscale is not None:
            report.error((*path, "autoscale"), "a solo worker runs one task at a time: use prefork")
        return
    if isinstance(concurrency, int) and pool.workers > concurrency:
        where = "its concurrency" if own is not None else "limetaskd.concurrency"
        report.error(
            (*path, "workers"),
            f"must not be above {where} ({concurrency}): concurrency counts the slots of the whole pool,"
            " and its workers share them",
            pool.workers,
        )
    scale = pool.autoscale
    if scale is None:
        return
    if scale.min > scale.max:
        report.error((*path, "autoscale", "min"), f"must not be above max ({scale.max})", scale.min)
    elif scale.min < pool.workers:
        report.error(
            (*path, "autoscale", "min"),
            f"must not be below workers ({pool.workers}): it counts the slots of the whole pool",
            scale.min,
        )
    if pool.pool != "prefork":
        report.error((*path, "autoscale"), f"the slots of a {pool.pool} pool are fixed at its start: use prefork")


def _check_memory(path: Path, given: LimitsConfig, limits: LimitsConfig, report: Report) -> None:
    soft, hard = limits.memory_soft, limits.memory_hard
    if soft is not None and hard is not None and soft > hard:
        key = "memory_soft" if "memory_soft" in given.model_fields_set else "memory_hard"
        report.error((*path, key), f"the soft limit {format_size(soft)} is above the hard limit {format_size(hard)}")


def check_broker(models: Models, broker_url: str, report: Report) -> None:
    """Some things exist on RabbitMQ only; `broker_url` is the one that will be used."""
    if scheme_of(broker_url) in AMQP_SCHEMES:
        return
    if models.limetaskd.ack_deadline is not None:
        report.warn(("limetaskd", "ack_deadline"), "without effect on Redis, which gives up on no consumer")
    if models.limetaskd.queue_type == "quorum":
        report.error(("limetaskd", "queue_type"), "quorum queues need RabbitMQ as the broker (amqp://)", "quorum")
