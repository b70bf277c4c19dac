"""A site where a proxy stands before the server, on which connections can fall silent."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.servers import Server, server_in
from tests.chaos.sites import Site
from tests.proxies import Proxy, proxy_to

__all__ = ["Proxied"]


class Proxied(Site):
    """One server, which all reach by way of a proxy."""

    def __init__(self, broker: Server, proxy: Proxy) -> None:
        super().__init__(broker)
        self.proxy = proxy

    @classmethod
    @contextmanager
    def open(cls, folder: Path, agents: tuple[str, ...]) -> Iterator[Site]:
        """Give the site, and take it down."""
        del agents
        with server_in(folder / "broker", append_only=True) as broker, proxy_to(broker.port) as proxy:
            yield cls(broker, proxy)

    @property
    def url(self) -> str:
        """Where the producer finds the server, and the agents."""
        return self.proxy.through(self.broker.url)
