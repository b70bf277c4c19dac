"""A site of a master and a replica, watched over by a Sentinel that replaces the one by the other."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_urlsafe
from typing import Any, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from orchestra.child import Child
from orchestra.embedded import _server_binary
from tests.chaos.servers import HOST, Server, free_port, server_in
from tests.chaos.sites import Reach, Site
from tests.processes import until

__all__ = ["Sentinels"]

_GROUP: Final = "chaos"
_SECONDS: Final = 60.0
_SENTINEL: Final = """
bind {host}
port {port}
dir {folder}
sentinel monitor {group} {host} {master} 1
sentinel auth-pass {group} {password}
sentinel down-after-milliseconds {group} 1000
sentinel failover-timeout {group} 10000
"""


class Sentinels(Site):
    """Two servers, of which one follows the other, and a Sentinel that all ask for the master."""

    def __init__(self, servers: Sequence[Server], port: int, password: str) -> None:
        super().__init__(servers[0])
        self._servers = servers
        self._port = port
        self._password = password

    @classmethod
    @contextmanager
    def open(cls, folder: Path, agents: tuple[str, ...]) -> Iterator[Site]:
        """Give the site once a failover would succeed, and take it down."""
        del agents
        with ExitStack() as stack:
            password, port = token_urlsafe(18), free_port()
            servers = [
                stack.enter_context(server_in(folder / name, append_only=True, password=password))
                for name in ("broker", "replica")
            ]
            made = cls(servers, port, password)
            made._follow(servers[1], servers[0])
            stack.enter_context(made._sentinel(folder / "sentinel"))
            until(made._knows_its_replica, seconds=_SECONDS)
            yield made

    @contextmanager
    def _sentinel(self, folder: Path) -> Iterator[None]:
        folder.mkdir(parents=True)
        configuration = folder / "sentinel.conf"  # where it writes what it finds out, too
        words = {"host": HOST, "port": self._port, "folder": folder, "group": _GROUP, "password": self._password}
        configuration.write_text(_SENTINEL.format(master=self._servers[0].port, **words), encoding="utf-8")
        with (folder / "sentinel.log").open("wb") as log:
            sentinel = Child([str(_server_binary()), str(configuration), "--sentinel"], output=log)
            sentinel.start()
            try:
                yield
            finally:
                sentinel.kill()

    # ── who reaches it ──

    @property
    def broker(self) -> Server:
        """The master, as the Sentinel has it."""
        _, port = self._ask("GET-MASTER-ADDR-BY-NAME")
        return next(server for server in self._servers if server.port == int(port))

    @property
    def url(self) -> str:
        """Where the producer finds the Sentinel, and the agents."""
        return f"sentinel://:{self._password}@{HOST}:{self._port}/0"

    @property
    def options(self) -> dict[str, Any]:
        """What `broker_transport_options` say besides."""
        return {"master_name": _GROUP}

    def reach(self, agent: str) -> Reach:
        """Return how an agent finds the Sentinel."""
        del agent
        return Reach(url=self.url)

    # ── what acts do ──

    def cut_replica_off(self) -> None:
        """Have the replica receive nothing any more: its connection is ended, and no other one let in."""
        master = self.broker
        with self._other(master).client() as client:
            client.config_set("masterauth", "wrong")
        with master.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")

    def fail_over(self) -> None:
        """Kill the master, wait until the replica was promoted, and have the former master follow it."""
        former = self.broker
        former.kill()
        until(lambda: self.broker is not former, seconds=_SECONDS)
        promoted = self._other(former)
        former.start()
        for server in (former, promoted):
            with server.client() as client:
                client.config_set("masterauth", self._password)
        self._follow(former, promoted)
        until(self._knows_its_replica, seconds=_SECONDS)

    def _other(self, one: Server) -> Server:
        return next(server for server in self._servers if server is not one)

    def _follow(self, replica: Server, master: Server) -> None:
        with replica.client() as client:
            client.execute_command("REPLICAOF", HOST, master.port)
            until(lambda: client.execute_command("ROLE")[3] == b"connected", seconds=_SECONDS)

    def _knows_its_replica(self) -> bool:
        with suppress(RedisConnectionError):  # it isn't up yet
            replicas = self._ask("REPLICAS")
            return bool(replicas) and replicas[0][b"master-link-status"] == b"ok"
        return False

    def _ask(self, command: str) -> Any:  # what redis-py makes of it
        with Redis(host=HOST, port=self._port, retry=Retry(NoBackoff(), 0), socket_timeout=10) as client:
            return client.execute_command("SENTINEL", command, _GROUP)
