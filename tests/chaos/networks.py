"""
A site of network namespaces: the server in one, each agent in another, and packets that can be dropped on the way.

Nothing leaves them: the producer, and what tasks tell of their runs, go by Unix sockets.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Final

from tests.chaos.servers import Server, server_in
from tests.chaos.sites import Reach, Site

__all__ = ["Networks"]

_TOOLS: Final = ("ip", "nft", "nsenter")
_NET: Final = "10.77"
_FOLDER: Final = Path("/var/run/netns")


class Networks(Site):
    """One server and its agents, each in a network namespace of its own."""

    def __init__(self, broker: Server, namespaces: "_Namespaces") -> None:
        super().__init__(broker)
        self._namespaces = namespaces

    @classmethod
    @contextmanager
    def open(cls, folder: Path, agents: tuple[str, ...]) -> Iterator[Site]:
        """Give the site, and take it down."""
        with ExitStack() as stack:
            namespaces = stack.enter_context(_Namespaces.made(agents))
            where = {"prefix": namespaces.within("server"), "host": "0.0.0.0"}  # of that namespace
            broker = stack.enter_context(server_in(folder / "broker", append_only=True, **where))
            yield cls(broker, namespaces)

    @staticmethod
    def lacks() -> str:
        """Say what this machine lacks for the site, '' for nothing."""
        if os.geteuid() != 0:
            return "network namespaces are made, which takes root"
        missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
        return f"{missing[0]} isn't installed (Debian: iproute2, nftables, util-linux)" if missing else ""

    @property
    def url(self) -> str:
        """Where the producer finds the server."""
        return self.broker.socket_url

    def reach(self, agent: str) -> Reach:
        """Return how an agent finds the server, from a namespace of its own."""
        address = self._namespaces.server_address(agent)
        return Reach(url=self.broker.url_at(address), prefix=self._namespaces.within(agent))

    @contextmanager
    def parted(self, agent: str, *, to_server: bool, to_agent: bool) -> Iterator[None]:
        """Drop packets between an agent and the server, in one direction or both, for the block."""
        if to_server:
            self._namespaces.drop("input", agent)
        if to_agent:
            self._namespaces.drop("output", agent)
        try:
            yield
        finally:
            self._namespaces.drop_no_more()


class _Namespaces:
    """A namespace for the server and one for each agent, each of which has a wire to the server's."""

    def __init__(self, agents: tuple[str, ...]) -> None:
        self._mark = token_hex(3)
        self._places = {"server": 0, **{agent: place for place, agent in enumerate(agents, start=1)}}

    @classmethod
    @contextmanager
    def made(cls, agents: tuple[str, ...]) -> "Iterator[_Namespaces]":
        """Give such namespaces, and remove them."""
        namespaces = cls(agents)
        with ExitStack() as stack:
            for who in namespaces._places:
                _run("ip", "netns", "add", namespaces._name(who))
                stack.callback(_run, "ip", "netns", "del", namespaces._name(who))
                _run("ip", "-n", namespaces._name(who), "link", "set", "lo", "up")
            for agent in agents:
                namespaces._wire(agent)
            rules = "add table inet chaos; add chain inet chaos input { type filter hook input priority 0; }; "
            namespaces._nft(rules + "add chain inet chaos output { type filter hook output priority 0; }")
            yield namespaces

    def _wire(self, agent: str) -> None:
        place, mine, theirs = self._places[agent], self._name(agent), self._name("server")
        far = self._wire_of(agent)
        _run("ip", "link", "add", "way", "netns", mine, "type", "veth", "peer", "name", far, "netns", theirs)
        for name, device, host in ((mine, "way", 2), (theirs, far, 1)):
            _run("ip", "-n", name, "addr", "add", f"{_NET}.{place}.{host}/30", "dev", device)
            _run("ip", "-n", name, "link", "set", device, "up")

    def _name(self, who: str) -> str:
        return f"chaos-{self._mark}-{self._places[who]}"

    def _wire_of(self, agent: str) -> str:
        return f"to{self._places[agent]}"

    def server_address(self, agent: str) -> str:
        """Return the address by which an agent knows the server."""
        return f"{_NET}.{self._places[agent]}.1"

    def within(self, who: str) -> tuple[str, ...]:
        """Return what a command that is to run there begins with."""
        return "nsenter", f"--net={_FOLDER / self._name(who)}", "--"

    def drop(self, chain: str, agent: str) -> None:
        """Drop what comes in at the server's end of an agent's wire, or what goes out there."""
        device = "iifname" if chain == "input" else "oifname"
        self._nft(f'add rule inet chaos {chain} {device} "{self._wire_of(agent)}" drop')

    def drop_no_more(self) -> None:
        """Let all packets pass again."""
        self._nft("flush chain inet chaos input; flush chain inet chaos output")

    def _nft(self, rules: str) -> None:
        _run(*self.within("server"), "nft", rules)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=30)
