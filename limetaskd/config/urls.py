"""URLs of brokers and result backends: which are known, and how one is shown without its secrets (pure)."""

from __future__ import annotations

import re
from difflib import get_close_matches
from urllib.parse import unquote, urlsplit

from limetaskd.core.redact import MASK, redact_text

BROKER_SCHEMES = ("amqp", "amqps", "pyamqp", "redis", "rediss", "redis+socket", "sentinel")
BACKEND_SCHEMES = ("redis", "rediss", "redis+socket", "sentinel", "elasticsearch", "rpc")
_OTHER_WORDS = {"rabbitmq": "amqp", "rabbit": "amqp", "valkey": "redis", "unix": "redis+socket", "tls": "amqps"}
AMQP_SCHEMES = ("amqp", "amqps", "pyamqp")
_KNOWN = "|".join(map(re.escape, {*BROKER_SCHEMES, *BACKEND_SCHEMES, *AMQP_SCHEMES, *_OTHER_WORDS}))
# A ; separates alternatives where a URL follows; elsewhere it is probably part of a password.
_ALTERNATIVES = re.compile(rf";(?=(?:{_KNOWN})://)", re.IGNORECASE)


def scheme_of(url: str) -> str:
    """`amqp` of `amqp://...`; empty when there is none."""
    return url.partition("://")[0] if "://" in url else ""


def check_broker(url: str) -> None:
    """Raises ValueError, without quoting the URL, when no known broker can be meant. `;` separates alternatives."""
    _check(url, BROKER_SCHEMES, "amqp://user:password@host:5672/vhost or redis://host:6379/0")


def check_backend(url: str) -> None:
    """Likewise for a result backend."""
    _check(url, BACKEND_SCHEMES, "redis://host:6379/0 or elasticsearch://host:9200/index/doc")


def _check(url: str, schemes: tuple[str, ...], example: str) -> None:
    for part in url.split(";"):
        scheme = scheme_of(part)
        if not scheme:
            more = " (a ; separates alternatives; in a password write it as %3B)" if ";" in url else ""
            raise ValueError(f"must be a URL such as {example}{more}")
        if scheme not in schemes:
            close = get_close_matches(_OTHER_WORDS.get(scheme.lower(), scheme.lower()), schemes, 1)
            hint = f". Did you mean {close[0]}://?" if close else ""
            raise ValueError(f"unknown URL scheme {scheme}://: must be one of {', '.join(schemes)}{hint}")
        _check_parts(part, scheme)


def _check_parts(url: str, scheme: str) -> None:
    rest = url.partition("://")[2]
    if any(character.isspace() for character in url):
        raise ValueError("must not contain white space; write it as %20")
    try:
        # As kombu reads it: with the rules of http.
        parts = urlsplit(f"http://{rest}")
        port = parts.port
    except ValueError:
        raise ValueError(
            "has no usable host and port; in a user name or password write / as %2F, @ as %40, : as %3A, # as %23"
        ) from None
    if "@" in parts.path and port is None and not parts.username:
        # user:pa/ss@host would make a host named user: and show half of the password in error messages.
        raise ValueError("has an @ behind a /; in a password write / as %2F and @ as %40")
    if scheme == "redis+socket":
        if parts.netloc or parts.path in {"", "/"}:
            raise ValueError("must name a socket: redis+socket:///absolute/path.sock?virtual_host=0")
        return
    number = unquote(parts.path).strip("/")
    if scheme in {"redis", "rediss", "sentinel"} and number and not number.isdecimal():
        raise ValueError("must end with the number of a database, as in redis://host:6379/0")


def shown_url(url: str) -> str:
    """`url` without its password, also when it is written wrongly: then too much is hidden rather than too little."""
    return ";".join(_shown(part) for part in _ALTERNATIVES.split(url))


def _shown(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    before, at, behind = rest.rpartition("@")
    if not separator:
        return MASK if "@" in url else url
    if at and ":" in before:
        # A bare @ or / in a password ends the credentials early for a parser, not for us.
        return redact_text(f"{scheme}://{before.partition(':')[0]}:{MASK}@{behind}")
    return redact_text(url)
