"""Wrong values: each names its key, its value and what is allowed; all at once; never a secret."""

# ruff: noqa: E501 - the lines are those that operators read

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from limetaskd.config.load import LoadedConfig, load_mapping
from limetaskd.config.models import SECTIONS
from limetaskd.config.report import is_secret
from limetaskd.errors import ConfigError

HEAD = "the configuration mapping: "


def load(text: str) -> LoadedConfig:
    return load_mapping(yaml.safe_load(text), {})


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text)
    lines = caught.value.problems
    assert all(line.startswith(HEAD) and "\n" not in line for line in lines), lines
    return [line.removeprefix(HEAD) for line in lines]


def warnings(text: str) -> list[str]:
    return [line.removeprefix(HEAD) for line in load(text).warnings]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        # spelling
        ("tasks: {broker_conection_string: x}",
         "tasks.broker_conection_string: unknown key. Did you mean broker_connection_string?"),
        ("limetaskd: {restart: {intial: 1}}", "limetaskd.restart.intial: unknown key. Did you mean initial?"),
        ("limetaskd: {pools: {all: {worker: 1}}}", "limetaskd.pools.all.worker: unknown key. Did you mean workers?"),
        ("tasks: {strategy: dedicated}", "tasks.strategy: unknown key. Did you mean limetaskd.strategy?"),
        ("limetaskd: {timezone: UTC}", "limetaskd.timezone: unknown key. Did you mean tasks.timezone?"),
        ("limetaskd: {beat: {zzz: 1}}", "limetaskd.beat.zzz: unknown key. Known here: pool."),
        # types
        ("tasks: []", "tasks = (a list): must be a map: keys and values, indented below it"),
        ("tasks: 5", "tasks = 5: must be a map: keys and values, indented below it"),
        ("tasks: {routing: x}", 'tasks.routing = "x": must be a map: keys and values'),
        ("tasks: {routing: {qos: [a]}}", "tasks.routing.qos = (a list): must be a map: keys and values"),
        ("tasks: {task_queue_name: 12}", 'tasks.task_queue_name = 12: must be text: put it in quotes, as in "12"'),
        ("tasks: {task_queue_name: {a: 1}}", "tasks.task_queue_name = (a map): must be text"),
        ("tasks: {routing: {qos: {a: 1}}}", 'tasks.routing.qos.a = 1: must be text: put it in quotes, as in "1"'),
        ("tasks: {enable_scheduled_tasks: 'true'}",
         'tasks.enable_scheduled_tasks = "true": must be true or false, without quotes'),
        ("tasks: {enable_scheduled_tasks: 1}", "tasks.enable_scheduled_tasks = 1: must be true or false"),
        ("tasks: {log_message_max_size: '5'}",
         'tasks.log_message_max_size = "5": must be a whole number, without quotes'),
        ("tasks: {log_message_max_size: 1.5}", "tasks.log_message_max_size = 1.5: must be a whole number"),
        ("tasks: {log_message_max_size: true}", "tasks.log_message_max_size = true: must be a whole number"),
        ("tasks: {log_message_max_size: -1}", "tasks.log_message_max_size = -1: must be a number of at least 0"),
        ("limetaskd: {imports: a.b}", 'limetaskd.imports = "a.b": must be a list, such as [a, b]'),
        ("limetaskd: {imports: [a b]}",
         'limetaskd.imports[0] = "a b": must be the name of a module, such as crm.tasks'),
        ("limetaskd: {pools: {all: {nice: 20}}}", "limetaskd.pools.all.nice = 20: must be a number of at most 19"),
        ("limetaskd: {pools: {all: {env: {A: 1}}}}",
         'limetaskd.pools.all.env.A = ***: must be text: put it in quotes, as in "1"'),
        ("limetaskd: {application: ''}", 'limetaskd.application = "": must not be empty'),
        # units
        ("tasks: {task_time_limit: 5 minutes}",
         'tasks.task_time_limit = "5 minutes": must be a duration: seconds, or a number with ms, s, m, h or d, such as'
         " 500ms, 30s, 5m, 2h"),
        ("tasks: {task_time_limit: 0}", "tasks.task_time_limit = 0: must be more than 0"),
        ("limetaskd: {limits: {memory_soft: 300M}}",
         'limetaskd.limits.memory_soft = "300M": must be a size: bytes, or a number with KiB, MiB, GiB, TiB, kB, MB, GB or'
         " TB, such as 300MiB, 2GiB, 1GB"),
        ("limetaskd: {concurrency: 0}",
         "limetaskd.concurrency = 0: must be a whole number from 1 to 10000, or auto"),
        # choices
        ("limetaskd: {strategy: dedicate}",
         'limetaskd.strategy = "dedicate": must be one of all-in-one, dedicated. Did you mean dedicated?'),
        ("limetaskd: {delivery: exactly-once}",
         'limetaskd.delivery = "exactly-once": must be one of at-least-once, at-most-once'),
        ("limetaskd: {logging: {level: LOUD}}",
         'limetaskd.logging.level = "LOUD": must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL'),
        # names and places
        ("tasks: {timezone: Europe/Stokholm}",
         'tasks.timezone = "Europe/Stokholm": unknown time zone: must be UTC or a name such as Europe/Stockholm.'
         " Did you mean Europe/Stockholm?"),
        ("tasks: {timezone: stockholm}",
         'tasks.timezone = "stockholm": unknown time zone: must be UTC or a name such as Europe/Stockholm.'
         " Did you mean Europe/Stockholm?"),
        ("tasks: {task_queue_name: 'a b'}",
         'tasks.task_queue_name = "a b": must be a name without white space and commas'),
        ("tasks: {task_queue_name: ''}", 'tasks.task_queue_name = "": must not be empty'),
        ("tasks: {routing: {tasks: {'crm.*': q}}}",
         "tasks.routing.tasks.crm.*: the key holds a wildcard: tasks are matched by their exact name, so write a line for"
         " each task"),
        ("limetaskd: {app: crm.app}", 'limetaskd.app = "crm.app": must be package.module:attribute'),
        ("limetaskd: {python: venv/bin/python}", 'limetaskd.python = "venv/bin/python": must be an absolute path'),
        ("limetaskd: {logging: {destination: log.txt}}",
         'limetaskd.logging.destination = "log.txt": must be stderr or an absolute path'),
        ("limetaskd: {control: {endpoint: 'ipc://@x'}}",
         'limetaskd.control.endpoint = "ipc://@x": must name a file, as in ipc:///run/limetaskd/control.sock: its mode and'
         " group guard it"),
        ("limetaskd: {control: {mode: 0660}}",
         'limetaskd.control.mode = 432: must be octal digits in quotes, such as "0660": without quotes YAML reads another'
         " number"),
        ("limetaskd: {celery: {CELERY_ACKS_LATE: true}}",
         "limetaskd.celery.CELERY_ACKS_LATE: the key must be one of Celery's lower-case names, as 'celery_acks_late'"),
        ("limetaskd: {celery: {a: [2026-01-01]}}",
         "limetaskd.celery.a = (a list): must be text, a number, true, false, null, a list or a map, not a date"),
        # URLs
        ("tasks: {broker_connection_string: 'ampq://u:hunter2@h'}",
         'tasks.broker_connection_string = "ampq://u:***@h": unknown URL scheme ampq://: must be one of amqp, amqps, pyamqp,'
         " redis, rediss, redis+socket, sentinel. Did you mean amqp://?"),
        ("tasks: {broker_connection_string: 'memory://'}",
         'tasks.broker_connection_string = "memory://": unknown URL scheme memory://: must be one of amqp, amqps, pyamqp,'
         " redis, rediss, redis+socket, sentinel"),
        ("tasks: {broker_connection_string: 'u:hunter2@h'}",
         'tasks.broker_connection_string = "***": must be a URL such as amqp://user:password@host:5672/vhost or'
         " redis://host:6379/0"),
        ("tasks: {broker_connection_string: 'amqp://u:hun/ter2@h//'}",
         'tasks.broker_connection_string = "amqp://u:***@h//": has no usable host and port; in a user name or password write'
         " / as %2F, @ as %40, : as %3A, # as %23"),
        ("tasks: {broker_connection_string: 'redis://h/zero'}",
         'tasks.broker_connection_string = "redis://h/zero": must end with the number of a database, as in'
         " redis://host:6379/0"),
        ("tasks: {broker_connection_string: 'redis+socket://x/y'}",
         'tasks.broker_connection_string = "redis+socket://x/y": must name a socket:'
         " redis+socket:///absolute/path.sock?virtual_host=0"),
        ("tasks: {backend_connection_string: 'http://h'}",
         'tasks.backend_connection_string = "http://h": unknown URL scheme http://: must be one of redis, rediss,'
         " redis+socket, sentinel, elasticsearch, rpc"),
        # keys against each other
        ("tasks: {task_time_limit: 1m, task_soft_time_limit: 2m}",
         'tasks.task_soft_time_limit = "2m": must not be above tasks.task_time_limit (1m)'),
        ("limetaskd: {pools: {all: {time_limit: 1m, soft_time_limit: 2m}}}",
         "limetaskd.pools.all.soft_time_limit: the soft limit 2m of this pool is above its hard limit 1m"),
        ("tasks: {task_soft_time_limit: 5m}\nlimetaskd: {pools: {all: {time_limit: 1m}}}",
         "limetaskd.pools.all.time_limit: the soft limit 5m of this pool is above its hard limit 1m"),
        ("limetaskd: {limits: {memory_soft: 2GiB, memory_hard: 1GiB}}",
         "limetaskd.limits.memory_soft: the soft limit 2GiB is above the hard limit 1GiB"),
        ("limetaskd: {limits: {memory_soft: 2GiB}, pools: {all: {limits: {memory_hard: 1GiB}}}}",
         "limetaskd.pools.all.limits.memory_hard: the soft limit 2GiB is above the hard limit 1GiB"),
        ("limetaskd: {restart: {initial: 2m}}",
         'limetaskd.restart.initial = "2m": must not be above limetaskd.restart.max (1m)'),
        ("limetaskd: {concurrency: 2, pools: {all: {workers: 4}}}",
         "limetaskd.pools.all.workers = 4: must not be above limetaskd.concurrency (2): concurrency counts the slots of the"
         " whole pool, and its workers share them"),
        ("limetaskd: {pools: {all: {workers: 4, concurrency: 3}}}",
         "limetaskd.pools.all.workers = 4: must not be above its concurrency (3): concurrency counts the slots of the whole"
         " pool, and its workers share them"),
        ("limetaskd: {pools: {all: {pool: solo, concurrency: 3}}}",
         "limetaskd.pools.all.concurrency = 3: a solo worker runs one task at a time: set workers: 3, and leave concurrency"
         " out"),
        ("limetaskd: {pools: {all: {autoscale: {min: 3, max: 2}}}}",
         "limetaskd.pools.all.autoscale.min = 3: must not be above max (2)"),
        ("limetaskd: {concurrency: 4, pools: {all: {workers: 2, autoscale: {min: 1, max: 4}}}}",
         "limetaskd.pools.all.autoscale.min = 1: must not be below workers (2): it counts the slots of the whole pool"),
        ("limetaskd: {pools: {all: {pool: threads, autoscale: {max: 4}}}}",
         "limetaskd.pools.all.autoscale: the slots of a threads pool are fixed at its start: use prefork"),
        ("limetaskd: {pools: {all: {pool: solo, autoscale: {max: 4}}}}",
         "limetaskd.pools.all.autoscale: a solo worker runs one task at a time: use prefork"),
        # pools
        ("limetaskd: {pools: {alll: {workers: 1}}}",
         "limetaskd.pools.alll: no such pool with the strategy all-in-one. The pools are: all. Did you mean all?"),
        ("limetaskd: {pools: {x: {queues: [lime_default_task_queue]}}}",
         "limetaskd.pools.x.queues: with the strategy all-in-one the pool all consumes every queue: leave queues out, or set"
         " strategy: dedicated"),
        ("limetaskd: {strategy: dedicated, pools: {x: {queues: [lime_default_task_queu]}}}",
         'limetaskd.pools.x.queues[0] = "lime_default_task_queu": not a configured queue. Configured are:'
         " lime_default_task_queue. Did you mean lime_default_task_queue?"),
        ("limetaskd: {strategy: dedicated, pools: {x: {queues: []}}}",
         "limetaskd.pools.x.queues = (a list): must hold at least one item; leave the key out otherwise"),
        ("limetaskd: {beat: {pool: al}}",
         'limetaskd.beat.pool = "al": no such pool. The pools are: all. Did you mean all?'),
        ("limetaskd: {pools: {'a:b': {}}}",
         "limetaskd.pools.a:b: the key must be a name of letters, digits, _ . and -, at most 64 of them"),
        # not in this version
        ("limetaskd: {http: '127.0.0.1:9808'}",
         'limetaskd.http = "127.0.0.1:9808": not available in this version: leave it out'),
        ("limetaskd: {control: {endpoint: 'tcp://127.0.0.1:1'}}",
         'limetaskd.control.endpoint = "tcp://127.0.0.1:1": control over tcp:// is not available in this version: use'
         " ipc:///absolute/path.sock"),
        ("limetaskd: {pools: {all: {pool: swarm}}}",
         'limetaskd.pools.all.pool = "swarm": swarm is not available in this version: use prefork, threads or solo'),
    ],
)  # fmt: skip
def test_one_error(text: str, line: str) -> None:
    assert problems(text) == [line]


