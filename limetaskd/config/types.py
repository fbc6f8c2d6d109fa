"""The kinds of value that the configuration knows. Each says, when it refuses one, what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BeforeValidator, PlainValidator
from pydantic_core import PydanticCustomError

from limetaskd.config.urls import check_backend, check_broker
from limetaskd.core.units import parse_duration, parse_size

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_POOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MODE = re.compile(r"0?[0-7]{3}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MOST_NAME_BYTES = 255  # of a name in AMQP


def refuse(text: str) -> PydanticCustomError:
    """The error that a validator raises; `text` is read behind `key = value: ` and says what is allowed."""
    return PydanticCustomError("limetaskd", "{text}", {"text": text})


def _duration(value: object) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise refuse(str(error)) from error


def _size(value: object) -> int:
    try:
        size = parse_size(value)
    except ValueError as error:
        raise refuse(str(error)) from error
    return int(_more_than_zero(size))


def _more_than_zero(value: float) -> float:
    if not value:
        raise refuse("must be more than 0")
    return value


def _concurrency(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10_000):
        return value
    raise refuse("must be a whole number from 1 to 10000, or auto")


def _matching(pattern: re.Pattern[str], text: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise refuse(text)
        return value

    return check


def _checked(check: Callable[[str], None]) -> Callable[[str], str]:
    def convert(value: str) -> str:
        try:
            check(value)
        except ValueError as error:
            raise refuse(str(error)) from error
        return value

    return convert


def _name(value: str) -> str:
    if not value:
        raise refuse("must not be empty")
    if "," in value or any(character.isspace() or not character.isprintable() for character in value):
        raise refuse("must be a name without white space and commas")
    if len(value.encode()) > MOST_NAME_BYTES:
        raise refuse(f"must be a name of at most {MOST_NAME_BYTES} bytes")
    return value


def _task_name(value: str) -> str:
    if any(character in value for character in "*?#["):
        raise refuse("holds a wildcard: tasks are matched by their exact name, so write a line for each task")
    return _name(value)


def _time_zone(value: str) -> str:
    if value == "UTC":  # known even on a host without time zone data
        return value
    try:
        ZoneInfo(value)
    except (ValueError, OSError, KeyError):
        known = {zone.lower(): zone for zone in available_timezones()}
        if not known:
            raise refuse("cannot be looked up: this host has no time zone data; install tzdata") from None
        last = {zone.rpartition("/")[2]: zone for zone in known}
        close = get_close_matches(value.lower().replace(" ", "_"), known, 1, 0.8) or [
            last[city] for city in get_close_matches(value.lower().rpartition("/")[2].replace(" ", "_"), last, 1, 0.8)
        ]
        hint = f". Did you mean {known[close[0]]}?" if close else ""
        raise refuse(f"unknown time zone: must be UTC or a name such as Europe/Stockholm{hint}") from None
    return value


def _absolute(value: str) -> str:
    if not PurePosixPath(value).is_absolute() or "\0" in value:
        raise refuse("must be an absolute path")
    return value


def _destination(value: str) -> str:
    if value != "stderr" and not PurePosixPath(value).is_absolute():
        raise refuse("must be stderr or an absolute path")
    return value


def _endpoint(value: str) -> str:
    scheme, separator, rest = value.partition("://")
    if not separator or scheme not in {"ipc", "tcp"}:
        raise refuse("must be ipc:///absolute/path.sock")
    if scheme == "ipc" and not rest.startswith("/"):
        raise refuse("must name a file, as in ipc:///run/limetaskd/control.sock: its mode and group guard it")
    return value


def _mode(value: object) -> object:
    if isinstance(value, str) and _MODE.fullmatch(value):
        return value
    more = ": without quotes YAML reads another number" if isinstance(value, int) else ""
    raise refuse(f'must be octal digits in quotes, such as "0660"{more}')


def _level(value: object) -> object:
    levels = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    if isinstance(value, str) and value.upper() in levels:
        return value.upper()
    raise refuse(f"must be one of {', '.join(levels)}")


def _setting(value: str) -> str:
    if value != value.lower():
        raise refuse(f"must be one of Celery's lower-case names, as {value.lower()!r}")
    return value


def _json_value(value: object) -> object:
    """Settings travel to the workers as JSON."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise refuse("must have text as its keys")
            _json_value(item)
    elif isinstance(value, list):
        for item in value:
            _json_value(item)
    elif value is not None and not isinstance(value, (str, int, float, bool)):
        raise refuse(f"must be text, a number, true, false, null, a list or a map, not a {type(value).__name__}")
    return value


def _none_as_empty(value: object) -> object:
    return "" if value is None else value


def _none_as_map(value: object) -> object:
    return {} if value is None else value


Duration = Annotated[float, PlainValidator(_duration)]
PositiveDuration = Annotated[float, PlainValidator(_duration), AfterValidator(_more_than_zero)]
Size = Annotated[int, PlainValidator(_size)]
Concurrency = Annotated[int | Literal["auto"], PlainValidator(_concurrency)]
Name = Annotated[str, AfterValidator(_name)]
TaskName = Annotated[str, AfterValidator(_task_name)]
PoolName = Annotated[
    str, AfterValidator(_matching(_POOL, "must be a name of letters, digits, _ . and -, at most 64 of them"))
]
Variable = Annotated[str, AfterValidator(_matching(_VARIABLE, "must be the name of an environment variable"))]
Module = Annotated[str, AfterValidator(_matching(_MODULE, "must be the name of a module, such as crm.tasks"))]
AppPath = Annotated[
    str,
    AfterValidator(_matching(re.compile(f"{_MODULE.pattern}:{_MODULE.pattern}"), "must be package.module:attribute")),
]
BrokerUrl = Annotated[str, AfterValidator(_checked(check_broker))]
BackendUrl = Annotated[str, AfterValidator(_checked(check_backend))]
TimeZone = Annotated[str, AfterValidator(_time_zone)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Destination = Annotated[str, AfterValidator(_destination)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
Mode = Annotated[str, BeforeValidator(_mode)]
Level = Annotated[str, BeforeValidator(_level)]
CelerySetting = Annotated[str, AfterValidator(_setting)]
JsonValue = Annotated[Any, PlainValidator(_json_value)]
# Empty values of the seed's own YAML: `sql_server_password:`.
Text = Annotated[str, BeforeValidator(_none_as_empty)]
EMPTY_MAP = BeforeValidator(_none_as_map)
