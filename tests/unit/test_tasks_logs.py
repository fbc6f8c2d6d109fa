"""Records of a sender, in a process of its own: its logging is as its application made it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

START = """
import logging, logging.config, sys
from limetaskd import create_app, send_task, configure_app
from tests.support.sending import make_settings
app = create_app(make_settings("memory://localhost//", prefix="prod", log_message_max_bytes={cut}))
"""
APPLICATION = "logging.basicConfig(level={level}, format='APP %(levelname)s %(name)s %(message)s', stream=sys.stderr)\n"
APP_LINE = "APP INFO limetaskd.routing task crm.rename sent to prod_lime_asap (header_qos)"
SEND = "send_task('crm.rename', qos='asap', task_id='id-{n}')\n"
ROOT_UNTOUCHED = "assert logging.getLogger().handlers == [] and logging.getLogger().level == logging.WARNING\n"


def run(code: str, cut: int = 0) -> list[str]:
    """The lines on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", START.format(cut=cut) + code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()


def document(line: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line)
    return found


def test_without_logging_the_records_are_json_on_stderr() -> None:
    lines = run(SEND.format(n=1) + ROOT_UNTOUCHED)
    (record,) = [document(line) for line in lines]
    assert record["task_route_task"] == "crm.rename"
    assert record["task_route_type"] == "header_qos"
    assert record["task_queue"] == "prod_lime_asap"
    assert record["task_id"] == "id-1"
    assert (record["level"], record["logger"]) == ("INFO", "limetaskd.routing")


def test_a_warning_is_a_record_too() -> None:
    lines = run("send_task('x', qos='nobody')\nsend_task('y', queue='nowhere')\n")
    records = [document(line) for line in lines]
    assert [record["level"] for record in records] == ["WARNING", "INFO", "WARNING", "INFO"]
    assert "'nobody'" in records[0]["message"]
    assert records[1]["task_route_type"] == "default_queue"
    assert "prod_nowhere" in records[2]["message"]


def test_the_applications_logging_is_used_and_left_alone() -> None:
    begin = "before = list(logging.getLogger().handlers)\n"
    end = "assert logging.getLogger().handlers == before and logging.getLogger('limetaskd').handlers == []\n"
    lines = run(APPLICATION.format(level=20) + begin + SEND.format(n=1) + end)
    assert lines == [APP_LINE]
    # It wants to see warnings only.
    assert run(APPLICATION.format(level=30) + SEND.format(n=1)) == []


def test_logging_that_is_configured_later_gets_each_record_once() -> None:
    lines = run(SEND.format(n=1) + APPLICATION.format(level=20) + SEND.format(n=2))
    assert document(lines[0])["task_id"] == "id-1"
    assert lines[1:] == [APP_LINE]
    lines = run(SEND.format(n=1) + APPLICATION.format(level=30) + SEND.format(n=2))
    assert [document(line)["task_id"] for line in lines] == ["id-1"]


def test_a_configuration_that_disables_existing_loggers_does_not_silence_us() -> None:
    config = (
        "logging.config.dictConfig({'version': 1, 'handlers': {'h': {'class': 'logging.StreamHandler'}}, "
        "'root': {'level': 'INFO', 'handlers': ['h']}})\n"
    )
    assert run(config + SEND.format(n=1)) == ["task crm.rename sent to prod_lime_asap (header_qos)"]


def test_a_long_message_is_cut() -> None:
    (line,) = run(SEND.format(n=1), cut=10)
    record = document(line)
    assert (record["message"], record["truncated"]) == ("task crm.r", True)
