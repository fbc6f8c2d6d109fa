"""Decorator, users, settings of Celery, schedules: what needs no broker."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Task
from celery.schedules import crontab

from limetaskd import CronTab, ScheduledTask, task, task_user
from limetaskd.core.settings import Settings
from limetaskd.errors import ConfigError
from limetaskd.tasks.app import build_app, configure_app, load_app, task_modules
from limetaskd.tasks.conf import celery_settings
from limetaskd.tasks.message import header_of, queue_of, sent_at_of
from limetaskd.tasks.schedule import ScheduleError, collect, entry_headers
from limetaskd.tasks.user import current_user, user_of
from tests.support.sending import ASAP, DEFAULT, clean_apps, make_settings

URL = "amqp://guest:secret@127.0.0.1:1//"


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with clean_apps():
        yield


@pytest.fixture
def settings() -> Settings:
    return make_settings(URL, prefix="prod")


@task(qos="asap", max_retries=7, name="unit.with_options")
def with_options(number: int) -> int:
    return number + 1


@task
def bare(number: int) -> int:
    return number


@task(bind=True, delivery="at-most-once", name="unit.once")
def once(self: Any) -> Any:
    return self


@task(delivery="at-least-once", name="unit.late")
def late() -> None: ...


@task(delivery="at-most-once", acks_late=True, name="unit.own")
def own() -> None: ...


def test_the_decorator_works_bare_and_with_options(settings: Settings) -> None:
    app = build_app(settings)
    assert (with_options.qos, with_options.max_retries, with_options.name) == ("asap", 7, "unit.with_options")
    assert with_options(1) == 2
    assert (bare.qos, bare(3)) == (None, 3)
    assert bare.name == f"{__name__}.bare"
    assert once() is app.tasks["unit.once"]
    # In an app that is made later, too.
    other = build_app(settings)
    assert other.tasks["unit.with_options"].qos == "asap"
    assert with_options.app is other


def test_the_delivery_of_a_task_wins_over_the_configured_one(settings: Settings) -> None:
    for delivery, default in (("at-least-once", True), ("at-most-once", False)):
        build_app(dataclasses.replace(settings, delivery=delivery))
        assert [item.acks_late for item in (bare, once, late, own)] == [default, False, True, True]
        assert [item.reject_on_worker_lost for item in (bare, once, late, own)] == [default, False, True, True]


def test_a_bad_option_is_an_error_at_the_definition() -> None:
    for qos in (7, b"asap", ["asap"], task):
        with pytest.raises(TypeError, match="qos"):
            task(qos=qos)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="qos"):
        task(qos=" ")
    with pytest.raises(ValueError, match="at-least-once"):
        task(delivery="exactly-once")


def test_the_user_is_of_the_innermost_block() -> None:
    assert current_user() is None
    with task_user("1"):
        with task_user(2):
            assert current_user() == "2"
        with task_user(None):
            assert current_user() is None
        assert current_user() == "1"
    assert current_user() is None


def test_headers_are_read_from_every_kind_of_request() -> None:
    headers = {"__user_id": "42", "__routed_queue": "prod_q", "__sent_at": 12.5}
    for request in (SimpleNamespace(headers=headers), SimpleNamespace(headers=None, request_dict=headers), headers):
        assert user_of(request) == "42"
        assert sent_at_of(request) == 12.5
        assert header_of(request, "no_such") is None
    assert queue_of(SimpleNamespace(headers=headers, delivery_info={"exchange": "x", "routing_key": "k"})) == "prod_q"
    assert queue_of(SimpleNamespace(headers=headers, delivery_info={"exchange": "", "routing_key": "k"})) == "k"
    assert sent_at_of({"__sent_at": "yesterday"}) is None


def test_settings_become_celery_settings() -> None:
    settings = make_settings(
        "redis://h/0",
        "redis://h/1",
        prefix="prod",
        suffix="eu",
        time_limit_s=60.0,
        soft_time_limit_s=50.0,
        timezone="Europe/Stockholm",
        celery={"task_compression": "gzip", "broker_transport_options": {"visibility_timeout": 7}},
    )
    conf = celery_settings(settings)
    assert conf["task_default_queue"] == "prod_lime_default_eu"
    assert [queue.routing_key for queue in conf["task_queues"]][:2] == ["prod_lime_default_key_eu", "prod_lime_asap_eu"]
    assert (conf["control_exchange"], conf["event_exchange"]) == ("prod_celery_eu", "prod_celeryev_eu")
    assert (conf["task_time_limit"], conf["task_soft_time_limit"]) == (60.0, 50.0)
    assert (conf["timezone"], conf["enable_utc"], conf["result_expires"]) == ("Europe/Stockholm", True, 2592000)
    # What is passed through wins, and a transport option leaves the others in place.
    assert conf["task_compression"] == "gzip"
    assert conf["broker_transport_options"]["visibility_timeout"] == 7
    assert conf["broker_transport_options"]["global_keyprefix"] == settings.cluster.key_prefix
    assert conf["result_backend_transport_options"]["global_keyprefix"] == settings.cluster.key_prefix
    assert celery_settings(make_settings(URL))["control_exchange"] == "celery"


def test_queues_are_found_by_configured_and_by_actual_name(settings: Settings) -> None:
    queues = build_app(settings).amqp.queues
    assert queues[ASAP] is queues[f"prod_{ASAP}"]
    assert ASAP in queues
    assert "nobody" not in queues
    assert queues["nobody"].name == "prod_nobody"
    assert queues["stage_lime_asap"].name == "prod_stage_lime_asap"
    queues.select(f"{DEFAULT},prod_{ASAP}".split(","))
    assert set(queues.consume_from) == {f"prod_{DEFAULT}", f"prod_{ASAP}"}
    queues.deselect([DEFAULT])
    assert set(queues.consume_from) == {f"prod_{ASAP}"}
    assert queues.select_add("other", exchange="raw", routing_key="raw").name == "prod_other"


def test_an_existing_app_keeps_what_is_its_own(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    app = Celery("mine", broker="memory://", set_as_current=False)
    app.conf.update(task_compression="bzip2", task_routes={"a": "b"}, imports=("mine.tasks",), beat_schedule={"x": 1})

    @app.task(name="mine.early", qos="asap", shared=False)
    def early() -> None: ...

    @app.task(name="mine.decided", acks_late=False, shared=False)
    def decided() -> None: ...

    assert app.tasks["mine.early"].acks_late is False
    assert app.amqp.queues  # used already
    assert app.control.mailbox.namespace == "celery"
    configured = dataclasses.replace(settings, imports=["ours.tasks"])
    assert configure_app(app, configured) is app
    assert configure_app(app, configured) is app
    assert "task_routes" in caplog.text
    assert app.conf.task_compression == "bzip2"
    assert app.conf.imports == ("mine.tasks", "ours.tasks")
    assert app.conf.beat_schedule == {"x": 1}
    assert app.conf.broker_url == URL
    assert app.control.mailbox.namespace == "prod_celery"
    assert set(app.amqp.queues) == {queue.actual for queue in settings.queues}
    assert app.tasks["mine.early"].acks_late is True
    assert app.tasks["mine.decided"].acks_late is False
    route = app.amqp.router.route({}, "mine.early")
    assert route["queue"].name == f"prod_{ASAP}"


def test_the_applications_own_app_is_found(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("unit_own_app")
    module.app = mine = Celery("mine", set_as_current=False)  # type: ignore[attr-defined]
    module.number = 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unit_own_app", module)
    assert build_app(dataclasses.replace(settings, app="unit_own_app:app")) is mine
    for reference in ("unit_own_app:nothing", "unit_own_app:number"):
        with pytest.raises(ConfigError, match=r"limetaskd\.app"):
            load_app(reference)
    assert task_modules(dataclasses.replace(settings, imports=["b", "a", "b"]))[:2] == ["b", "a"]


def module_with(*scheduled: Any, name: str = "crm.nightly") -> types.ModuleType:
    module = types.ModuleType(name)
    module.register_scheduled_tasks = lambda: list(scheduled)  # type: ignore[attr-defined]
    return module


def test_schedules_are_collected(settings: Settings) -> None:
    app = build_app(dataclasses.replace(settings, timezone="Europe/Stockholm"))
    app.conf.beat_schedule = {"own": {"task": "a", "schedule": 10}}
    every = ScheduledTask("crm.sync", timedelta(minutes=5))
    nightly = ScheduledTask(with_options, CronTab("0", "3", "mon-fri"), (1,), {"b": 2}, user_id=42)
    again = ScheduledTask(with_options, CronTab(minute=30), name="half past")
    twice = [ScheduledTask("crm.mail", CronTab(hour=hour), [hour]) for hour in (1, 2)]
    entries = collect(app, [module_with(every, nightly, again), types.ModuleType("no_schedule"), module_with(*twice)])
    assert set(entries) >= {"own", "crm.sync", "half past"}
    assert entries["own"]["schedule"].run_every == timedelta(seconds=10)
    assert entries["crm.sync"]["schedule"].run_every == timedelta(minutes=5)
    (name,) = (name for name in entries if name.startswith("unit.with_options:"))
    entry = entries[name]
    assert (entry["task"], entry["args"], entry["kwargs"]) == ("unit.with_options", (1,), {"b": 2})
    assert entry["options"] == {"headers": {"__user_id": "42"}}
    assert str(entry["schedule"].tz) == "Europe/Stockholm"
    assert entry["schedule"].day_of_week == {1, 2, 3, 4, 5}
    # The same names again, whatever the order.
    other = collect(app, [module_with(*reversed(twice)), module_with(again, nightly, every)])
    assert set(other) == set(entries)
    assert isinstance(CronTab(), crontab)


def test_a_bad_schedule_names_its_module(settings: Settings) -> None:
    app = build_app(settings)
    broken = types.ModuleType("crm.broken")
    broken.register_scheduled_tasks = lambda: 1 / 0  # type: ignore[attr-defined]
    same = ScheduledTask("a", CronTab())
    for module, text in (
        (broken, "ZeroDivisionError"),
        (module_with("no entry", name="crm.broken"), "must return ScheduledTask"),
        (module_with(ScheduledTask("a", "tomorrow"), name="crm.broken"), "timedelta"),
        (module_with(ScheduledTask("a", 0), name="crm.broken"), "longer than 0"),
        (module_with(same, same, name="crm.broken"), "exists twice"),
    ):
        with pytest.raises(ScheduleError, match=r"crm\.broken") as caught:
            collect(app, [module])
        assert text in str(caught.value)


def test_the_headers_of_a_scheduled_send() -> None:
    planned = datetime(2026, 11, 24, 4, 0, tzinfo=timezone(timedelta(hours=1)))
    assert entry_headers("nightly", planned) == {
        "__schedule_entry": "nightly",
        "__planned_at": "2026-11-24T03:00:00Z",
    }
    assert entry_headers("x", planned.astimezone(UTC)) == entry_headers("x", planned)


def test_the_library_needs_no_validation_and_no_yaml() -> None:
    """In the application's interpreter these may be missing, or be of another version."""
    code = (
        "import sys\n"
        "for name in ('pydantic', 'yaml', 'zmq', 'psutil', 'supervisor', 'redis'): sys.modules[name] = None\n"
        "import limetaskd.tasks.app, limetaskd.tasks.send, limetaskd.tasks.schedule, limetaskd.tasks.decorators\n"
        "from tests.support.sending import make_settings\n"
        "app = limetaskd.tasks.app.build_app(make_settings('amqp://127.0.0.1:1//', config_path='/no/such'))\n"
        "assert app.amqp.queues and issubclass(app.Task, limetaskd.tasks.decorators.LimeTask)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_task_class_of_the_application_works(settings: Settings) -> None:
    class Mine(Task):  # type: ignore[misc]
        abstract = True

    @task(base=Mine, qos="background", name="unit.mine")
    def mine() -> None: ...

    app = build_app(settings)
    assert isinstance(app.tasks["unit.mine"], Mine)
    assert app.amqp.router.route({}, "unit.mine")["queue"].name == "prod_lime_background"


def test_every_client_of_the_result_store_says_that_it_is_celerys(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings(URL, backend_url="redis://127.0.0.1:1/0")
    first = build_app(settings).backend.connparams
    # The next one must not read the metadata of all that is installed once more.
    monkeypatch.setattr("importlib.metadata.version", lambda _name: pytest.fail("read again"))
    second = build_app(settings).backend.connparams
    for parameters in (first, second):
        assert "celery_v" in parameters["driver_info"].formatted_name
