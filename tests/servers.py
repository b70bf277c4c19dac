"""Redis servers as deployments have them: behind TLS, and watched over by a Sentinel."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.retry import Retry

from orchestra.child import Child
from orchestra.embedded import EmbeddedServer, _free_port, _server_binary
from orchestra.store import text_of
from tests import tls_front
from tests.processes import until

__all__ = ["SentinelSet", "certificate_in", "replicated", "tls_in_front_of"]

_HOST: Final = "127.0.0.1"
_USER: Final = "fleet"
_PASSWORD: Final = "hunter2"
_SENTINELS_PASSWORD: Final = "hunter3"
_GROUP: Final = "fleets-redis"

_SENTINEL: Final = f"""
bind {_HOST}
port {{port}}
requirepass {_SENTINELS_PASSWORD}
dir {{folder}}
sentinel monitor {_GROUP} {_HOST} {{master}} 1
sentinel auth-user {_GROUP} {_USER}
sentinel auth-pass {_GROUP} {_PASSWORD}
sentinel down-after-milliseconds {_GROUP} 1000
sentinel failover-timeout {_GROUP} 5000
"""


# ── TLS ──


def certificate_in(folder: Path) -> Path:
    """Make a certificate for this machine's loopback address, its key in the same file, and return its path."""
    made = folder / "redis.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    names = ["-addext", f"subjectAltName=IP:{_HOST},DNS:localhost", "-keyout", str(made), "-out", str(folder / "crt")]
    subprocess.run([*command, *names], check=True, capture_output=True, timeout=60)
    made.write_text(made.read_text() + (folder / "crt").read_text())
    return made


@contextmanager
def tls_in_front_of(behind: int, certificate: Path) -> Iterator[int]:
    """Give the port of a server that speaks TLS and hands on to a local one that doesn't, as stunnel does."""
    port = _free_port(_HOST)
    # Without -I the folder of this file would be searched first, and its `typing` come before Python's.
    front = Child([sys.executable, "-I", tls_front.__file__, str(port), str(behind), str(certificate)])
    front.start()
    try:
        until(lambda: _listens(port))
        yield port
    finally:
        front.kill()


def _listens(port: int) -> bool:
    with suppress(ConnectionRefusedError), socket.create_connection((_HOST, port), timeout=5):
        return True
    return False


# ── replicas ──


@contextmanager
def replicated() -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    """Give a master and a replica that follows it."""
    with EmbeddedServer.start() as master, EmbeddedServer.start() as replica:
        for server in (master, replica):
            _prepare(server)
        _follow(replica, master)
        yield master, replica


# ── Sentinel ──


@dataclass
class SentinelSet:
    """One master, one replica, and a Sentinel that watches over them; each asks for a password."""

    servers: list[EmbeddedServer]
    port: int
    _sentinel: Child

    @classmethod
    @contextmanager
    def start(cls, folder: Path) -> Iterator[Self]:
        """Give such a set, once a failover would succeed."""
        with replicated() as (master, replica):
            port = _free_port(_HOST)
            configuration = folder / "sentinel.conf"  # where the Sentinel writes what it finds out, too
            configuration.write_text(_SENTINEL.format(port=port, folder=folder, master=master.port), encoding="utf-8")
            with (folder / "sentinel.log").open("wb") as log:
                sentinel = Child([str(_server_binary()), str(configuration), "--sentinel"], output=log)
                sentinel.start()
            try:
                made = cls([master, replica], port, sentinel)
                until(made._knows_its_replica)
                yield made
            finally:
                sentinel.kill()

    @property
    def url(self) -> str:
        """The address as `ORCHESTRA_BROKER_URL` takes it; the rest is in `options`."""
        return f"sentinel://{_USER}:{_PASSWORD}@{_HOST}:{self.port}/0"

    @property
    def options(self) -> dict[str, Any]:
        """What `broker_transport_options` must say besides."""
        return {"master_name": _GROUP, "sentinel_kwargs": {"password": _SENTINELS_PASSWORD}}

    @property
    def master(self) -> EmbeddedServer:
        """The server that the Sentinel names."""
        _, port = self._ask("GET-MASTER-ADDR-BY-NAME")
        return next(server for server in self.servers if server.port == int(port))

    def fail_over(self) -> None:
        """Have the replica take over, and wait until the former master follows it."""
        former = self.master
        until(self._begins_failover)
        until(lambda: self.master is not former)
        until(lambda: self._follows(former))

    def _follows(self, former: EmbeddedServer) -> bool:
        with suppress(RedisConnectionError):  # it drops whoever is connected when it becomes a replica
            return bool(_asked(former, "ROLE")[0] == b"slave")
        return False

    def crash(self) -> None:
        """Kill the master once its replica has everything, and wait until the replica took over."""
        self.catch_up()
        self.crash_behind()

    def catch_up(self) -> None:
        """Wait until the replica has everything."""
        with Redis.from_url(self.master.url) as client:
            client.set("caught-up", 1)  # a server waits for what this very connection has written
            assert 1 == client.execute_command("WAIT", 1, 20_000)
            client.delete("caught-up")

    def cut_off(self) -> EmbeddedServer:
        """Have the replica receive nothing any more; return it."""
        master = self.master
        (replica,) = [server for server in self.servers if server is not master]
        _asked(replica, "CONFIG", "SET", "masterauth", "wrong")
        _asked(master, "CLIENT", "KILL", "TYPE", "replica")
        return replica

    def crash_behind(self) -> None:
        """Kill the master whatever its replica has, and wait until that took over."""
        former = self.master
        former.kill()
        until(lambda: self.master is not former)

    def _begins_failover(self) -> bool:
        with suppress(ResponseError):  # the Sentinel has not yet heard that the replica is in order
            return bool(self._ask("FAILOVER"))
        return False

    def _knows_its_replica(self) -> bool:
        with suppress(RedisConnectionError):  # it isn't up yet
            replicas = self._ask("REPLICAS")
            return bool(replicas) and replicas[0][b"master-link-status"] == b"ok"
        return False

    def _ask(self, command: str) -> Any:  # what redis-py makes of it
        with Redis(host=_HOST, port=self.port, password=_SENTINELS_PASSWORD, retry=Retry(NoBackoff(), 0)) as client:
            return client.execute_command("SENTINEL", command, _GROUP)


def _prepare(server: EmbeddedServer) -> None:
    """Give a server a user whom both have, since either may become the master."""
    with Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", _USER, "on", f">{_PASSWORD}", "~*", "&*", "+@all")
        client.config_set("masteruser", _USER)
        client.config_set("masterauth", _PASSWORD)
        client.config_set("repl-diskless-sync-delay", 0)


def _follow(replica: EmbeddedServer, master: EmbeddedServer) -> None:
    _asked(replica, "REPLICAOF", _HOST, master.port)
    until(lambda: text_of(_asked(replica, "ROLE")[3]) == "connected")


def _asked(server: EmbeddedServer, *words: Any) -> Any:
    with Redis.from_url(server.url) as client:
        return client.execute_command(*words)
