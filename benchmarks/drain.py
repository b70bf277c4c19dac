"""How fast one worker process works a full queue off."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from time import monotonic
from typing import Any, Final

from redis import Redis

from benchmarks import ours, stock
from benchmarks.figures import Section, Spread, ratio
from benchmarks.tasks import FIRST, GATE, LAST, MARKS
from orchestra.exceptions import PermanentError
from orchestra.fleet import Fleet

__all__ = ["PLANS", "Drained", "Plan", "Station", "measure_crowd", "measure_drain", "station"]

_BEFORE, _BETWEEN, _AFTER = 0, 3, 9  # kombu's priorities: they keep the marks around the tasks, however many the queues
_PORTION: Final = 100
_PATIENCE_SECONDS: Final = 120
_PROJECT: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one side drains: its task and the options for each queue, and how the worker comes to serve them."""

    side: str
    queues: Sequence[tuple[Any, Mapping[str, Any]]]  # a task of either side
    worker: Sequence[str] = ()


PLANS: Final[Mapping[str, Plan]] = {
    "stock Celery": Plan("stock", [(stock.bare, {})]),
    "ours, no hints": Plan("ours", [(ours.bare, {})]),
    "ours, requires": Plan("ours", [(ours.requiring, {"requires": "nlp"})], ("--capabilities", "nlp")),
}


def _crowd(side: str, queues: int) -> Plan:
    """Plan for so many queues beside the default one."""
    skills = [f"skill{number}" for number in range(queues)]
    if side == "stock":
        return Plan(side, [(stock.bare, {"queue": skill}) for skill in skills], ("-Q", ",".join(skills)))
    wanted = [(task, {"requires": skill}) for task, skill in zip(ours.skilled, skills, strict=False)]
    return Plan(side, wanted, ("--capabilities", ",".join(skills)))


@dataclass(frozen=True, slots=True)
class Drained:
    """What drains took: seconds, the worker's CPU, the server's CPU, and how often the server read from a client."""

    tasks: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    server_cpu: float = 0.0
    reads: float = 0.0

    def __add__(self, other: "Drained") -> "Drained":
        """Return both together."""
        return Drained(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    @property
    def figures(self) -> tuple[float, float, float]:
        """Tasks a second; and for one task the worker's CPU and the server's, in µs."""
        return self.tasks / self.wall, self.cpu * 1e6 / self.tasks, self.server_cpu * 1e6 / self.tasks


@dataclass(frozen=True, slots=True)
class Station:
    """A plan's worker, which waits in a database of its own."""

    plan: Plan
    fleet: Fleet
    client: "Redis"
    connection: Any  # kombu's

    def drain(self, tasks: int) -> Drained:
        """
        Fill the queues while a gate holds the worker, and let it work.

        What it says before the first task and after the last one is compared, so that filling doesn't count.
        """
        self._send(0, _BEFORE, mark=FIRST)
        for number in range(tasks):
            self._send(number, _BETWEEN)
        self._send(0, _AFTER, mark=LAST)
        self.client.rpush(GATE, "open")
        first, last = self._next_mark(), self._next_mark()
        return Drained(tasks, **{name: last[name] - first[name] for name in first})

    def _send(self, number: int, priority: int, *, mark: str | None = None) -> None:
        task, options = self.plan.queues[number % len(self.plan.queues)]
        sent, args = (task, (1, "two")) if mark is None else (task.app.tasks["mark"], (mark,))
        sent.apply_async(args, priority=priority, connection=self.connection, **options)

    def _next_mark(self) -> dict[str, float]:
        deadline = monotonic() + _PATIENCE_SECONDS
        while monotonic() < deadline:
            told: Any = self.client.blpop([MARKS], timeout=1)
            if told is not None:
                seen: dict[str, float] = json.loads(told[1])
                return seen
            for death in self.fleet.tend():
                message = f"The worker of {death.name} {death.cause}: " + "\n".join(death.last_lines)
                raise PermanentError(message)
        message = f"The worker of {self.plan.side} has told nothing for {_PATIENCE_SECONDS} s."
        raise PermanentError(message)


@contextmanager
def station(plan: Plan, database: int) -> Iterator[Station]:
    """Start a plan's worker, and stop it at the end."""
    url = f"{os.environ['ORCHESTRA_BROKER_URL'].rpartition('/')[0]}/{database}"
    app = plan.queues[0][0].app
    fleet = Fleet("", (), environment={"ORCHESTRA_BROKER_URL": url}, directory=_PROJECT)
    with fleet, Redis.from_url(url) as client, app.connection_for_write(url) as connection:
        client.flushdb()
        fleet.add(plan.side, _command(plan), ready_line=" ready.")
        yield Station(plan, fleet, client, connection)


def _command(plan: Plan) -> list[str]:
    celery = [sys.executable, "-m", "celery", "-A", f"benchmarks.{plan.side}:app"]
    return [*celery, "--quiet", "worker", "--pool", "solo", "-n", f"{plan.side}@%h", *plan.worker]


def measure_drain(*, rounds: int, tasks: int) -> Section:
    """Drain one queue by a solo worker, by turns."""
    rows = _by_turns(PLANS, rounds, tasks)
    rows |= {f"{name} : stock": _ratios(rows, name, "stock Celery") for name in PLANS if name != "stock Celery"}
    return Section(
        key="drain",
        title=f"3. {tasks:,} tasks that do nothing, by one solo worker",
        columns=("tasks/s", "CPU µs", "server's CPU µs"),
        rows=rows,
        note="CPU is the worker's for each task, with all its threads.",
    )


def measure_crowd(*, rounds: int, tasks: int, queues: int) -> Section:
    """Drain one capability queue and many, by turns."""
    plans = {f"{side}, {count}": _crowd(side, count) for side in ("stock", "ours") for count in (1, queues)}
    rows = _by_turns(plans, rounds, tasks)
    for side in ("stock", "ours"):
        rows[f"{side}, {queues} : 1"] = _ratios(rows, f"{side}, {queues}", f"{side}, 1")
    return Section(
        key="crowd",
        title=f"5. {tasks:,} tasks over {queues} queues and over 1",
        columns=("tasks/s", "CPU µs", "server's CPU µs"),
        rows=rows,
    )


def _by_turns(plans: Mapping[str, Plan], rounds: int, tasks: int) -> dict[str, list[Spread]]:
    found: dict[str, list[Drained]] = {name: [] for name in plans}
    with ExitStack() as stack:
        stations = {
            name: stack.enter_context(station(plan, database)) for database, (name, plan) in enumerate(plans.items())
        }
        _round(stations, min(tasks, _PORTION))  # it warms up
        for _ in range(rounds):
            for name, drained in _round(stations, tasks).items():
                found[name].append(drained)
    return {
        name: [Spread(figures) for figures in zip(*(one.figures for one in drained), strict=True)]
        for name, drained in found.items()
    }


def _round(stations: Mapping[str, Station], tasks: int) -> dict[str, Drained]:
    """Let every station drain so many tasks, in portions by turns, since machines change their speed."""
    spent = dict.fromkeys(stations, Drained())
    for turn, start in enumerate(range(0, tasks, _PORTION)):
        for name in list(stations)[:: 1 if turn % 2 else -1]:  # so that none always comes first
            spent[name] += stations[name].drain(min(_PORTION, tasks - start))
    return spent


def _ratios(rows: Mapping[str, Sequence[Spread]], mine: str, theirs: str) -> list[Spread]:
    return [ratio(one, other) for one, other in zip(rows[mine], rows[theirs], strict=True)]
