"""The environment over the file, and values in files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limetaskd.config.load import LoadedConfig, load, load_mapping
from limetaskd.errors import ConfigError

BROKER = "LIMETASK_TASKS__BROKER_CONNECTION_STRING"


def over(environ: dict[str, str], mapping: dict[str, Any] | None = None) -> LoadedConfig:
    return load_mapping(mapping or {}, environ)


def problems(environ: dict[str, str], mapping: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        over(environ, mapping)
    return caught.value.problems


@pytest.mark.parametrize(
    "name",
    [
        BROKER,
        BROKER.lower(),
        "LIMETASK_Tasks__Broker_Connection_String",
        "LIMETASK_TASKS_CONFIG__BROKER_CONNECTION_STRING",
    ],
)
def test_the_environment_wins(name: str) -> None:
    loaded = over({name: "redis://h"}, {"tasks": {"broker_connection_string": "amqp://x"}})
    assert loaded.tasks.broker_connection_string == "redis://h"


def test_every_kind_of_value() -> None:
    loaded = over(
        {
            "LIMETASK_LIMETASKD__APPLICATION": "42",
            "LIMETASK_LIMETASKD__SUPERVISOR_SOCKET": "yes",
            "LIMETASK_TASKS__ENABLE_SCHEDULED_TASKS": "0",
            "LIMETASK_TASKS__LOG_MESSAGE_MAX_SIZE": "100",
            "LIMETASK_TASKS__TASK_TIME_LIMIT": "5m",
            "LIMETASK_TASKS__RESULT_EXPIRES": "None",
            "LIMETASK_TASKS__BACKEND_CONNECTION_STRING": "",
            "LIMETASK_LIMETASKD__LIMITS__MEMORY_SOFT": "300MiB",
            "LIMETASK_LIMETASKD__IMPORTS": "[crm.tasks, crm.more]",
            "LIMETASK_LIMETASKD__CONCURRENCY": "4",
            "LIMETASK_LIMETASKD__CONTROL__MODE": "0600",
            "LIMETASK_LIMETASKD__PUBLISH": '{"timeout": "5s"}',
            "LIMETASK_IMPORTER__SQL_SERVER_PASSWORD": "None",
        }
    )
    daemon = loaded.limetaskd
    assert (daemon.application, daemon.supervisor_socket, daemon.concurrency) == ("42", True, 4)
    assert daemon.imports == ["crm.tasks", "crm.more"]
    assert (daemon.control.mode, daemon.publish.timeout, daemon.limits.memory_soft) == ("0600", 5, 300 * 1024**2)
    tasks = loaded.tasks
    assert (tasks.enable_scheduled_tasks, tasks.log_message_max_size, tasks.task_time_limit) == (False, 100, 300)
    assert (tasks.result_expires, tasks.backend_connection_string) == (None, None)
    assert loaded.importer.sql_server_password == "None"


def test_maps() -> None:
    file = {"tasks": {"routing": {"qos": {"asap": "q1", "Bulk": "q2"}, "tasks": None}}}
    loaded = over(
        {
            "LIMETASK_TASKS__ROUTING__QOS__EMAIL": "q3",
            "LIMETASK_TASKS__ROUTING__QOS__BULK": "q4",
            "LIMETASK_TASKS__ROUTING__TASKS__crm.Rename": "q5",
            "LIMETASK_LIMETASKD__POOLS__ALL__ENV__TZ": "CET",
            "LIMETASK_LIMETASKD__POOLS__ALL__ENV__lower": "1",
            "LIMETASK_LIMETASKD__CELERY__BROKER_HEARTBEAT": "10",
            "LIMETASK_LIMETASKD__CELERY__REDIS_OPTIONS__A": "[1]",
        },
        file,
    )
    assert loaded.tasks.routing.qos == {"asap": "q1", "Bulk": "q4", "email": "q3"}
    assert loaded.tasks.routing.tasks == {"crm.Rename": "q5"}
    assert loaded.limetaskd.pools["all"].env == {"TZ": "CET", "lower": "1"}
    assert loaded.limetaskd.celery == {"broker_heartbeat": 10, "redis_options": {"a": [1]}}
    assert file == {"tasks": {"routing": {"qos": {"asap": "q1", "Bulk": "q2"}, "tasks": None}}}


def test_a_whole_map_first_then_its_keys() -> None:
    loaded = over(
        {"LIMETASK_TASKS__ROUTING__QOS__B": "q3", "LIMETASK_TASKS__ROUTING__QOS": "{a: q1, b: q2}"},
        {"tasks": {"routing": {"qos": {"gone": "q"}}}},
    )
    assert loaded.tasks.routing.qos == {"a": "q1", "b": "q3"}


def test_other_variables_mean_nothing() -> None:
    environ = {
        "LIMETASK_CONFIG": "/x",
        "LIMETASK_TASKS": "x",
        "LIMETASK_TASKS_PORT": "5",
        "LIMETASKD_SPEC": "{}",
        "A__B": "1",
    }
    loaded = over(environ)
    assert loaded.warnings == ()
    assert loaded.tasks == over({}).tasks


def test_an_unknown_section_is_a_warning() -> None:
    (line,) = over({"LIMETASK_TASK__TIMEZONE": "UTC"}).warnings
    assert line == "LIMETASK_TASK__TIMEZONE: ignored: there is no section task. Did you mean tasks?"


def test_unknown_keys_of_the_application_are_warnings() -> None:
    (line,) = over({"LIMETASK_IMPORTER__USE_S4": "1"}).warnings
    assert line == "LIMETASK_IMPORTER__USE_S4: importer.use_s4: unknown key. Did you mean LIMETASK_IMPORTER__USE_S3?"


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("LIMETASK_TASKS__TIMEZNE", "UTC",
         "LIMETASK_TASKS__TIMEZNE: tasks.timezne: unknown key. Did you mean LIMETASK_TASKS__TIMEZONE?"),
        ("LIMETASK_LIMETASKD__POOLS__ALL__WORKER", "1",
         "LIMETASK_LIMETASKD__POOLS__ALL__WORKER: limetaskd.pools.all.worker: unknown key."
         " Did you mean LIMETASK_LIMETASKD__POOLS__ALL__WORKERS?"),
        ("LIMETASK_TASKS__TIMEZONE__X", "1", "LIMETASK_TASKS__TIMEZONE__X: tasks.timezone: is not a map: no key"
         " below it can be set"),
        ("LIMETASK_LIMETASKD__BEAT__", "1",
         "LIMETASK_LIMETASKD__BEAT__: limetaskd.beat.: unknown key. Known here: POOL."),
        ("LIMETASK_TASKS__BROKER_URL", "amqp://a:hunter2@b",
         "LIMETASK_TASKS__BROKER_URL: tasks.broker_url: unknown key."
         " Did you mean LIMETASK_TASKS__BROKER_CONNECTION_STRING?"),
        ("LIMETASK_LIMETASKD__POOLS__ALLE__CONCURRENCY", "4", "LIMETASK_LIMETASKD__POOLS__ALLE__CONCURRENCY:"
         " limetaskd.pools.alle: no such pool with the strategy all-in-one. The pools are: all. Did you mean all?"),
        ("LIMETASK_TASKS__TIMEZONE", "Mars", 'LIMETASK_TASKS__TIMEZONE: tasks.timezone = "Mars": unknown time zone:'
         " must be UTC or a name such as Europe/Stockholm"),
        ("LIMETASK_LIMETASKD__SUPERVISOR_SOCKET", "maybe",
         'LIMETASK_LIMETASKD__SUPERVISOR_SOCKET: limetaskd.supervisor_socket = "maybe": must be true or false'),
        ("LIMETASK_LIMETASKD__IMPORTS", "a: [",
         "LIMETASK_LIMETASKD__IMPORTS: limetaskd.imports: is not a valid YAML value"),
        (BROKER, "amqp//u:hunter2@h", f'{BROKER}: tasks.broker_connection_string = "***": must be a URL such as'
         " amqp://user:password@host:5672/vhost or redis://host:6379/0"),
        ("LIMETASK_LIMETASKD__POOLS__ALL__NICE", "x",
         'LIMETASK_LIMETASKD__POOLS__ALL__NICE: limetaskd.pools.all.nice = "x": must be a whole number'),
    ],
)  # fmt: skip
def test_errors_name_the_variable(name: str, value: str, line: str) -> None:
    assert problems({name: value}) == [line]


def test_one_key_by_two_variables() -> None:
    (line,) = problems({"LIMETASK_TASKS__TIMEZONE": "UTC", "LIMETASK_TASKS_CONFIG__TIMEZONE": "UTC"})
    assert "given by LIMETASK_TASKS_CONFIG__TIMEZONE too" in line or "given by LIMETASK_TASKS__TIMEZONE too" in line


def test_a_wrong_type_in_the_file_is_still_reported() -> None:
    (line,) = problems({"LIMETASK_TASKS__ROUTING__QOS__A": "q"}, {"tasks": {"routing": 5}})
    assert line.endswith("tasks.routing = 5: must be a map: keys and values")


# x_file


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("amqp://u:hunter2@h//\n")
    return path


def test_a_value_from_a_file(secret: Path) -> None:
    from_file = over({}, {"tasks": {"broker_connection_string_file": str(secret)}})
    from_variable = over({f"{BROKER}_FILE": str(secret)})
    for loaded in (from_file, from_variable):
        assert loaded.tasks.broker_connection_string == "amqp://u:hunter2@h//"


@pytest.mark.parametrize(
    ("raw", "value"), [(b"a", "a"), (b"a\n", "a"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b" a ", " a "), (b"", "")]
)
def test_one_line_end_is_stripped(secret: Path, raw: bytes, value: str) -> None:
    secret.write_bytes(raw)
    assert over({}, {"importer": {"sql_server_password_file": str(secret)}}).importer.sql_server_password == value


def test_other_types_from_a_file(secret: Path) -> None:
    secret.write_text("5m\n")
    assert over({}, {"tasks": {"task_time_limit_file": str(secret)}}).tasks.task_time_limit == 300
    secret.write_text("hunter2\n")
    assert over({}, {"limetaskd": {"celery": {"redis_password_file": str(secret)}}}).limetaskd.celery == {
        "redis_password": "hunter2"
    }


def test_the_environment_wins_over_a_secret_of_the_file(secret: Path) -> None:
    file = {"tasks": {"broker_connection_string_file": str(secret)}}
    assert over({BROKER: "redis://h"}, file).tasks.broker_connection_string == "redis://h"
    plain = {"tasks": {"broker_connection_string": "redis://h"}}
    assert over({f"{BROKER}_FILE": str(secret)}, plain).tasks.broker_connection_string == "amqp://u:hunter2@h//"


def test_both_are_too_many(secret: Path) -> None:
    (line,) = problems(
        {}, {"tasks": {"broker_connection_string_file": str(secret), "broker_connection_string": "amqp://"}}
    )
    assert line.endswith(
        "tasks.broker_connection_string_file: broker_connection_string is given too: keep one of the two"
    )
    (line,) = problems({BROKER: "amqp://", f"{BROKER}_FILE": str(secret)})
    assert line == f"{BROKER}_FILE: tasks.broker_connection_string: given by {BROKER} too: keep one of the two"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("{}/nothing", "the file {}/nothing cannot be read: No such file or directory"),
        ("{}", "the file {} cannot be read: Is a directory"),
        ("/dev/zero", "the file /dev/zero is larger than 65536 bytes"),
        ("hunter2", "must be the absolute path of a file that holds the value"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, text: str) -> None:
    path = name.format(tmp_path)
    (line,) = problems({}, {"tasks": {"broker_connection_string_file": path}})
    assert line == f"the configuration mapping: tasks.broker_connection_string_file: {text.format(tmp_path)}"
    (line,) = problems({f"{BROKER}_FILE": path})
    assert line == f"{BROKER}_FILE: tasks.broker_connection_string: {text.format(tmp_path)}"


def test_what_came_from_a_file_is_never_shown(secret: Path, tmp_path: Path) -> None:
    secret.write_text("hunter2\n")
    config = tmp_path / "limetaskd.yaml"
    config.write_text(f"tasks:\n  task_time_limit: 1\n  task_queue_name_file: {secret}\n  timezone_file: {secret}\n")
    with pytest.raises(ConfigError) as caught:
        load(str(config), {f"{BROKER}_FILE": str(secret)})
    assert "hunter2" not in str(caught.value)
    assert f"{config}:4: tasks.timezone = ***: unknown time zone" in str(caught.value)


def test_free_words_that_end_in_file_are_words() -> None:
    loaded = over(
        {},
        {
            "tasks": {"routing": {"qos": {"import_file": "q"}}},
            "limetaskd": {"pools": {"all": {"env": {"A_file": "x"}}}},
        },
    )
    assert loaded.tasks.routing.qos == {"import_file": "q"}
    assert loaded.limetaskd.pools["all"].env == {"A_file": "x"}