def test_two_pools_with_one_queue() -> None:
    text = (
        "limetaskd: {strategy: dedicated, pools: {a: {queues: [q]}, b: {queues: [q, q]}}}\ntasks: {task_queue_name: q}"
    )
    tail = "claims it too: a queue belongs to one pool"
    assert problems(text) == [
        f'limetaskd.pools.b.queues[0] = "q": the pool a {tail}',
        f'limetaskd.pools.b.queues[1] = "q": the pool a {tail}',
    ]


def test_all_errors_at_once_and_no_follow_up_errors() -> None:
    text = """
tasks: {task_queue_name: 5, task_time_limit: x, timezone: Mars, routing: {qos: {a: q, b: 7}}}
features: {importer_with_taskhandler: maybe}
importer: {jobs_days_visible: -1}
limetaskd:
  strategy: dedicatd
  concurrency: many
  limits: {memory_soft: 2GiB, memory_hard: 1GiB}
  pools: {a: {queues: [q, 5, r], workers: 0, nope: 1}}
"""
    keys = [line.split(" = ")[0].split(": ")[0] for line in problems(text)]
    assert sorted(keys) == sorted(
        [
            "tasks.task_queue_name", "tasks.task_time_limit", "tasks.timezone", "tasks.routing.qos.b",
            "features.importer_with_taskhandler", "importer.jobs_days_visible", "limetaskd.strategy",
            "limetaskd.concurrency", "limetaskd.limits.memory_soft", "limetaskd.pools.a.queues[1]",
            "limetaskd.pools.a.workers", "limetaskd.pools.a.nope",
        ]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("other: {a: 1}", "other: ignored: there is no such section."),
        ("task: {timezone: UTC}", "task: ignored: there is no such section. Did you mean tasks?"),
        ("strategy: dedicated",
         "strategy: ignored: there is no such section. It is a key of limetaskd: indent it below that."),
        ("features: {some_other_feature: 1}", "features.some_other_feature: unknown key, ignored."),
        ("importer: {use_s4: true}", "importer.use_s4: unknown key, ignored. Did you mean use_s3?"),
        ("limetaskd: {pools: {all: {pool: threads, time_limit: 5m}}}",
         "limetaskd.pools.all.pool: a threads task above its time limit is ended with its whole worker"),
        ("limetaskd: {celery: {task_acks_late: false}}",
         "limetaskd.celery.task_acks_late = false: a task that runs when its worker dies is lost when this is false:"
         " limetaskd.delivery decides it"),
        ("limetaskd: {celery: {broker_url: 'amqp://u:hunter2@h'}}",
         'limetaskd.celery.broker_url = "amqp://u:***@h": wins over tasks.broker_connection_string: set that key instead, so'
         " that limetaskd knows it too"),
        ("limetaskd: {celery: {broker_transport_options: {visibility_timeout: 5}}}",
         "limetaskd.celery.broker_transport_options: replaces the options of limetaskd: on RabbitMQ add confirm_publish:"
         " true, or sends may get lost"),
        ("limetaskd: {celery: {broker_transport_options: {confirm_publish: true, global_keyprefix: x}}}",
         "limetaskd.celery.broker_transport_options.global_keyprefix: breaks the isolation of clusters that share a broker"),
    ],
)  # fmt: skip
def test_one_warning(text: str, line: str) -> None:
    assert warnings(text) == [line]


