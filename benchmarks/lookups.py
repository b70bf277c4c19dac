"""What checking arguments and choosing a queue cost, without Redis."""

from collections.abc import Callable
from typing import Any

from benchmarks import ours
from benchmarks.figures import Section, column, costs, ratio
from benchmarks.ours import SKILLS
from orchestra.app import OrchestraCelery

__all__ = ["measure_lookups"]


def measure_lookups(*, rounds: int, times: int) -> Section:
    """Measure the pure steps."""
    few: Any = OrchestraCelery("few", set_as_current=False)
    few.config_from_object("benchmarks.settings")
    ours.declare_skilled(few, 1)
    many, check = f"{SKILLS} declared", ours.requiring.arguments.check
    acts = {
        "an empty call": lambda _: None,
        "check (1, 'two')": lambda _: check("requiring", (1, "two"), {}),
        "check x=1, y='two'": lambda _: check("requiring", (), {"x": 1, "y": "two"}),
        "route: 1 declared": _routing(few, 1),
        f"route: {many}, one asked": _routing(ours.app, 1),
        f"route: {many}, all asked": _routing(ours.app, SKILLS),
    }
    spent = costs(acts, rounds=rounds, times=times)
    rows = {name: [column(spent[name], part) for part in ("wall", "cpu")] for name in acts}
    one, *others = list(rows)[-3:]
    for name in others:
        ratios = [ratio(mine, theirs) for mine, theirs in zip(rows[name], rows[one], strict=True)]
        rows[f"{name.removeprefix('route: ')} : 1 declared"] = ratios
    few.close()
    return Section(
        key="lookups",
        title="4. Checking arguments and choosing a queue, in µs",
        columns=("time", "CPU"),
        rows=rows,
    )


def _routing(app: Any, asked: int) -> Callable[[int], object]:  # OrchestraCelery
    names = [f"skilled{number}" for number in range(asked)]
    return lambda number: app.task_router(names[number % asked], (), {}, {})
