"""`limetaskd.celery`: settings that are passed through win. Those that break a promise get a warning."""

from __future__ import annotations

from typing import Any

from limetaskd.config.report import Report, is_secret
from limetaskd.config.validate import Models

_OTHER_KEY = "wins over {}: set that key instead, so that limetaskd knows it too"
_ROUTES = "breaks the routing and the isolation of clusters: use tasks.routing"
_NAMES = "breaks the isolation of clusters that share a broker"
_SHARES = "breaks the slots of the pools: set them in limetaskd.pools"

# Setting -> what is broken, and the values that break nothing.
BREAKS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "broker_url": (_OTHER_KEY.format("tasks.broker_connection_string"), ()),
    "broker_read_url": (_OTHER_KEY.format("tasks.broker_connection_string"), ()),
    "broker_write_url": (_OTHER_KEY.format("tasks.broker_connection_string"), ()),
    "result_backend": (_OTHER_KEY.format("tasks.backend_connection_string"), ()),
    "result_expires": (_OTHER_KEY.format("tasks.result_expires"), ()),
    "timezone": (_OTHER_KEY.format("tasks.timezone"), ()),
    "enable_utc": ("changes how times of sending and the schedule are read", (True,)),
    "task_time_limit": (_OTHER_KEY.format("tasks.task_time_limit"), ()),
    "task_soft_time_limit": (_OTHER_KEY.format("tasks.task_soft_time_limit"), ()),
    "task_routes": (_ROUTES, ()),
    "task_queues": (_ROUTES, ()),
    "task_default_queue": (_ROUTES, ()),
    "task_default_exchange": (_ROUTES, ()),
    "task_default_exchange_type": (_ROUTES, ()),
    "task_default_routing_key": (_ROUTES, ()),
    "task_default_queue_type": (_OTHER_KEY.format("limetaskd.queue_type"), ()),
    "task_create_missing_queues": ("breaks headers that name a queue which is not configured", (True,)),
    "control_exchange": (_NAMES, ()),
    "event_exchange": (_NAMES, ()),
    "event_queue_prefix": (_NAMES, ()),
    "result_exchange": (_NAMES, ()),
    "result_backend_transport_options": (_NAMES + " when it changes global_keyprefix", ()),
    "task_acks_late": (
        "a task that runs when its worker dies is lost when this is false: limetaskd.delivery decides it", ()
    ),
    "task_reject_on_worker_lost": ("a task that runs when its worker dies is lost when this is false", (True,)),
    "task_acks_on_failure_or_timeout": ("a task that failed or ran out of time runs again", (True,)),
    "task_default_delivery_mode": ("tasks that wait are lost when the broker restarts", (2, "persistent")),
    "task_publish_retry": (_OTHER_KEY.format("limetaskd.publish.timeout"), (True,)),
    "task_publish_retry_policy": (_OTHER_KEY.format("limetaskd.publish.timeout"), ()),
    "task_always_eager": ("tasks run in the sender and never reach a worker", (False,)),
    "task_protocol": ("routing headers and the user of a task need protocol 2", (2,)),
    "worker_prefetch_multiplier": ("workers idle while tasks are reserved elsewhere: use prefetch of a pool", (1,)),
    "worker_disable_prefetch": ("changes what limetaskd knows of reserved tasks: use prefetch of a pool", ()),
    "worker_concurrency": (_SHARES, ()),
    "worker_pool": (_SHARES, ()),
    "worker_autoscaler": (_SHARES, ()),
    "worker_hijack_root_logger": ("changes the log contract", ()),
    "worker_redirect_stdouts": ("changes the log contract", ()),
    "worker_log_format": ("changes the log contract", ()),
    "worker_task_log_format": ("changes the log contract", ()),
    "worker_enable_remote_control": ("revoke and inspect do not work when this is false", (True,)),
    "beat_scheduler": ("breaks the single owner of the schedule", ()),
    "beat_schedule_filename": ("is set by the daemon for the owner of the schedule", ()),
}  # fmt: skip


def check_passthrough(models: Models, report: Report) -> None:
    """Warn of each Celery setting that breaks a promise."""
    for key, value in models.limetaskd.celery.items():
        path = ("limetaskd", "celery", key)
        if key == "broker_transport_options":
            _transport_options(value, report)
            continue
        text, harmless = BREAKS.get(key, ("", ()))
        if text and not any(value == good and type(value) is type(good) for good in harmless):
            report.warn(path, text, *(() if is_secret(path) else (value,)))


def _transport_options(value: Any, report: Report) -> None:
    path = ("limetaskd", "celery", "broker_transport_options")
    options = value if isinstance(value, dict) else {}
    if options.get("confirm_publish") is not True:
        report.warn(
            path, "replaces the options of limetaskd: on RabbitMQ add confirm_publish: true, or sends may get lost"
        )
    for key in ("global_keyprefix", "queue_order_strategy", "sep"):
        if key in options:
            report.warn((*path, key), _NAMES if key == "global_keyprefix" else "changes the order of tasks")