@pytest.mark.parametrize(
    "text",
    [
        "limetaskd: {preload: false, ack_deadline: 15m, http: null, limits: {memory_soft: null}}",
        "limetaskd: {celery: {task_reject_on_worker_lost: true, enable_utc: true, broker_heartbeat: 10}}",
        "limetaskd: {celery: {broker_transport_options: {confirm_publish: true}}}",
        "tasks: {result_expires: 30d, task_time_limit: 5.5}",
        "tasks: {broker_connection_string: 'amqp://u:p%2F@h1//;amqp://u:p@h2:5672/vhost'}",
        "tasks: {broker_connection_string: 'sentinel://h:26379/0', backend_connection_string: 'rpc://'}",
        "tasks: {backend_connection_string: 'elasticsearch://u:p@h:9200/celery/task'}",
        "limetaskd: {logging: {level: debug}, pools: {all: }}",
    ],
)
def test_nothing_to_complain_of(text: str) -> None:
    assert warnings(text) == []


@pytest.mark.parametrize("key", ["sql_server_password", "s3_aws_secret_access_key", "s3_aws_access_key_id"])
def test_secrets_of_the_importer_are_masked(key: str) -> None:
    (line,) = problems(f"importer: {{{key}: 12345}}")
    assert line.startswith(f"importer.{key} = ***: must be text")


