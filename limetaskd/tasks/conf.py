"""Settings -> the Celery configuration of workers and senders (pure)."""

from __future__ import annotations

import copy
from typing import Any

from limetaskd.core.settings import Settings
from limetaskd.tasks.queues import kombu_queue

_REDIS_SCHEMES = ("redis", "rediss", "redis+socket", "sentinel")
# These are merged key by key: whoever passes a visibility timeout does not want to lose the isolation.
_MERGED = ("broker_transport_options", "result_backend_transport_options")


def is_redis(url: str | None) -> bool:
    """Whether a broker or result store URL is one of Redis (or Valkey)."""
    return bool(url) and str(url).split(":", 1)[0].lower() in _REDIS_SCHEMES


def transport_module(url: str) -> str:
    """The module that kombu loads for a broker URL, at the first connection."""
    return "limetaskd.tasks.redis_transport" if is_redis(url) else "kombu.transport.pyamqp"


def _transport_url(url: str) -> str:
    """The URL by which kombu takes our transport for Redis, which loses no message when a consumer is killed."""
    if not is_redis(url):
        return url
    from limetaskd.tasks.redis_transport import transport_url  # only here: it needs the client library of Redis

    return transport_url(url)


def broker_settings(settings: Settings) -> dict[str, Any]:
    """What depends on the addresses of broker and result store: these change when the embedded server comes."""
    options: dict[str, Any] = {}
    if is_redis(settings.broker_url):
        if settings.cluster.key_prefix:
            options["global_keyprefix"] = settings.cluster.key_prefix
        # Notices a server that hangs; a consumer's blocking read is shorter.
        options["socket_connect_timeout"] = 5.0
        options["socket_keepalive"] = True
    results: dict[str, Any] = {}
    if settings.cluster.key_prefix:
        results["global_keyprefix"] = settings.cluster.key_prefix
    conf: dict[str, Any] = {
        "broker_url": _transport_url(settings.broker_url),
        # Both would win over broker_url, and lead around the settings.
        "broker_read_url": None,
        "broker_write_url": None,
        "broker_transport": None,
        "broker_transport_options": options,
        "result_backend": settings.backend_url,
        "result_backend_transport_options": results,
        # Needs a result store that outlives the worker: what has ended does not run again.
        "worker_deduplicate_successful_tasks": settings.backend_url is not None,
    }
    if is_redis(settings.backend_url):
        # One that hangs is as good as one that refuses, for who waits for it and for who must not.
        conf |= {"redis_socket_connect_timeout": 5.0, "redis_socket_timeout": 10.0}
    for key in (*conf, *_MERGED):
        if key in settings.celery:
            value = settings.celery[key]
            conf[key] = {**conf[key], **value} if key in _MERGED and isinstance(value, dict) else value
    return conf


def celery_settings(settings: Settings) -> dict[str, Any]:
    """Everything, by Celery's lower case names. `settings.celery` comes last and wins."""
    cluster = settings.cluster
    default = settings.queue(settings.routing.default)
    late = settings.delivery == "at-least-once"
    conf: dict[str, Any] = {
        # Wait for the broker for ever: an outage of it is no reason for a worker to end.
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Only consumers send heartbeats; a sender's dead connection is noticed by its own deadline.
        "broker_heartbeat": 30,
        "broker_pool_acquire_timeout": settings.publish_timeout_s,
        # Queues, and everything else that goes over the broker, by names of this cluster.
        "task_queues": tuple(kombu_queue(queue) for queue in settings.queues),
        "task_default_queue": default.actual,
        "task_default_exchange": default.exchange,
        "task_default_exchange_type": default.exchange_type,
        "task_default_routing_key": default.routing_key,
        "task_default_queue_type": default.queue_type,
        "task_create_missing_queues": True,
        "task_create_missing_queue_type": settings.queue_type,
        "task_routes": None,
        "control_exchange": cluster.actual("celery"),
        "event_exchange": cluster.actual("celeryev"),
        "event_queue_prefix": cluster.actual("celeryev"),
        "result_exchange": cluster.actual("celeryresults"),
        # Delivery.
        "task_default_delivery_mode": 2,
        "task_publish_retry": True,
        "task_acks_late": late,
        "task_reject_on_worker_lost": late,
        "worker_prefetch_multiplier": 1,
        # A task that still runs when the connection is lost goes on: its end is recorded, and the copy that the
        # broker delivers again is then not run (worker_deduplicate_successful_tasks).
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # Nor does it take the place of others until then: the task that runs takes over the copy that comes here.
        "worker_enable_prefetch_count_reduction": False,
        "task_time_limit": settings.time_limit_s,
        "task_soft_time_limit": settings.soft_time_limit_s,
        "result_expires": settings.result_expires_s,
        # Of those who wait for the result store to come back, see worker/records.py.
        "result_backend_max_sleep_between_retries_ms": 2000,
        "timezone": settings.timezone,
        "enable_utc": True,
        # The worker writes its own logs.
        "worker_hijack_root_logger": False,
    }
    # Copies: task modules change what is in `app.conf` in place, as `add_periodic_task` does with the schedule.
    conf |= {key: copy.deepcopy(value) for key, value in settings.celery.items() if key not in _MERGED}
    return conf | broker_settings(settings)
