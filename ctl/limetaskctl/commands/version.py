"""`version`: of the client and of the daemon; the client's also when the daemon cannot be reached."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from limetaskctl.errors import CtlError
from limetaskctl.protocol import PROTOCOL_VERSION
from limetaskctl.render import clean
from limetaskctl.session import Session
from limetaskd.version import __version__


def add_arguments(parser: ArgumentParser) -> None:
    """No arguments."""


def run(session: Session, _args: Namespace) -> None:
    document: dict[str, Any] = {"client": {"version": __version__, "protocol": PROTOCOL_VERSION}, "daemon": None}
    if not session.as_json:
        session.line(f"limetaskctl {__version__} (protocol {PROTOCOL_VERSION})")
    try:
        daemon = session.call("version", {})
    except CtlError as error:
        error.document = document
        raise
    document["daemon"] = daemon
    if session.as_json:
        session.document(document)
    else:
        session.line(f"limetaskd {clean(daemon['version'])} (protocol {clean(daemon['protocol'])})")
    if isinstance(daemon["protocol"], int) and daemon["protocol"] > PROTOCOL_VERSION:
        raise CtlError(f"the daemon speaks protocol {daemon['protocol']}: use the limetaskctl of its version")
