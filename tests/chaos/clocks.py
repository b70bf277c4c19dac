"""A site where each agent has a wall clock of its own, which can be set: a small library stands before the system's."""

import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.chaos.servers import Server, server_in
from tests.chaos.sites import Reach, Site

__all__ = ["Clocks"]

_SOURCE: Final = Path(__file__).with_name("clock.c")
_SECONDS: Final = struct.Struct("=q")


class Clocks(Site):
    """One server, and agents whose wall clocks may differ from everybody's; what counts seconds goes on evenly."""

    def __init__(self, broker: Server, library: Path, agents: tuple[str, ...]) -> None:
        super().__init__(broker)
        self._library = library
        self._clocks = {agent: library.with_name(f"{agent}.clock") for agent in agents}
        for clock in self._clocks.values():
            clock.write_bytes(_SECONDS.pack(0))

    @classmethod
    @contextmanager
    def open(cls, folder: Path, agents: tuple[str, ...]) -> Iterator[Site]:
        """Give the site, and take it down."""
        library = folder / "clock.so"
        with server_in(folder / "broker", append_only=True) as broker:
            command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl"]
            subprocess.run(command, check=True, timeout=60)
            yield cls(broker, library, agents)

    @staticmethod
    def lacks() -> str:
        """Say what this machine lacks for the site, '' for nothing."""
        return "" if shutil.which("cc") else "there's no C compiler (Debian: gcc)"

    def reach(self, agent: str) -> Reach:
        """Return how an agent finds the server, with its clock."""
        return Reach(
            url=self.url, environment={"LD_PRELOAD": str(self._library), "CHAOS_CLOCK": str(self._clocks[agent])}
        )

    def set_clock(self, agent: str, seconds: int) -> None:
        """Set an agent's clock so many seconds before or behind the true time, at once."""
        with self._clocks[agent].open("r+b") as clock:
            clock.write(_SECONDS.pack(seconds))