def test_which_keys_are_secret() -> None:
    for path in (("limetaskd", "celery", "redis_password"), ("limetaskd", "pools", "a", "env", "X"), ("a", "api_key")):
        assert is_secret(path), path
    for path in (
        ("tasks", "task_routing_key_name"),
        ("limetaskd", "pools", "env", "workers"),
        ("limetaskd", "control"),
    ):
        assert not is_secret(path), path


def test_models_do_not_print_passwords() -> None:
    loaded = load(
        "tasks: {broker_connection_string: 'amqp://u:hunter2@h'}\nlimetaskd: {pools: {all: {env: {A: hunter2}}}}"
    )
    assert "hunter2" not in f"{loaded!r} {loaded} {loaded.tasks!r} {loaded.limetaskd}"


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)
KEYS = sorted({key for model in SECTIONS.values() for key in model.model_fields})


@given(
    st.dictionaries(
        st.sampled_from([*SECTIONS, "tasks_config"]), st.one_of(JSON, st.dictionaries(st.sampled_from(KEYS), JSON))
    )
)
@settings(max_examples=200, deadline=None)
def test_anything_loads_or_is_a_configuration_error(document: dict[str, Any]) -> None:
    try:
        load_mapping(document, {})
    except ConfigError as error:
        assert error.problems
        assert all(line.startswith(HEAD) for line in error.problems)
