"""How fast one worker process works a full queue off."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

from redis import Redis

from benchmarks import ours, stock
from benchmarks.figures import Section, Spread, ratio
from benchmarks.submit import clear
from benchmarks.tasks import FIRST, LAST, MARKS
from orchestra.exceptions import PermanentError
from orchestra.fleet import Fleet

__all__ = ["PLANS", "Drained", "Plan", "drain", "measure_crowd", "measure_drain"]

_BEFORE, _BETWEEN, _AFTER = 0, 3, 9  # kombu's priorities: they keep the marks around the tasks, however many the queues
_WARM_UP: Final = 50
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
    """What one drain took: tasks a second, and for each task the worker's CPU, the server's, and reads off clients."""

    speed: float
    cpu_us: float
    server_us: float
    reads: float


def drain(plan: Plan, client: "Redis", tasks: int) -> Drained:
    """Fill the queues, start a worker, and compare what it says before the tasks with what it says after them."""
    clear(client)
    _fill(plan, tasks)
    with Fleet("", (), directory=_PROJECT) as fleet:
        fleet.add(plan.side, _command(plan), ready_line=" ready.")
        first, last = (_mark(client, fleet) for _ in range(2))
    clear(client)
    spent = {name: last[name] - first[name] for name in first}
    return Drained(
        speed=tasks / spent["wall"],
        cpu_us=spent["cpu"] * 1e6 / tasks,
        server_us=spent["server_cpu"] * 1e6 / tasks,
        reads=spent["reads"] / tasks,
    )


def _fill(plan: Plan, tasks: int) -> None:
    task, options = plan.queues[0]
    mark = task.app.tasks["mark"]
    for _ in range(_WARM_UP):
        task.apply_async((1, "two"), priority=_BEFORE, **options)
    mark.apply_async((FIRST,), priority=_BEFORE, **options)
    for number in range(tasks):
        task, options = plan.queues[number % len(plan.queues)]
        task.apply_async((1, "two"), priority=_BETWEEN, **options)
    mark.apply_async((LAST,), priority=_AFTER, **plan.queues[0][1])


def _command(plan: Plan) -> list[str]:
    celery = [sys.executable, "-m", "celery", "-A", f"benchmarks.{plan.side}:app"]
    return [*celery, "--quiet", "worker", "--pool", "solo", "-n", f"{plan.side}@%h", *plan.worker]


def _mark(client: "Redis", fleet: Fleet) -> dict[str, float]:
    """
    Wait for the worker's next mark.

    Raises:
        PermanentError: the worker died, or has told nothing for too long.

    """
    deadline = monotonic() + _PATIENCE_SECONDS
    while monotonic() < deadline:
        told: Any = client.blpop([MARKS], timeout=1)
        if told is not None:
            seen: dict[str, float] = json.loads(told[1])
            return seen
        for death in fleet.tend():
            message = f"The worker of {death.name} {death.cause}: " + "\n".join(death.last_lines)
            raise PermanentError(message)
    message = f"The worker has told nothing for {_PATIENCE_SECONDS} s."
    raise PermanentError(message)


def measure_drain(client: "Redis", *, rounds: int, tasks: int) -> Section:
    """Drain one queue by a fresh solo worker, by turns."""
    rows = _by_turns(PLANS, client, rounds, tasks)
    rows |= {f"{name} : stock": _ratios(rows, name, "stock Celery") for name in PLANS if name != "stock Celery"}
    return Section(
        key="drain",
        title=f"3. {tasks:,} tasks that do nothing, by one solo worker",
        columns=("tasks/s", "CPU µs", "server's CPU µs"),
        rows=rows,
        note="CPU is the worker's for each task, with all its threads.",
    )


def measure_crowd(client: "Redis", *, rounds: int, tasks: int, queues: int) -> Section:
    """Drain one capability queue and many, by turns."""
    plans = {f"{side}, {count}": _crowd(side, count) for side in ("stock", "ours") for count in (1, queues)}
    rows = _by_turns(plans, client, rounds, tasks)
    for side in ("stock", "ours"):
        rows[f"{side}, {queues} : 1"] = _ratios(rows, f"{side}, {queues}", f"{side}, 1")
    return Section(
        key="crowd",
        title=f"5. {tasks:,} tasks over {queues} queues and over 1",
        columns=("tasks/s", "CPU µs", "server's CPU µs"),
        rows=rows,
    )


def _by_turns(plans: Mapping[str, Plan], client: "Redis", rounds: int, tasks: int) -> dict[str, list[Spread]]:
    found: dict[str, list[Drained]] = {name: [] for name in plans}
    for turn in range(rounds):
        for name in list(plans)[:: 1 if turn % 2 else -1]:  # so that none always comes first
            found[name].append(drain(plans[name], client, tasks))
    parts = ("speed", "cpu_us", "server_us")
    return {
        name: [Spread(tuple(getattr(one, part) for one in drained)) for part in parts]
        for name, drained in found.items()
    }


def _ratios(rows: Mapping[str, Sequence[Spread]], mine: str, theirs: str) -> list[Spread]:
    return [ratio(one, other) for one, other in zip(rows[mine], rows[theirs], strict=True)]
