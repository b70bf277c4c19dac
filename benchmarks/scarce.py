"""
How an agent with a rare skill divides its time between work that only it can do and work for anybody.

    python -m benchmarks.scarce [--seconds S] [--rounds R] [--json FILE]
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from redis import Redis
from rich.console import Console

from benchmarks.figures import WIDTH, Section, Spread
from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import AgentOrchestraException
from orchestra.fleet import AgentSpec, Fleet

__all__ = ["main"]

_PROJECT: Final = Path(__file__).resolve().parents[1]
_ORDERS: Final[Mapping[str, str]] = {"scarce first": "", "by turns": "round_robin"}  # kombu's name for its own order
_BACKLOG: Final = 300  # tasks of the flood that wait at least
_SHORT_SECONDS, _LONG_SECONDS, _ONE_IN = 0.005, 0.2, 10  # most of the work is short; one in so many tasks isn't
_SCARCE: Final = "scarce"


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which task comes in a flood, which one steadily and how often, and what agents there are."""

    title: str
    flood: str
    steady: str
    every_seconds: float
    agents: Sequence[AgentSpec]


_SPECIALIST: Final = AgentSpec(name=_SCARCE, capabilities="gpu,general", pool="prefork", concurrency=1)
_OTHERS: Final = AgentSpec(name="common", capabilities="general", processes=2, pool="prefork", concurrency=1)
_PLANS: Final[Mapping[str, _Plan]] = {
    "common": _Plan(
        "1. General work in a flood, and steady work for the only agent with the skill",
        "common",
        "rare",
        0.1,
        [_SPECIALIST, _OTHERS],
    ),
    "rare": _Plan(
        "2. Work for the skill in a flood, and steady general work that nobody else takes",
        "rare",
        "common",
        0.5,
        [_SPECIALIST],
    ),
}
_NOTE: Final = (
    "The steady work waits from its submission to its begin. Held up, and idle: the share of the time in which work "
    "for the skill waits and its agent runs none of it, or nothing at all. The share is that of all the agent's tasks."
)


@dataclass(frozen=True, slots=True)
class _Run:
    """One task's run, in seconds since 1970."""

    task: str
    submitted: float
    began: float
    ended: float
    agent: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, and write down; return the exit code."""
    given = _given(arguments)
    console = Console(highlight=False, markup=False, width=WIDTH)
    try:
        with EmbeddedServer.start() as server, Redis.from_url(server.url) as client:
            os.environ["ORCHESTRA_BROKER_URL"] = server.url
            sections = [_measured(key, plan, client, given) for key, plan in _PLANS.items()]
    except AgentOrchestraException as error:
        Console(stderr=True, highlight=False, markup=False).print(f"The benchmark failed: {error}", soft_wrap=True)
        return 1
    for section in sections:
        console.print(section.to_table())
    if given.json:
        found = {"sections": {section.key: section.to_json() for section in sections}}
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def _given(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scarce", description="Scarce skill beside turns.")
    parser.add_argument("--seconds", type=_count, default=15, metavar="S", help="of work in a round (default: 15)")
    parser.add_argument("--rounds", type=_count, default=3, metavar="R", help="for each order (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure down")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        message = f"{text!r} is no count: give a whole number of at least 1"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _measured(key: str, plan: _Plan, client: "Redis", given: argparse.Namespace) -> Section:
    found: dict[str, list[dict[str, float]]] = {order: [] for order in _ORDERS}
    for turn in range(given.rounds):
        for order in list(_ORDERS)[:: 1 if turn % 2 == 0 else -1]:  # so that none always comes first
            found[order].append(_figures(plan, _round(plan, order, client, given.seconds, seed=turn)))
    rows = {
        name: [Spread(tuple(figures[name] for figures in found[order])) for order in _ORDERS]
        for name in found[next(iter(_ORDERS))][0]
    }
    return Section(key=key, title=plan.title, columns=tuple(_ORDERS), rows=rows, note=_NOTE)


def _round(plan: _Plan, order: str, client: "Redis", seconds: int, *, seed: int) -> list[_Run]:
    """Let a fleet work for so many seconds; return the runs of its tasks."""
    client.flushdb()
    with _fleet(plan, order):
        from benchmarks.skills import RUNS, app  # noqa: PLC0415  # its broker is known by now

        _submit(plan, app, client, seconds, random.Random(seed))  # noqa: S311  # no secret
        runs: Any = client.lrange(RUNS, 0, -1)
    return [_Run(*json.loads(run)) for run in runs]


@contextmanager
def _fleet(plan: _Plan, order: str) -> Iterator[None]:
    environment = {"BENCHMARK_ORDER": _ORDERS[order]}
    with Fleet("benchmarks.skills:app", plan.agents, environment=environment, directory=_PROJECT) as fleet:
        fleet.wait_ready()
        yield


def _submit(plan: _Plan, app: Any, client: "Redis", seconds: int, dice: random.Random) -> None:
    """Keep the flood up, and submit the steady work at its pace."""
    flood, steady = app.tasks[plan.flood], app.tasks[plan.steady]
    queue = app.queue_names.default if plan.flood == "common" else f"{app.queue_names.fleet}:gpu"
    key = f"{queue}{app.priority_steps[2]}"
    end = time.monotonic() + seconds
    due = time.monotonic() + 1  # when the flood is there
    while time.monotonic() < end:
        if client.llen(key) < _BACKLOG:
            for _ in range(_BACKLOG // 3):
                flood.apply_async((time.time(), _length(dice)))
        if time.monotonic() >= due:
            steady.apply_async((time.time(), _SHORT_SECONDS))
            due += plan.every_seconds
        time.sleep(0.005)
    client.delete(key)


def _length(dice: random.Random) -> float:
    return _LONG_SECONDS if dice.randrange(_ONE_IN) == 0 else _SHORT_SECONDS


def _figures(plan: _Plan, runs: Sequence[_Run]) -> dict[str, float]:
    steady = [run for run in runs if run.task == plan.steady]
    waits = sorted(run.began - run.submitted for run in steady)
    own = sorted((run for run in runs if run.agent == _SCARCE), key=lambda run: run.began)
    rare = [run for run in own if run.task == "rare"]
    seconds = max(run.ended for run in runs) - min(run.began for run in runs)
    return {
        "steady work waits, p50, in ms": median(waits) * 1000,
        "steady work waits, worst, in ms": waits[-1] * 1000,
        "held up, in %": _left_waiting(rare, rare) / seconds * 100,
        "idle, in %": _left_waiting(rare, own) / seconds * 100,
        "share of the steady work, in %": sum(run.task == plan.steady for run in own) / len(own) * 100,
        "flood, in tasks/s": sum(run.task == plan.flood for run in runs) / seconds,
    }


def _left_waiting(waiting: Sequence[_Run], working: Sequence[_Run]) -> float:
    """Return for how long any of `waiting` had not begun while none of `working` ran, in s; both by their begins."""
    moments = [(run.submitted, 1, 0) for run in waiting] + [(run.began, -1, 0) for run in waiting]
    moments += [(run.began, 0, 1) for run in working] + [(run.ended, 0, -1) for run in working]
    left, waits, works, before = 0.0, 0, 0, 0.0
    for at, more_waits, more_works in sorted(moments):
        left += at - before if waits and not works else 0.0
        waits, works, before = waits + more_waits, works + more_works, at
    return left


if __name__ == "__main__":
    sys.exit(main())
