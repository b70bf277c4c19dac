"""Where the queues are, and by which way the producer and each agent reach them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.servers import Server, server_in

__all__ = ["Reach", "Site"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How one agent is started, and what it's told: where the queues are, and more of its environment."""

    url: str
    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class Site:
    """One server on the loopback interface, which all reach directly."""

    def __init__(self, broker: Server) -> None:
        self._broker = broker

    @classmethod
    @contextmanager
    def open(cls, folder: Path, agents: tuple[str, ...]) -> "Iterator[Site]":
        """Give the site, and take it down."""
        del agents  # who differ in other sites
        with server_in(folder / "broker", append_only=True) as broker:
            yield cls(broker)

    @staticmethod
    def lacks() -> str:
        """Say what this machine lacks for the site, '' for nothing."""
        return ""

    @property
    def broker(self) -> Server:
        """The server that holds the queues."""
        return self._broker

    @property
    def url(self) -> str:
        """Where the producer finds it."""
        return self._broker.url

    @property
    def options(self) -> dict[str, Any]:
        """What `broker_transport_options` say besides."""
        return {}

    def reach(self, agent: str) -> Reach:
        """Return how an agent of this name finds it."""
        del agent
        return Reach(url=self.url)
