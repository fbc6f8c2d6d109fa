"""The file: both documents of the makers load as printed, bad files say what is wrong and where."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from limetaskd.config import shape
from limetaskd.config.load import DEFAULT_PATH, LoadedConfig, load, load_mapping
from limetaskd.config.models import SECTIONS, PoolConfig
from limetaskd.errors import ConfigError

SEED_JSON = """\
{
"tasks_config": {
"broker_connection_string": "amqp://",
"backend_connection_string": "redis://localhost",
"task_time_limit": null,
"task_soft_time_limit": null,
"task_queue_name": "lime_default_task_queue",
"task_exchange_name": "lime_default_task_exchange",
"task_routing_key_name": "lime_default_routing_key",
"enable_scheduled_tasks": true,
"result_expires": 2592000,
"log_message_max_size": 0,
"timezone": "UTC",
"routing": {
"qos": {
"asap": "lime_task_queue_asap",
"background": "lime_task_queue_background",
"scheduled": "lime_task_queue_scheduled"
},
"tasks": {
"my.special.task": "lime_task_queue_special"
}
}
},
"features_config": {
"importer_with_taskhandler": false
},
"importer_config": {
"connection_string": "amqp://guest@localhost//",
"use_sql_server": false,
"jobs_days_visible": 30,
"sql_server_host": "localhost",
"sql_server_database": "lime_crm_import",
"sql_server_username": "",
"sql_server_password": "",
"use_s3": false,
"s3_bucket": "",
"s3_region": "",
"s3_aws_access_key_id": null,
"s3_aws_secret_access_key": null
}
}
"""
SEED_YAML = """\
tasks:
  broker_connection_string: amqp://
  backend_connection_string: redis://localhost
  task_time_limit: None
  task_soft_time_limit: None
  task_queue_name: lime_default_task_queue
  task_exchange_name: lime_default_task_exchange
  task_routing_key_name: lime_default_routing_key
  enable_scheduled_tasks: True
  result_expires: 2592000 # 30 days in seconds
  log_message_max_size: 0
  timezone: UTC # or Europe/Stockholm etc.
  routing:
    qos:
      asap: lime_task_queue_asap
      background: lime_task_queue_background
      scheduled: lime_task_queue_scheduled
    tasks:
      my.special.task: lime_task_queue_special
features:
  importer_with_taskhandler: False
importer:
  connection_string: amqp://guest@localhost//
  use_sql_server: False
  jobs_days_visible: 30
  sql_server_host: localhost
  sql_server_database: lime_crm_import
  sql_server_username:
  sql_server_password:
  use_s3: False
  s3_bucket:
  s3_region:
  s3_aws_access_key_id: None
  s3_aws_secret_access_key: None
"""
EXAMPLE = Path(__file__).parents[2] / "etc" / "limetaskd.yaml"


def read(tmp_path: Path, text: str | bytes, name: str = "limetaskd.yaml") -> LoadedConfig:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(str(path), {})


def problems(tmp_path: Path, text: str | bytes, name: str = "limetaskd.yaml") -> list[str]:
    """The errors, each on one line, without the folder."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, name)
    lines = caught.value.problems
    assert all("\n" not in line and line.startswith(f"{tmp_path}/{name}") for line in lines), lines
    return [line.removeprefix(f"{tmp_path}/") for line in lines]


@pytest.mark.parametrize("name", ["limetaskd.json", "limetaskd.yaml", "limetaskd.conf"])
def test_the_seeds_json_loads_as_printed(tmp_path: Path, name: str) -> None:
    loaded = read(tmp_path, SEED_JSON, name)
    assert loaded.warnings == ()
    check_seed(loaded)


def test_the_seeds_yaml_loads_as_printed(tmp_path: Path) -> None:
    loaded = read(tmp_path, SEED_YAML)
    assert loaded.warnings == ()
    check_seed(loaded)


def check_seed(loaded: LoadedConfig) -> None:
    defaults = load_mapping({}, {})
    assert loaded.tasks.routing.qos == {
        "asap": "lime_task_queue_asap",
        "background": "lime_task_queue_background",
        "scheduled": "lime_task_queue_scheduled",
    }
    assert loaded.tasks.routing.tasks == {"my.special.task": "lime_task_queue_special"}
    assert loaded.tasks.model_copy(update={"routing": defaults.tasks.routing}) == defaults.tasks
    assert (loaded.features, loaded.importer) == (defaults.features, defaults.importer)
    assert loaded.limetaskd == defaults.limetaskd


def test_one_section_by_both_its_names(tmp_path: Path) -> None:
    lines = problems(tmp_path, "tasks: {}\ntasks_config:\n  timezone: UTC\n")
    assert lines == ["limetaskd.yaml:2: tasks_config: is the same section as tasks: keep one of the two"]


