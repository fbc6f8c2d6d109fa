"""The configuration into `core.settings.Settings`: what workers and senders are given (pure but for the host's facts).

A daemon gets them as a part of its plan; a sender that must read the file itself calls `resolve`.
"""

from __future__ import annotations

from collections.abc import Mapping

from limetaskd.config import dirs
from limetaskd.config.checks import check_broker
from limetaskd.config.host import Host
from limetaskd.config.layout import queue_names
from limetaskd.config.load import LoadedConfig
from limetaskd.config.report import Report
from limetaskd.config.types import MOST_NAME_BYTES
from limetaskd.config.urls import AMQP_SCHEMES, scheme_of
from limetaskd.core.names import Cluster
from limetaskd.core.settings import Queue, Routing, Settings
from limetaskd.errors import ConfigError

# Half of RabbitMQ's own consumer_timeout.
ACK_DEADLINE_S = 900.0


def resolve(
    loaded: LoadedConfig, environ: Mapping[str, str], *, embedded: bool = False, host: Host | None = None
) -> Settings:
    """The settings alone, for a sender. Raises ConfigError with every problem."""
    report = loaded.report.fresh()
    settings = make_settings(loaded, environ, host or Host.read(), embedded, report)
    if report.errors:
        raise ConfigError(report.errors)
    return settings


def make_settings(
    loaded: LoadedConfig, environ: Mapping[str, str], host: Host, embedded: bool, report: Report
) -> Settings:
    """The settings; problems go to `report`, which the caller looks at."""
    tasks, daemon = loaded.tasks, loaded.limetaskd
    cluster = Cluster.from_environment(environ)
    runtime = dirs.runtime_dir(daemon.runtime_dir, environ, host)
    state = dirs.state_dir(daemon.state_dir, environ, host)
    queues = make_queues(loaded, cluster, report)
    broker_url = dirs.embedded_url(state, 0) if embedded else tasks.broker_connection_string
    check_broker(loaded, broker_url, report)
    return Settings(
        application=daemon.application,
        broker_url=broker_url,
        backend_url=dirs.embedded_url(state, 1) if embedded else tasks.backend_connection_string,
        prefix=cluster.prefix,
        suffix=cluster.suffix,
        exchange=tasks.task_exchange_name,
        queues=queues,
        routing=Routing(tasks.task_queue_name, dict(tasks.routing.qos), dict(tasks.routing.tasks)),
        queue_type=daemon.queue_type,
        time_limit_s=tasks.task_time_limit,
        soft_time_limit_s=tasks.task_soft_time_limit,
        result_expires_s=tasks.result_expires or None,
        log_message_max_bytes=tasks.log_message_max_size,
        timezone=tasks.timezone,
        scheduled_tasks=tasks.enable_scheduled_tasks,
        delivery=daemon.delivery,
        publish_confirm=daemon.publish.confirm,
        publish_timeout_s=daemon.publish.timeout,
        max_deliveries=daemon.max_deliveries,
        imports=list(daemon.imports),
        app=daemon.app,
        celery=dict(daemon.celery),
        log_level=daemon.logging.level,
        log_format=daemon.logging.format,
        config_path=loaded.path,
        runtime_dir=runtime,
        state_dir=state,
        embedded=embedded,
        shutdown_timeout_s=daemon.shutdown_timeout,
        ack_deadline_s=(daemon.ack_deadline or ACK_DEADLINE_S) if scheme_of(broker_url) in AMQP_SCHEMES else None,
        orphan_timeout_s=daemon.orphan_timeout,
    )


def make_queues(loaded: LoadedConfig, cluster: Cluster, report: Report) -> list[Queue]:
    """Every configured queue once, as it is declared. Names that would meet on the broker are reported."""
    tasks, kind = loaded.tasks, loaded.limetaskd.queue_type
    queues: list[Queue] = []
    for name in queue_names(tasks):
        is_default = name == tasks.task_queue_name
        queue = Queue(
            name=name,
            actual=cluster.actual(name),
            exchange=tasks.task_exchange_name,
            exchange_type="topic" if kind == "quorum" else "direct",
            routing_key=cluster.routing_key(tasks.task_routing_key_name if is_default else name),
            queue_type=kind,
        )
        _check_queue(queue, queues, is_default, report)
        queues.append(queue)
    return queues


def _check_queue(queue: Queue, others: list[Queue], is_default: bool, report: Report) -> None:
    path = ("tasks", "task_queue_name") if is_default else ("tasks", "routing")
    if queue.actual.startswith("amq."):
        report.error(path, f"the queue {queue.actual}: RabbitMQ keeps names that begin with amq. for itself")
    for what, value in (("queue", queue.actual), ("routing key", queue.routing_key)):
        if len(value.encode()) > MOST_NAME_BYTES:
            report.error(path, f"with prefix and suffix the {what} {value} is longer than {MOST_NAME_BYTES} bytes")
    for other in others:
        if queue.routing_key == other.routing_key or queue.actual == other.actual:
            report.error(
                ("tasks", "task_routing_key_name"),
                f"the queues {other.name} and {queue.name} would both get the routing key {queue.routing_key},"
                " and so each other's tasks: choose another task_routing_key_name",
            )
