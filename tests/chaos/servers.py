"""A server that may be killed, shut down and brought back, on the same port and with the same data."""

import random
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_urlsafe
from typing import Any, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from orchestra.child import Child
from orchestra.embedded import _server_binary
from tests.processes import until

__all__ = ["HOST", "Server", "free_port", "server_in"]

HOST: Final = "127.0.0.1"
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 30.0
# Below the ports that the system gives to connections: while the server is away nobody, not even a client that
# knocks at its port from that very port, can take it.
_PORTS: Final = range(20_000, 32_000)

_CONFIGURATION: Final = """
bind {host}
port {port}
unixsocket {socket}
requirepass {password}
masterauth {password}
repl-diskless-sync-delay 0
dir {folder}
appendonly {append_only}
appendfsync always
save ""
maxmemory-policy noeviction
daemonize no
"""


class Server:
    """
    One server process after another, in one folder.

    `prefix` is what its command begins with, and `host` the address that it listens at; a Unix socket leads to it from
    wherever the folder is seen.
    """

    def __init__(
        self,
        folder: Path,
        *,
        append_only: bool,
        prefix: Sequence[str] = (),
        host: str = HOST,
        password: str | None = None,
    ) -> None:
        self._folder = folder
        self._append_only = append_only
        self._prefix = prefix
        self._host = host
        self._password = password or token_urlsafe(18)
        self.port = free_port()
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """The address with its password."""
        return self.url_at(self._host)

    def url_at(self, host: str) -> str:
        """Return its URL for somebody who knows it by another address."""
        return f"redis://:{self._password}@{host}:{self.port}/0"

    @property
    def socket_url(self) -> str:
        """The URL of its Unix socket, as Celery takes it."""
        return f"redis+socket://:{self._password}@{self._folder}/socket"

    @property
    def plain_socket_url(self) -> str:
        """The URL of its Unix socket, as Redis's own client takes it."""
        return f"unix://:{self._password}@{self._folder}/socket"

    @property
    def pid(self) -> int | None:
        """The server's process; None while it's away."""
        return self._child.pid if self._child is not None and self._child.running else None

    @contextmanager
    def client(self) -> "Iterator[Redis]":
        """Give a client that tries once."""
        with Redis.from_url(self.plain_socket_url, retry=Retry(NoBackoff(), 0), socket_timeout=10) as client:
            yield client

    def start(self) -> None:
        """Start it, and wait until it has read its data and answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        configuration = self._folder / "valkey.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                host=self._host,
                port=self.port,
                socket=self._folder / "socket",
                password=self._password,
                folder=self._folder,
                append_only="yes" if self._append_only else "no",
            ),
            encoding="utf-8",
        )
        with (self._folder / "valkey.log").open("ab") as log:
            self._child = Child([*self._prefix, str(_server_binary()), str(configuration)], output=log)
            self._child.start()
        until(self._answers, seconds=_START_SECONDS)

    def _answers(self) -> bool:
        assert self._child is not None
        assert self._child.running, (self._folder / "valkey.log").read_text(encoding="utf-8")[-2000:]
        with suppress(RedisConnectionError, RedisTimeoutError), self.client() as client:
            return bool(client.ping())
        return False

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would; what it has written to its file, the system keeps."""
        if self._child is not None:
            self._child.kill()

    def shut_down(self) -> None:
        """End it by SHUTDOWN SAVE, as an operator would."""
        with self.client() as client:
            client.shutdown(save=True)
        assert self._child is not None
        assert self._child.wait(_STOP_SECONDS), "the server did not shut down"


@contextmanager
def server_in(folder: Path, *, append_only: bool, **options: Any) -> Iterator[Server]:
    """Give a running server, and end it; `options` are those of `Server`."""
    server = Server(folder, append_only=append_only, **options)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def free_port() -> int:
    """Return a port that no client is given."""
    dice = random.Random(time.monotonic_ns())
    for port in dice.sample(_PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    message = f"no port of {_PORTS} is free"
    raise OSError(message)
