"""Where the client looks for the daemon."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from limetaskctl.endpoint import default, parse, path_of
from limetaskctl.errors import UsageError


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("ipc:///run/x/control.sock", "ipc:///run/x/control.sock"),
        ("/run/x/control.sock", "ipc:///run/x/control.sock"),
        ("control.sock", "ipc://control.sock"),
        ("@name", "ipc://@name"),
    ],
)
def test_an_endpoint_or_a_path(text: str, endpoint: str) -> None:
    assert parse(text) == endpoint
    assert path_of(endpoint) == endpoint.removeprefix("ipc://")


@pytest.mark.parametrize("text", ["", "ipc://", "tcp://127.0.0.1:5555", "http://x", "/" + "x" * 107, "/a\0b"])
def test_what_is_no_endpoint_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="socket"):
        parse(text)


def test_the_order_of_places(tmp_path: Path) -> None:
    system, users = tmp_path / "system", tmp_path / "users"
    system.mkdir()
    (users / "1000").mkdir(parents=True)
    everything = {
        "LIMETASKCTL_SOCKET": "/one.sock",
        "RUNTIME_DIRECTORY": "/two:/other",
        "XDG_RUNTIME_DIR": "/four",
    }

    def found(*names: str, uid: int = 1000) -> str:
        environ = {name: everything[name] for name in names}
        return default(environ, uid, str(system), str(users)).removeprefix("ipc://")

    assert found(*everything) == "/one.sock"
    assert found("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR") == "/two/control.sock"
    assert found("XDG_RUNTIME_DIR") == "/four/limetaskd/control.sock"
    assert found() == f"{users}/1000/limetaskd/control.sock"
    assert found(uid=1001) == f"{tempfile.gettempdir()}/limetaskd-1001/control.sock"
    assert found("XDG_RUNTIME_DIR", uid=0) == f"{system}/control.sock"
    (system / "control.sock").touch()
    assert found("XDG_RUNTIME_DIR") == f"{system}/control.sock"


def test_empty_variables_count_as_absent(tmp_path: Path) -> None:
    environ = {"LIMETASKCTL_SOCKET": "", "RUNTIME_DIRECTORY": "", "XDG_RUNTIME_DIR": "/x"}
    assert default(environ, 1000, str(tmp_path), str(tmp_path)) == "ipc:///x/limetaskd/control.sock"
