"""A site where the server's disk is small, and can be filled."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.chaos.servers import Server, server_in
from tests.chaos.sites import Site

__all__ = ["SmallDisk"]

_SIZE: Final = "96m"
_PORTION: Final = 1 << 16


class SmallDisk(Site):
    """One server whose folder is a disk of its own."""

    def __init__(self, broker: Server, folder: Path) -> None:
        super().__init__(broker)
        self._ballast = folder / "ballast"

    @classmethod
    @contextmanager
    def open(cls, folder: Path, agents: tuple[str, ...]) -> Iterator[Site]:
        """Give the site, and take it down."""
        del agents
        disk = folder / "broker"
        disk.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(disk)], check=True, timeout=30)
        try:
            with server_in(disk, append_only=True) as broker:
                yield cls(broker, disk)
        finally:
            subprocess.run(["umount", str(disk)], check=True, timeout=30)

    @staticmethod
    def lacks() -> str:
        """Say what this machine lacks for the site, '' for nothing."""
        return "" if os.geteuid() == 0 else "a small disk is mounted, which takes root"

    @contextmanager
    def full(self) -> Iterator[None]:
        """Leave no room on the disk for the block."""
        self._fill()
        try:
            yield
        finally:
            self._ballast.unlink()

    def _fill(self) -> None:
        with self._ballast.open("wb", buffering=0) as ballast:
            size = _PORTION
            while size:
                try:
                    ballast.write(b"\0" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2