def test_errors_use_the_long_name_where_the_file_does(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, "tasks_config:\n  timezone: 5\n")
    assert line.startswith("limetaskd.yaml:2: tasks_config.timezone = 5: must be text")


@pytest.mark.parametrize("null", ["None", "null", "~", "", "Null", "NULL"])
def test_nulls(tmp_path: Path, null: str) -> None:
    loaded = read(
        tmp_path, f"tasks:\n  result_expires: {null}\n  backend_connection_string: {null}\n  routing: {null}\n"
    )
    assert loaded.tasks.result_expires is None
    assert loaded.tasks.backend_connection_string is None
    assert loaded.tasks.routing.qos == {}


def test_a_quoted_none_is_text(tmp_path: Path) -> None:
    assert read(tmp_path, 'limetaskd: {application: "None"}').limetaskd.application == "None"


def test_a_null_where_a_value_is_needed(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, "tasks:\n  task_queue_name:\n")
    assert (
        line == "limetaskd.yaml:2: tasks.task_queue_name = null: must have a value: leave the key out for its default"
    )


@pytest.mark.parametrize("word", ["yes", "on", "True", "TRUE", "true"])
def test_booleans_of_yaml_1_1(tmp_path: Path, word: str) -> None:
    assert read(tmp_path, f"limetaskd: {{supervisor_socket: {word}}}").limetaskd.supervisor_socket


@pytest.mark.parametrize("text", ["", " \n\n", "# only a comment\n", "---\n", "\ufeff"])
def test_an_empty_file(tmp_path: Path, text: str) -> None:
    (line,) = problems(tmp_path, text)
    assert line.startswith("limetaskd.yaml: is empty")


def test_an_empty_json_file(tmp_path: Path) -> None:
    assert "is empty" in problems(tmp_path, "", "limetaskd.json")[0]


