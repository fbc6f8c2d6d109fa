"""Senders and workers follow the accepted routing of their host's daemon, else the configuration file."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limetaskd.core.accepted import ACCEPTED_NAME, Accepted
from limetaskd.core.settings import Routing, Settings
from limetaskd.errors import PublishError
from limetaskd.tasks.app import build_app, create_app
from limetaskd.tasks.send import send_task
from tests.support import sending_tasks as tasks
from tests.support.brokers import free_ports
from tests.support.sending import (
    ASAP,
    BACKGROUND,
    DEFAULT,
    SPECIAL,
    Worker,
    clean_apps,
    make_settings,
    tasks_in,
    without,
)
from tests.support.waiting import wait_until

CONFIG = """
tasks:
  broker_connection_string: {url}
  task_queue_name: lime_default
  routing:
    qos: {{asap: {asap}}}
limetaskd:
  runtime_dir: {folder}/run
  state_dir: {folder}/state
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with clean_apps():
        yield


def write(path: Path, text: str) -> None:
    """As the daemon does: never half a document."""
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def accept(settings: Settings, **changes: Any) -> None:
    assert settings.runtime_dir is not None
    accepted = Accepted.of(dataclasses.replace(settings, **changes), 1)
    write(Path(settings.runtime_dir) / ACCEPTED_NAME, accepted.to_json())


def swapped(settings: Settings) -> Routing:
    """The routing with `asap` and `background` the other way round."""
    return dataclasses.replace(settings.routing, qos={"asap": BACKGROUND, "background": ASAP})


def test_the_next_send_uses_what_the_daemon_has_accepted(
    amqp_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "limetaskd.yaml"
    config.write_text("broken: [")  # nobody looks at it while a daemon runs
    settings = make_settings(amqp_url, prefix="prod", config_path=str(config), runtime_dir=str(tmp_path / "run"))
    build_app(settings)
    send_task("x", qos="asap")
    assert tasks_in(settings, f"prod_{ASAP}") == ["x"]
    accept(settings, routing=swapped(settings))
    send_task("x", qos="asap")
    assert tasks_in(settings, f"prod_{BACKGROUND}") == ["x"]
    # A damaged document, and one of another cluster, change nothing.
    place = tmp_path / "run" / ACCEPTED_NAME
    write(place, "{")
    with caplog.at_level(logging.WARNING, "limetaskd"):
        send_task("x", qos="asap")
        send_task("x", qos="asap")
    assert len([record for record in caplog.records if ACCEPTED_NAME in record.getMessage()]) == 1
    assert tasks_in(settings, f"prod_{BACKGROUND}") == ["x", "x"]
    # The daemon stops, and the file on disk is broken: the last good routing stays.
    place.unlink()
    send_task("x", qos="asap")
    assert tasks_in(settings, f"prod_{BACKGROUND}") == ["x"]
    accept(dataclasses.replace(settings, prefix="stage"), routing=settings.routing)
    send_task("x", qos="asap")
    assert tasks_in(settings, f"prod_{BACKGROUND}") == ["x"]
    accept(settings)
    send_task("x", qos="asap")
    assert tasks_in(settings, f"prod_{ASAP}") == ["x"]


def test_without_a_daemon_the_file_on_disk_counts(
    amqp_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIME_TASK_QUEUE_PREFIX", "prod")
    config = tmp_path / "limetaskd.yaml"
    config.write_text(CONFIG.format(url=amqp_url, asap="first", folder=tmp_path))
    app = create_app(config)
    settings = make_settings(amqp_url, prefix="prod")
    assert app.conf.task_default_queue == "prod_lime_default"
    send_task("x", qos="asap")
    assert tasks_in(settings, "prod_first") == ["x"]
    config.write_text(CONFIG.format(url=amqp_url, asap="second", folder=tmp_path))

    def arrives() -> bool:
        send_task("x", qos="asap")
        return bool(tasks_in(settings, "prod_second"))

    wait_until(arrives, 30)
    with caplog.at_level(logging.WARNING, "limetaskd"):
        config.write_text("tasks: {no_such_key: 1}")

        def warned() -> bool:
            send_task("x", qos="asap")
            return any(str(config) in record.getMessage() for record in caplog.records)

        wait_until(warned, 30)
        assert "prod_second" in {queue.actual for queue in app._limetaskd_binding.settings().queues}
        assert tasks_in(settings, "prod_second")
        assert len([record for record in caplog.records if str(config) in record.getMessage()]) == 1


def test_the_embedded_server_is_found_when_its_daemon_comes(redis_url: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    nowhere = f"amqp://127.0.0.1:{port}//"
    settings = make_settings(
        nowhere,
        config_path=str(tmp_path / "c.yaml"),
        runtime_dir=str(tmp_path / "run"),
        publish_timeout_s=1,
    )
    app = build_app(settings)
    with pytest.raises(PublishError, match="not confirmed"):
        send_task("x")
    embedded = make_settings(redis_url, redis_url)
    accept(settings, broker_url=redis_url, backend_url=redis_url, embedded=True)
    result = send_task("x")
    assert tasks_in(embedded, DEFAULT) == ["x"]
    app.backend.mark_as_done(result.id, 5)
    assert result.get(timeout=30) == 5
    # An app made now finds it at once.
    assert build_app(settings).conf.result_backend == redis_url
    (tmp_path / "run" / ACCEPTED_NAME).unlink()
    assert app._limetaskd_binding.settings().broker_url == nowhere


def test_a_retry_of_a_queue_that_is_configured_no_more_is_routed_anew(
    amqp_url: str, redis_url: str, tmp_path: Path
) -> None:
    settings = make_settings(
        amqp_url, redis_url, prefix="prod", config_path=str(tmp_path / "c.yaml"), runtime_dir=str(tmp_path / "run")
    )
    build_app(settings)
    accept(settings)
    with Worker(settings, "-P", "solo"):
        result = tasks.again.apply_async(([], 2), headers={"__queue": BACKGROUND})
        wait_until(lambda: result.state == "RETRY", 30)
        new = without(settings, BACKGROUND)
        accept(new, routing=Routing(DEFAULT, {"asap": SPECIAL}, {}))
        history = result.get(timeout=60)
    # The first retry had been sent before the reload.
    assert [item["queue"] for item in history] == [f"prod_{BACKGROUND}", f"prod_{BACKGROUND}", f"prod_{SPECIAL}"]


def test_a_worker_uses_a_reloaded_routing_for_its_own_tasks_at_once(
    amqp_url: str, redis_url: str, tmp_path: Path
) -> None:
    settings = make_settings(amqp_url, redis_url, config_path=str(tmp_path / "c.yaml"), runtime_dir=str(tmp_path))
    app = build_app(settings)
    accept(settings)
    with Worker(settings, "-P", "prefork", "-c", "1"):
        for routing, queue in ((settings.routing, ASAP), (swapped(settings), BACKGROUND)):
            accept(settings, routing=routing)
            children = tasks.parent.delay().get(timeout=60)
            assert app.AsyncResult(children[1]).get(timeout=60)["queue"] == queue


def test_settings_of_no_file_follow_nobody(amqp_url: str, tmp_path: Path) -> None:
    settings = make_settings(amqp_url, runtime_dir=str(tmp_path))
    app = build_app(settings)
    write(tmp_path / ACCEPTED_NAME, Accepted.of(settings, 1).to_json())
    assert app._limetaskd_binding.settings() is settings
