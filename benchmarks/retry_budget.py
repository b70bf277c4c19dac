"""
What a service that is down gets from tasks that are tried again, with a retry budget and without one.

    python -m benchmarks.retry_budget [--tasks N] [--seconds S] [--json FILE]
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from redis import Redis
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks import storm
from benchmarks.figures import WIDTH
from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import PermanentError
from orchestra.fleet import Fleet
from orchestra.retry_budget import RetryBudget
from orchestra.store import Keys, text_of

__all__ = ["Weathered", "main"]

_PROJECT: Final = Path(__file__).resolve().parents[1]
_AGENTS: Final = 2
_PATIENCE_SECONDS: Final = 900
_LOOK_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Weathered:
    """What one storm came to; a second is one of the clock, and a window as long as the budget's."""

    attempts: int  # while the service was down, first ones included
    attempts_per_second: float
    most_retries_in_a_second: int
    most_retries_in_a_window: int
    lost: int
    seconds_to_finish: float  # after the service was up again


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both, show, and write down; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retry_budget", description="Retries in a storm.")
    parser.add_argument("--tasks", type=_count, default=2000, metavar="N", help="that fail (default: 2000)")
    parser.add_argument("--seconds", type=_count, default=30, metavar="S", help="of outage (default: 30)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures down")
    given = parser.parse_args(arguments)
    found = {name: _weather(name, given.tasks, given.seconds) for name in storm.tasks}
    title = f"{given.tasks:,} tasks whose service is down for {given.seconds} s, {_AGENTS} agents"
    Console(highlight=False, markup=False, width=WIDTH).print(_table(title, found))
    if given.json:
        told = {name: asdict(one) for name, one in found.items()}
        given.json.write_text(json.dumps({"title": title, "found": told}, indent=1) + "\n", encoding="utf-8")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        message = f"{text!r} is no count: give a whole number of at least 1"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _weather(name: str, tasks: int, seconds: int) -> Weathered:
    """Start a server and agents of their own, send the tasks, and have the service come back after a while."""
    with EmbeddedServer.start() as server, Redis.from_url(server.url) as client:
        environment = {"ORCHESTRA_BROKER_URL": server.url, "ORCHESTRA_LOG_LEVEL": "ERROR"}
        os.environ.update(environment)
        with Fleet("", (), environment=environment, directory=_PROJECT) as fleet:
            for number in range(_AGENTS):
                fleet.add(f"agent{number}", _command(number), ready_line=" ready.")
            fleet.wait_ready(ready=lambda: _joined(client))
            with storm.app.connection_for_write(server.url) as connection:
                for _ in range(tasks):
                    storm.tasks[name].apply_async(connection=connection)
            time.sleep(seconds)
            down, until = _by_second(client, storm.ATTEMPTS), int(time.time())
            client.set(storm.UP, "1")
            took = _seconds_to_finish(client, fleet, tasks)
            return _told(client, down, until, seconds, tasks, took)


def _joined(client: Any) -> set[str]:  # Redis, whose types have every answer awaitable as well
    """Return the names of the agents that have joined; at their level of logging they don't say so."""
    return {text_of(name) for name in client.zrange(Keys("orchestra", "storm").agents, 0, -1)}


def _command(number: int) -> list[str]:
    celery = [sys.executable, "-m", "celery", "-A", "benchmarks.storm:app", "--quiet", "worker", "-l", "ERROR"]
    return [*celery, "-n", f"agent{number}@%h", "--pool", "solo"]


def _seconds_to_finish(client: "Redis", fleet: Fleet, tasks: int) -> float:
    began = time.monotonic()
    while client.scard(storm.DONE) < tasks and time.monotonic() - began < _PATIENCE_SECONDS:
        for death in fleet.tend():
            message = f"The agent {death.name} {death.cause}: " + "\n".join(death.last_lines)
            raise PermanentError(message)
        time.sleep(_LOOK_SECONDS)
    return time.monotonic() - began


def _by_second(client: Any, key: str) -> dict[int, int]:
    return {int(second): int(count) for second, count in client.hgetall(key).items()}


def _told(client: Any, down: Mapping[int, int], until: int, seconds: int, tasks: int, took: float) -> Weathered:
    retries = {second: count for second, count in _by_second(client, storm.RETRIES).items() if second <= until}
    window = round(RetryBudget().window_seconds)
    by_window: dict[int, int] = {}
    for second, count in retries.items():
        by_window[second // window] = by_window.get(second // window, 0) + count
    return Weathered(
        attempts=sum(down.values()),
        attempts_per_second=sum(down.values()) / seconds,
        most_retries_in_a_second=max(retries.values(), default=0),
        most_retries_in_a_window=max(by_window.values(), default=0),
        lost=tasks - client.scard(storm.DONE),
        seconds_to_finish=took,
    )


def _table(title: str, found: Mapping[str, Weathered]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, width=WIDTH, title=title, title_justify="left")
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    rows: dict[str, Callable[[Weathered], str]] = {
        "attempts during the outage": lambda one: f"{one.attempts:,}",
        "attempts a second, on the average": lambda one: f"{one.attempts_per_second:,.1f}",
        "most retries in a second": lambda one: f"{one.most_retries_in_a_second:,}",
        "most retries in a window of 10 s": lambda one: f"{one.most_retries_in_a_window:,}",
        "tasks lost": lambda one: f"{one.lost:,}",
        "seconds until all were done, after it": lambda one: f"{one.seconds_to_finish:,.1f}",
    }
    for label, figure in rows.items():
        table.add_row(label, *(figure(one) for one in found.values()))
    return table


if __name__ == "__main__":
    sys.exit(main())
