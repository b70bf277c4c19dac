"""
How fast a worker works a full queue off.

    python -m benchmarks.drain [--tasks N] [--rounds R] [--json FILE]
"""

import json
import os
import signal
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
from benchmarks.tasks import MARKS
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


_SOLO: Final = ("--pool", "solo")
_TWO: Final = ("--pool", "prefork", "--concurrency", "2")
_INLINE: Final = ("--agent-pool", "inline")
_UNCAPPED: Final = ("--prefetch-multiplier", "0")
_STOCK: Final[Sequence[Any]] = [(stock.bare, {})]
_OURS: Final[Sequence[Any]] = [(ours.bare, {})]

PLANS: Final[Mapping[str, Plan]] = {
    "stock, solo": Plan("stock", _STOCK, _SOLO),
    "ours, solo": Plan("ours", _OURS, _SOLO),
    "ours, solo, requires": Plan("ours", [(ours.requiring, {"requires": "nlp"})], (*_SOLO, "--capabilities", "nlp")),
    "ours, solo, uncapped": Plan("ours", _OURS, (*_SOLO, *_UNCAPPED)),
    "ours, inline": Plan("ours", _OURS, _INLINE),
    "stock, 2 processes": Plan("stock", _STOCK, _TWO),
    "ours, 2 processes": Plan("ours", _OURS, _TWO),
    "ours, 2 processes, uncapped": Plan("ours", _OURS, (*_TWO, *_UNCAPPED)),
}


def _crowd(side: str, queues: int) -> Plan:
    """Plan for so many queues beside the default one."""
    skills = [f"skill{number}" for number in range(queues)]
    if side == "stock":
        return Plan(side, [(stock.bare, {"queue": skill}) for skill in skills], (*_SOLO, "-Q", ",".join(skills)))
    wanted = [(task, {"requires": skill}) for task, skill in zip(ours.skilled, skills, strict=False)]
    return Plan(side, wanted, (*_SOLO, "--capabilities", ",".join(skills)))


@dataclass(frozen=True, slots=True)
class Drained:
    """What drains took: seconds, the worker's CPU, and the server's CPU."""

    tasks: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    server_cpu: float = 0.0

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
        Fill the queues while the worker's processes are stopped, and let it work.

        What it says before the first task and after the last one is compared, so that filling doesn't count. No task
        holds it meanwhile: how long tasks take is what decides how many an agent fetches ahead.
        """
        with self._stopped():
            self._send_mark(_BEFORE)
            for number in range(tasks):
                task, options = self.plan.queues[number % len(self.plan.queues)]
                self._send(task, (1, "two"), options, _BETWEEN)
            self._send_mark(_AFTER)
        first, last = self._next_mark(), self._next_mark()
        return Drained(tasks, **{name: last[name] - first[name] for name in first})

    @contextmanager
    def _stopped(self) -> Iterator[None]:
        groups = list(self.fleet.pids.values())  # each worker leads a group of its own
        for group in groups:
            os.killpg(group, signal.SIGSTOP)
        try:
            yield
        finally:
            for group in groups:
                os.killpg(group, signal.SIGCONT)

    def _send_mark(self, priority: int) -> None:
        task, options = self.plan.queues[0]
        self._send(task.app.tasks["mark"], (), options, priority)

    def _send(self, task: Any, args: tuple[Any, ...], options: Mapping[str, Any], priority: int) -> None:
        task.apply_async(args, priority=priority, connection=self.connection, **options)

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
    return [*celery, "--quiet", "worker", "-n", f"{plan.side}@%h", *plan.worker]


def measure_drain(*, rounds: int, tasks: int) -> Section:
    """Drain one queue by a worker of each kind, by turns."""
    rows: dict[str, Sequence[Spread | None]] = {**_by_turns(PLANS, rounds, tasks)}
    for name in [name for name in PLANS if name.startswith("ours")]:
        theirs = "stock, 2 processes" if "processes" in name else "stock, solo"
        rows[f"{name} : stock"] = _ratios(rows, name, theirs)
    for name in rows:
        if "processes" in name:
            rows[name] = [rows[name][0], None, rows[name][2]]  # a pool process tells its own CPU alone
    return Section(
        key="drain",
        title=f"3. {tasks:,} tasks that do nothing, by one worker",
        columns=("tasks/s", "CPU µs", "server's CPU µs"),
        rows=rows,
        note="CPU is the worker's for each task, with all its threads. Uncapped: --prefetch-multiplier 0.",
    )


def measure_crowd(*, rounds: int, tasks: int, queues: int) -> Section:
    """Drain one capability queue and many, by turns."""
    plans = {f"{side}, {count}": _crowd(side, count) for side in ("stock", "ours") for count in (1, queues)}
    rows: dict[str, Sequence[Spread | None]] = {**_by_turns(plans, rounds, tasks)}
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


def _ratios(rows: Mapping[str, Sequence[Spread | None]], mine: str, theirs: str) -> list[Spread | None]:
    pairs = zip(rows[mine], rows[theirs], strict=True)
    return [one and other and ratio(one, other) for one, other in pairs]


if __name__ == "__main__":
    from benchmarks.overhead import main  # which imports this module

    sys.exit(main(["--only", "bulk", "drain", *sys.argv[1:]]))
