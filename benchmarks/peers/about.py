"""What else belongs to a measurement's figures: versions, the machine, and how busy that was with other work."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.processes import cpu_seconds, families
from benchmarks.peers.systems import System

__all__ = ["Meanwhile", "about"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_LIST: Final = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
_WANTED: Final = (
    *("agent-orchestra", "celery", "kombu", "dramatiq", "huey", "rq", "taskiq", "taskiq-redis", "arq", "saq", "streaq"),
    *("redis", "coredis", "hiredis", "uvloop", "orjson"),
)


def about(systems: Sequence[System], *, tasks: int, rounds: int, server: str) -> dict[str, Any]:
    """Return when, where and with what it was measured."""
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "tasks": tasks,
        "rounds": rounds,
        "python": platform.python_version(),
        "server": f"Valkey {server}",
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "packages": {system.home or "ours and Celery": _versions(system) for system in systems},
    }


def _versions(system: System) -> dict[str, str]:
    done = subprocess.run([system.programs / "python", "-c", _LIST], check=True, capture_output=True, text=True)  # noqa: S603  # the system's own interpreter
    found: dict[str, str] = json.loads(done.stdout)
    return {name: found[name] for name in _WANTED if name in found}


class Meanwhile:
    """How busy the machine was meanwhile: with the measurement, with other work, and with other machines' (steal)."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._own, self._all = _own_seconds(), _all_seconds()
        self._load = os.getloadavg()[0]

    def until_now(self) -> dict[str, Any]:
        """Return the seconds taken, the load before and after, and how many cores were busy with what."""
        took, own, everyone = time.monotonic() - self._at, _own_seconds() - self._own, _all_seconds()
        busy, steal = (None, None)
        if everyone is not None and self._all is not None:
            busy = round(max(0.0, everyone[0] - self._all[0] - own) / took, 2)
            steal = round((everyone[1] - self._all[1]) / took, 2)
        return {
            "seconds": round(took),
            "load": [round(self._load, 2), round(os.getloadavg()[0], 2)],
            "own_cores": round(own / took, 2),
            "other_cores": busy,
            "stolen_cores": steal,
        }


def _own_seconds() -> float:
    """Return the CPU time of this process and of all that stem from it, those that have ended among them."""
    return cpu_seconds(families([os.getpid()]))


def _all_seconds() -> tuple[float, float] | None:
    """Return the CPU time that the whole machine has used, and what was stolen from it; None where it doesn't tell."""
    with suppress(OSError, ValueError):
        words = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, words[1:9])
        return (user + nice + system + irq + softirq) / _TICKS, steal / _TICKS
    return None
