"""Private RabbitMQ and Redis servers: free loopback ports, data in a folder of their own, nothing left behind."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from tests.support.server import HOST, Server, find_binary, free_ports

__all__ = ["RabbitMQ", "Redis", "Server", "free_ports"]

# The wrapper in /usr/sbin changes the user and drops the environment.
_RABBITMQ = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "/usr/lib/rabbitmq/sbin/rabbitmq-server")
_ERL_CALL = ("/usr/lib/erlang/bin/erl_call", "/usr/bin/erl_call")


class RabbitMQ(Server):
    """A RabbitMQ node with an epmd of its own. User and password: guest.

    `config`: more lines of rabbitmq.conf, e.g. ["consumer_timeout = 5000"]. `management`: with the HTTP API
    (2 s slower), at `management_url`.
    """

    name = "rabbitmq"
    ports_needed = 4

    def __init__(self, config: Sequence[str] = (), *, management: bool = False) -> None:
        self._server = find_binary(_RABBITMQ, "rabbitmq-server")
        self._erl_call = find_binary(_ERL_CALL, "erlang-base")
        super().__init__()
        self.config = list(config)
        self.management = management
        self._cookie = "limetaskdtests" + Path(self.folder).name.rpartition("-")[2]
        self._vhosts = 0
        self._calls = itertools.count(1)

    @property
    def node(self) -> str:
        return f"lt{self.port}@localhost"

    def _environment(self) -> dict[str, str]:
        _, dist_port, epmd_port, _ = self.ports
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("RABBITMQ_")}
        return {
            **inherited,
            "HOME": self.folder,
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_MNESIA_BASE": f"{self.folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{self.folder}/log",
            "RABBITMQ_PID_FILE": f"{self.folder}/pid",
            "RABBITMQ_CONFIG_FILE": f"{self.folder}/rabbitmq.conf",
            "RABBITMQ_CONF_ENV_FILE": f"{self.folder}/rabbitmq-env.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{self.folder}/enabled_plugins",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{self.folder}/generated",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
            ),
        }

    def _prepare(self) -> None:
        folder = Path(self.folder)
        cookie = folder / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(self._cookie)
            cookie.chmod(0o400)
        lines = ["disk_free_limit.absolute = 1MB", "loopback_users.guest = true", *self.config]
        if self.management:
            lines += ["management.tcp.ip = 127.0.0.1", f"management.tcp.port = {self.ports[3]}"]
        (folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (folder / "rabbitmq-env.conf").write_text("")
        (folder / "enabled_plugins").write_text("[rabbitmq_management].\n" if self.management else "[].\n")

    def _command(self) -> list[str]:
        # erl would start epmd as a daemon in a session of its own; as a child in ours it ends with us.
        return ["/bin/sh", "-c", f'epmd -port "$ERL_EPMD_PORT" & exec "{self._server}"']

    def answers(self) -> bool:
        """A client that offers an impossible protocol version gets an answer from a node that serves."""
        try:
            with socket.create_connection((HOST, self.port), timeout=2) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return bool(connection.recv(1))
        except OSError:
            return False

    @property
    def url(self) -> str:
        """Of the virtual host /."""
        return self.url_of("/")

    def url_of(self, vhost: str) -> str:
        return f"amqp://guest:guest@{HOST}:{self.port}/{quote(vhost, safe='')}"

    @property
    def management_url(self) -> str:
        assert self.management, "started without management"
        return f"http://guest:guest@{HOST}:{self.ports[3]}"

    def evaluate(self, erlang: str) -> str:
        """Evaluate Erlang expressions on the node (some milliseconds; rabbitmqctl takes seconds): the value as text."""
        done = subprocess.run(
            # By default every call is named c17, and is refused until the node has noticed the end of the last one.
            [self._erl_call, "-h", f"call{next(self._calls)}", "-c", self._cookie, "-n", self.node, "-e"],
            input=erlang + "\n",  # the form must end with a line break
            env=self._environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        head, tail = "{ok, ", "}"
        answer = done.stdout.strip()
        assert done.returncode == 0 and answer.startswith(head), f"{erlang}: {done.stderr}{answer}"
        return answer.removeprefix(head).removesuffix(tail)

    def new_vhost(self, name: str | None = None) -> str:
        """Make a virtual host that guest may use, and return its URL."""
        self._vhosts += 1
        vhost = name or f"v{self._vhosts}"
        self.evaluate(
            f'ok = rabbit_vhost:add(<<"{vhost}">>, <<"tests">>), ok = rabbit_auth_backend_internal:set_permissions('
            f'<<"guest">>, <<"{vhost}">>, <<".*">>, <<".*">>, <<".*">>, <<"tests">>).'
        )
        return self.url_of(vhost)

    def delete_vhost(self, url: str) -> None:
        """Remove the virtual host of a URL of `new_vhost`, with its queues; clients are disconnected."""
        self.evaluate(f'rabbit_vhost:delete(<<"{url.rpartition("/")[2]}">>, <<"tests">>).')


class Redis(Server):
    """A Redis server (or, with `binary`, a Valkey one) that has written each change to disk before it answers.

    `arguments`: more command line arguments. `persistent` False: keeps nothing over a restart, and is faster.
    """

    name = "redis"

    def __init__(
        self, arguments: Sequence[str] = (), *, binary: str = "redis-server", persistent: bool = True
    ) -> None:
        self._server = find_binary((binary,), "redis-server")
        super().__init__()
        self.arguments = list(arguments)
        self.persistent = persistent

    def _command(self) -> list[str]:
        durable = ["--appendonly", "yes", "--appendfsync", "always"] if self.persistent else ["--appendonly", "no"]
        return [
            self._server, "--port", str(self.port), "--bind", HOST, "--dir", self.folder, "--save", "",
            *durable, *self.arguments,
        ]  # fmt: skip

    def answers(self) -> bool:
        try:
            return self.command("PING") == b"+PONG"
        except OSError:
            return False

    def command(self, *words: str, timeout: float = 5) -> bytes:
        """The first line of the server's answer to one command. Raises OSError."""
        message = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        with socket.create_connection((HOST, self.port), timeout=timeout) as connection:
            connection.sendall(message.encode())
            answer = b""
            while b"\r\n" not in answer:
                part = connection.recv(4096)
                if not part:
                    raise ConnectionError("the server closed the connection")
                answer += part
        return answer.partition(b"\r\n")[0]

    def flush(self) -> None:
        assert self.command("FLUSHALL") == b"+OK"

    @property
    def url(self) -> str:
        """Of database 0."""
        return self.url_of(0)

    def url_of(self, database: int) -> str:
        return f"redis://{HOST}:{self.port}/{database}"