@pytest.mark.parametrize(
    ("name", "text", "start"),
    [
        ("a.yaml", "- a\n", "a.yaml: must be a map of sections (tasks, features, importer, limetaskd), not a list"),
        ("a.yaml", "hello\n", "a.yaml: must be a map of sections (tasks, features, importer, limetaskd), not text"),
        ("a.json", "5", "a.json: must be a map of sections"),
        ("a.yaml", "tasks:\n  a: b: c\n", "a.yaml:2:7: not valid YAML: mapping values are not allowed here"),
        (
            "a.yaml",
            "tasks:\n\ta: 1\n",
            "a.yaml:2:1: not valid YAML: found character '\\t' that cannot start any token: in",
        ),
        ("a.yaml", 'tasks: "abc', "a.yaml:1:12: not valid YAML"),
        ("a.yaml", "tasks: [1, 2", "a.yaml:1:"),
        ("a.yaml", "a: 1\n---\nb: 2\n", "a.yaml:2:1: not valid YAML: expected a single document"),
        ("a.yaml", "tasks: !vault x\n", "a.yaml:1:8: not valid YAML: could not determine a constructor"),
        ("a.yaml", "tasks: *nobody\n", "a.yaml:1:8: not valid YAML: found undefined alias"),
        ("a.yaml", "tasks:\n  a: &x {b: *x}\n", "a.yaml:2: an alias refers to what it stands in"),
        ("a.yaml", "tasks:\n  on: 1\n", 'a.yaml:2: the key on is not text: put it in quotes, as in "on"'),
        ("a.yaml", "tasks:\n  ? [a]\n  : 1\n", "a.yaml:2: a key must be text, not a list or a map"),
        ("a.yaml", "tasks:\n  a: \x07\n", "a.yaml:2: not valid YAML: the character U+0007 is not allowed"),
        ("a.yaml", "[" * 5000, "a.yaml: not usable YAML: nested too deeply"),
        ("a.json", '{"tasks": {}\n "x": 1}', "a.json:2:2: not valid JSON: Expecting ',' delimiter"),
        ("a.json", "{'tasks': {}}", "a.json:1:2: not valid JSON"),
        ("a.json", '{"tasks": {"result_expires": NaN}}', "a.json: NaN is no JSON value"),
        ("a.json", "[" * 100_000, "a.json: not usable JSON: nested too deeply"),
        ("a.yaml", b"tasks:\n  a: \xff\n", "a.yaml:2: is not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read_as_a_document(tmp_path: Path, name: str, text: str | bytes, start: str) -> None:
    (line,) = problems(tmp_path, text, name)
    assert line.startswith(start)


def test_repeated_keys_are_named_with_both_lines(tmp_path: Path) -> None:
    text = "tasks:\n  timezone: UTC\n  routing:\n    qos: {a: b, a: c}\n  timezone: CET\ntasks: {}\n"
    assert problems(tmp_path, text) == [
        "limetaskd.yaml:4: tasks.routing.qos.a: is given twice (first in line 4): keep one of the two",
        "limetaskd.yaml:5: tasks.timezone: is given twice (first in line 2): keep one of the two",
        "limetaskd.yaml:6: tasks: is given twice (first in line 1): keep one of the two",
    ]


def test_repeated_keys_in_json(tmp_path: Path) -> None:
    text = '{"tasks": {\n\t"timezone": "UTC",\n\t"timezone": "CET"}}'
    assert problems(tmp_path, text, "a.json") == [
        "a.json:3: tasks.timezone: is given twice (first in line 2): keep one of the two"
    ]


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    text = "limetaskd:\n  strategy: dedicated\n  pools:\n    default: &x {workers: 2, concurrency: 4}\n"
    text += "    b: {<<: *x, queues: [q]}\n"
    assert read(tmp_path, text + "tasks: {routing: {qos: {z: q}}}\n").limetaskd.pools["b"].workers == 2


@pytest.mark.parametrize("environ", [{}, {"LIMETASK_CONFIG": ""}])
def test_the_default_path(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("limetaskd.config.load.DEFAULT_PATH", str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError) as caught:
        load(None, environ)
    (line,) = caught.value.problems
    assert line.startswith(f"{tmp_path}/none.yaml: no such configuration file")
    assert "--config FILE" in line
    assert "LIMETASK_CONFIG=FILE" in line
    assert DEFAULT_PATH == "/etc/limetaskd/limetaskd.yaml"


def test_the_path_of_the_environment_and_of_the_command(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"limetaskd: {{application: {name}}}")
    environ = {"LIMETASK_CONFIG": str(tmp_path / "a")}
    assert load(None, environ).limetaskd.application == "a"
    assert load(str(tmp_path / "b"), environ).limetaskd.application == "b"
    with pytest.raises(ConfigError, match="named by LIMETASK_CONFIG"):
        load(None, {"LIMETASK_CONFIG": str(tmp_path / "c")})


def test_the_real_path_and_the_given_one(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text("{}")
    (tmp_path / "link.yaml").symlink_to("real.yaml")
    loaded = load(str(tmp_path / "link.yaml"), {})
    assert loaded.path == os.path.realpath(tmp_path / "real.yaml")
    assert loaded.file == str(tmp_path / "link.yaml")
    assert load_mapping({}, {}).path is None


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        load(str(tmp_path), {})
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        (tmp_path / "f").touch()
        load(str(tmp_path / "f" / "g"), {})
    with pytest.raises(ConfigError, match="larger than"):
        load("/dev/zero", {})
    with pytest.raises(ConfigError, match="not the path"):
        load("a\0b", {})


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the kernel's answer is given here."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.yaml").write_text("{}")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"a\.yaml: may not be read by user \d+: check owner and mode"):
        load(str(tmp_path / "a.yaml"), {})


# The example in etc/


def test_the_example_is_the_defaults() -> None:
    loaded = load(str(EXAMPLE), {})
    check_example(loaded)
    assert loaded.warnings == ()


def check_example(loaded: LoadedConfig) -> None:
    defaults = load_mapping({}, {})
    assert loaded.tasks.model_copy(update={"routing": defaults.tasks.routing}) == defaults.tasks
    assert set(loaded.tasks.routing.qos) == {"asap", "background", "scheduled"}
    assert (loaded.features, loaded.importer, loaded.limetaskd) == (
        defaults.features,
        defaults.importer,
        defaults.limetaskd,
    )


def uncommented() -> str:
    lines = []
    for line in EXAMPLE.read_text().splitlines():
        bare = line.lstrip()
        is_key = bare.startswith("#") and bare[1:2] not in {"", " "}
        lines.append(line.replace("#", "", 1) if is_key else line)
    return "\n".join(lines)


def test_the_commented_keys_of_the_example_are_the_defaults_too(tmp_path: Path) -> None:
    loaded = read(tmp_path, uncommented())
    check_example(loaded)
    assert all("this version" in warning for warning in loaded.warnings)


def test_the_example_has_every_key() -> None:
    document = yaml.safe_load(uncommented())
    for name, model in SECTIONS.items():
        for key in shape.known_keys(model):
            if ".NAME." in key or key.startswith("pools."):
                continue
            value = document[name]
            for part in key.split("."):
                assert part in value, f"{name}.{key}"
                value = value[part]
    assert all(key in EXAMPLE.read_text() for key in PoolConfig.model_fields)
