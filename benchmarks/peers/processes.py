"""What processes use, with all that stem from them, as Linux tells of them in /proc."""

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["cpu_seconds", "families", "pss_bytes", "send"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def families(heads: Sequence[int]) -> list[int]:
    """Return these processes and every one that stems from them."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            children.setdefault(int(_stat(path)[1]), []).append(int(path.name))
    found = list(heads)
    for pid in found:  # which grows
        found.extend(children.get(pid, ()))
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the CPU time that they have used, with that of their children that have ended."""
    return sum(_cpu_seconds(Path(f"/proc/{pid}")) for pid in pids)


def pss_bytes(pids: Sequence[int]) -> int:
    """Return the memory that they hold, where each has its share of what several hold."""
    return sum(_pss_bytes(Path(f"/proc/{pid}/smaps_rollup")) for pid in pids)


def send(what: signal.Signals, pids: Sequence[int]) -> None:
    """Send each of them a signal, unless it's gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, what)


def _stat(path: Path) -> list[str]:
    """Return what the system tells of a process from its state on: the state, the parent's id, and so on."""
    return (path / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def _cpu_seconds(path: Path) -> float:
    """Return a process's own CPU time by its threads, which are exact, and its ended children's by ticks."""
    with suppress(OSError):
        ended = sum(map(int, _stat(path)[13:15])) / _TICKS
        own = sum(int(one.read_text(encoding="ascii").split()[0]) for one in path.glob("task/*/schedstat"))
        return ended + own / 1e9
    return 0.0


def _pss_bytes(path: Path) -> int:
    with suppress(OSError):
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
