"""Every key of the configuration, with its default. A docstring below a field describes it, units included.

Durations become seconds, sizes bytes. Unknown keys are errors, but for `features` and `importer`, which belong to the
whole application.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from limetaskd.config.shape import is_container
from limetaskd.config.types import (
    EMPTY_MAP,
    AbsolutePath,
    AppPath,
    BackendUrl,
    BrokerUrl,
    CelerySetting,
    Concurrency,
    Destination,
    Duration,
    Endpoint,
    JsonValue,
    Level,
    Mode,
    Module,
    Name,
    PoolName,
    PositiveDuration,
    Size,
    TaskName,
    Text,
    TimeZone,
    Variable,
)

MIB = 1024 * 1024


class Section(BaseModel):
    """A map of known keys. A null where a map or a list belongs is as if the key were left out."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True)

    def __repr__(self) -> str:
        # The default would print passwords into tracebacks.
        return f"{type(self).__name__}(...)"

    __str__ = __repr__

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_containers(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        empty = {
            key
            for key, item in value.items()
            if item is None and key in cls.model_fields and is_container(cls.model_fields[key].annotation)
        }
        return {key: item for key, item in value.items() if key not in empty} if empty else value


class RoutingConfig(Section):
    qos: dict[Name, Name] = Field(default_factory=dict)
    """QoS category -> queue."""
    tasks: dict[TaskName, Name] = Field(default_factory=dict)
    """Exact name of a task -> queue; stronger than its QoS category."""


class TasksConfig(Section):
    broker_connection_string: BrokerUrl = "amqp://"
    """RabbitMQ or Redis; several, separated by `;`, are tried in turn."""
    backend_connection_string: BackendUrl | None = "redis://localhost"
    """Where results are stored; null: nowhere."""
    task_time_limit: PositiveDuration | None = None
    """A task that runs longer is killed; null: no limit."""
    task_soft_time_limit: PositiveDuration | None = None
    """A task that runs longer gets an exception and may clean up; null: no limit."""
    task_queue_name: Name = "lime_default_task_queue"
    task_exchange_name: Name = "lime_default_task_exchange"
    task_routing_key_name: Name = "lime_default_routing_key"
    enable_scheduled_tasks: bool = True
    result_expires: Duration | None = 2592000.0
    """Results are deleted after this time; 0 or null: never."""
    log_message_max_size: int = Field(default=0, ge=0)
    """Log messages are cut to this many bytes; 0: never."""
    timezone: TimeZone = "UTC"
    """Time zone of the schedule."""
    routing: RoutingConfig = Field(default_factory=RoutingConfig)


class FeaturesConfig(Section):
    model_config = ConfigDict(extra="ignore")

    importer_with_taskhandler: bool = False


class ImporterConfig(Section):
    model_config = ConfigDict(extra="ignore")

    connection_string: BrokerUrl = "amqp://guest@localhost//"
    use_sql_server: bool = False
    jobs_days_visible: int = Field(default=30, ge=0)
    sql_server_host: Text = "localhost"
    sql_server_database: Text = "lime_crm_import"
    sql_server_username: Text = ""
    sql_server_password: Text = ""
    use_s3: bool = False
    s3_bucket: Text = ""
    s3_region: Text = ""
    s3_aws_access_key_id: str | None = None
    s3_aws_secret_access_key: str | None = None


class LimitsConfig(Section):
    memory_soft: Size | None = None
    """Private memory of a pool child; above it, the child is replaced after its current task."""
    memory_hard: Size | None = None
    """Likewise; above it, the child is killed at once."""
    worker_memory: Size | None = None
    """Memory of the whole process tree of a worker; above it, the worker is replaced."""
    time_grace: Duration = 5.0
    """A task that outlives task_time_limit by this is killed from outside."""
    sample_interval: PositiveDuration = 1.0


class AutoscaleConfig(Section):
    min: int = Field(default=1, ge=1)
    max: int = Field(default=1, ge=1)
    target_latency: PositiveDuration = 2.0


class PoolConfig(Section):
    """A pool of its own (with `queues`), or overrides of the pool with this name. All keys are optional."""

    queues: list[Name] | None = Field(default=None, min_length=1)
    """Configured names, before prefix and suffix."""
    concurrency: Concurrency | None = None
    """Slots of the whole pool, shared by its workers; null: limetaskd.concurrency."""
    workers: int = Field(default=1, ge=1, le=1000)
    """Worker processes."""
    pool: Literal["prefork", "swarm", "threads", "solo"] = "prefork"
    prefetch: int | None = Field(default=None, ge=1)
    """Messages reserved per slot; null: 1."""
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    """Those given replace those of limetaskd.limits; null: no limit."""
    time_limit: PositiveDuration | None = None
    """Replaces tasks.task_time_limit when given; null: no limit."""
    soft_time_limit: PositiveDuration | None = None
    """Replaces tasks.task_soft_time_limit when given; null: no limit."""
    shutdown_timeout: Duration | None = None
    """null: limetaskd.shutdown_timeout."""
    autoscale: AutoscaleConfig | None = None
    env: dict[Variable, str] = Field(default_factory=dict)
    """Environment variables of the workers."""
    nice: int | None = Field(default=None, ge=-20, le=19)


class PublishConfig(Section):
    confirm: bool = True
    """A send returns when the broker has the task on its disk."""
    timeout: PositiveDuration = 30.0
    """A send is retried this long, then raises."""


class RestartConfig(Section):
    initial: PositiveDuration = 1.0
    max: PositiveDuration = 60.0
    intensity: int = Field(default=5, ge=0)
    period: PositiveDuration = 60.0


class BeatConfig(Section):
    pool: str | None = None
    """The pool that owns the schedule; null: that of the scheduled category, else the default one."""


class ControlConfig(Section):
    endpoint: Endpoint | None = None
    """null: ipc://<runtime_dir>/control.sock."""
    mode: Mode = "0660"
    group: Annotated[str, Field(min_length=1)] | None = None


class LoggingConfig(Section):
    format: Literal["json", "text"] = "json"
    level: Level = "INFO"
    destination: Destination = "stderr"
    """stderr, or an absolute path."""
    max_size: Size = 50 * MIB
    keep: int = Field(default=5, ge=0, le=1000)


class DaemonConfig(Section):
    application: Annotated[str, Field(min_length=1)] = "limetask"
    user: Annotated[str, Field(min_length=1)] | None = None
    app: AppPath | None = None
    imports: list[Module] = Field(default_factory=list)
    python: AbsolutePath | None = None
    strategy: Literal["all-in-one", "dedicated"] = "all-in-one"
    concurrency: Concurrency = "auto"
    pools: dict[PoolName, Annotated[PoolConfig, EMPTY_MAP]] = Field(default_factory=dict)
    delivery: Literal["at-least-once", "at-most-once"] = "at-least-once"
    max_deliveries: int = Field(default=3, ge=1)
    ack_deadline: PositiveDuration | None = None
    publish: PublishConfig = Field(default_factory=PublishConfig)
    queue_type: Literal["classic", "quorum"] = "classic"
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    restart: RestartConfig = Field(default_factory=RestartConfig)
    shutdown_timeout: Duration = 600.0
    orphan_timeout: PositiveDuration | None = None
    beat: BeatConfig = Field(default_factory=BeatConfig)
    celery: dict[CelerySetting, JsonValue] = Field(default_factory=dict)
    control: ControlConfig = Field(default_factory=ControlConfig)
    preload: bool = True
    supervisor_socket: bool = False
    http: str | None = None
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    runtime_dir: AbsolutePath | None = None
    state_dir: AbsolutePath | None = None


SECTIONS: dict[str, type[Section]] = {
    "tasks": TasksConfig,
    "features": FeaturesConfig,
    "importer": ImporterConfig,
    "limetaskd": DaemonConfig,
}
ALIASES = {"tasks_config": "tasks", "features_config": "features", "importer_config": "importer"}
LENIENT = ("features", "importer")  # unknown keys are warnings
