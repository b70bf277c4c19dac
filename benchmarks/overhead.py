"""
What a task costs with Agent Orchestra and with stock Celery, side by side on a private server.

    python -m benchmarks.overhead [--tasks N] [--rounds R] [--queues Q] [--only KEY ...] [--events] [--json FILE]
"""

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from redis import Redis
from rich.console import Console

from benchmarks.bulk import measure_bulk
from benchmarks.commands import measure_commands
from benchmarks.drain import measure_crowd, measure_drain
from benchmarks.figures import WIDTH, Section
from benchmarks.lookups import measure_lookups
from benchmarks.ours import SKILLS
from benchmarks.submit import measure_parts, measure_submit
from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import AgentOrchestraException

__all__ = ["main"]

_PACKAGES: Final = ("agent-orchestra", "celery", "kombu", "redis", "pydantic")
_HEADING: Final = "Each figure is the median of its rounds (with the least and the most)."
_COUNTED: Final = 200  # tasks whose commands are counted; each costs the same
_LOOKUPS: Final = 10  # lookups are so quick that a round takes more of them


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, and write down; return the exit code."""
    given = _given(arguments)
    console = Console(highlight=False, markup=False, width=WIDTH)
    try:
        sections, about = _measured(given, console)
    except AgentOrchestraException as error:
        Console(stderr=True, highlight=False, markup=False).print(f"The benchmark failed: {error}", soft_wrap=True)
        return 1
    for line in _described(about):
        console.print(line)
    if given.json:
        found = {"about": about, "sections": {section.key: section.to_json() for section in sections}}
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def _given(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description="Ours beside stock Celery.")
    parser.add_argument("--tasks", type=_count, default=1000, metavar="N", help="in each round (default: 1000)")
    parser.add_argument("--rounds", type=_count, default=5, metavar="R", help="of every measurement (default: 5)")
    parser.add_argument("--queues", type=_queues, default=SKILLS, metavar="Q", help=f"at most {SKILLS}, the default")
    parser.add_argument("--only", nargs="+", choices=_KEYS, default=_KEYS, metavar="KEY", help=", ".join(_KEYS))
    parser.add_argument("--events", action="store_true", help="send task events, as a fleet under Flower does")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure down")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        message = f"{text!r} is no count: give a whole number of at least 1"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _queues(text: str) -> int:
    if _count(text) > SKILLS:
        message = f"{text} queues are too many: {SKILLS} are declared"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _measured(given: argparse.Namespace, console: Console) -> tuple[list[Section], dict[str, Any]]:
    before = _Usage()
    with EmbeddedServer.start() as server, Redis.from_url(server.url) as client:
        os.environ["ORCHESTRA_BROKER_URL"] = server.url  # for the settings of both sides, here and in workers
        os.environ["BENCHMARK_EVENTS"] = "1" if given.events else ""
        about = _about(given, server)
        console.print(_HEADING)
        sections = []
        for section in _sections(given, client):
            console.print(section.to_table())
            sections.append(section)
    return sections, {**about, **before.until_now()}


def _sections(given: argparse.Namespace, client: "Redis") -> Iterator[Section]:
    for key in given.only:
        yield _SECTIONS[key](given, client)


_SECTIONS: Final[Mapping[str, Callable[[argparse.Namespace, "Redis"], Section]]] = {
    "submit": lambda given, client: measure_submit(client, rounds=given.rounds, times=given.tasks),
    "parts": lambda given, client: measure_parts(client, rounds=given.rounds, times=given.tasks),
    "bulk": lambda given, client: measure_bulk(client, rounds=given.rounds, tasks=given.tasks),
    "commands": lambda given, client: measure_commands(client, tasks=min(_COUNTED, given.tasks)),
    "drain": lambda given, _: measure_drain(rounds=given.rounds, tasks=given.tasks),
    "lookups": lambda given, _: measure_lookups(rounds=given.rounds, times=_LOOKUPS * given.tasks),
    "crowd": lambda given, _: measure_crowd(rounds=given.rounds, tasks=given.tasks, queues=given.queues),
}
_KEYS: Final = tuple(_SECTIONS)


def _about(given: argparse.Namespace, server: EmbeddedServer) -> dict[str, Any]:
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "tasks": given.tasks,
        "rounds": given.rounds,
        "queues": given.queues,
        "events": given.events,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "server": f"valkey {server.version}",
        "cores": os.cpu_count(),
    }


class _Usage:
    """How busy the machine was meanwhile: with us, and with others."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._own, self._all = _own_seconds(), _all_seconds()
        self._load = os.getloadavg()[0]

    def until_now(self) -> dict[str, float | list[float] | None]:
        """Return the seconds taken, the load before and after, and the cores that we and others kept busy."""
        took, own = time.monotonic() - self._at, _own_seconds() - self._own
        everyone = _all_seconds()
        others = None if everyone is None or self._all is None else max(0.0, everyone - self._all - own) / took
        return {
            "seconds": round(took, 1),
            "load": [round(self._load, 2), round(os.getloadavg()[0], 2)],
            "own_cores": round(own / took, 2),
            "other_cores": others if others is None else round(others, 2),
        }


def _own_seconds() -> float:
    """Return the CPU time of this process and of those children that have ended, workers and server among them."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _all_seconds() -> float | None:
    """Return the CPU time that the whole machine has used; None where it doesn't tell."""
    with suppress(OSError, ValueError):
        words = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, words[1:9])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return None


def _described(about: Mapping[str, Any]) -> Iterator[str]:
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    yield f"Python {about['python']}, {packages}, {about['server']}; {about['cores']} cores"
    others = "unknown" if about["other_cores"] is None else f"{about['other_cores']} cores"
    yield f"{about['seconds']:,} s; load {about['load'][0]} to {about['load'][1]}; others kept busy: {others}"


if __name__ == "__main__":
    sys.exit(main())
