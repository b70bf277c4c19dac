"""What checking arguments and choosing a queue cost, without Redis."""

from collections.abc import Callable
from typing import Any

from benchmarks import ours
from benchmarks.figures import Section, column, costs, ratio
from orchestra.task_router import TaskRouter

__all__ = ["measure_lookups"]


def measure_lookups(*, rounds: int, times: int) -> Section:
    """Measure the pure steps."""
    router, names = ours.app.task_router, [task.name for task in ours.skilled]
    check: Any = ours.requiring.arguments.check
    acts = {
        "an empty call": lambda _: None,
        "check (1, 'two')": lambda _: check("requiring", (1, "two"), {}),
        "check x=1, y='two'": lambda _: check("requiring", (), {"x": 1, "y": "two"}),
        **{f"route: {count} declared": _routing(router, names[:count]) for count in (1, len(names))},
    }
    spent = costs(acts, rounds=rounds, times=times)
    rows = {name: [column(spent[name], part) for part in ("wall", "cpu")] for name in acts}
    one, many = list(rows)[-2:]
    rows[f"{len(names)} : 1"] = [ratio(mine, theirs) for mine, theirs in zip(rows[many], rows[one], strict=True)]
    return Section(
        key="lookups",
        title="4. Checking arguments and choosing a queue, in µs",
        columns=("time", "CPU"),
        rows=rows,
    )


def _routing(router: TaskRouter, names: list[str]) -> Callable[[int], object]:
    return lambda number: router(names[number % len(names)], (), {}, {})
