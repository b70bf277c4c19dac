"""Which commands Redis gets for one task, counted with MONITOR."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from redis import Redis

from benchmarks import ours, stock
from benchmarks.drain import PLANS, drain
from benchmarks.figures import Section, Spread
from benchmarks.submit import clear

__all__ = ["measure_commands"]

_SUBMITTED: Final = {
    "stock Celery": stock.bare,
    "ours, no hints": ours.bare,
    "ours, enforced hints": ours.enforced,
    "ours, requires": ours.requiring,
}


def measure_commands(client: "Redis", *, tasks: int) -> Section:
    """Count what clients send, not what scripts do: at the submission, and while a worker runs the task."""
    submitted = {name: _counted(client, _submitting(client, task, tasks)) for name, task in _SUBMITTED.items()}
    run = {name: _counted(client, lambda plan=plan: drain(plan, client, tasks)) for name, plan in PLANS.items()}
    rows = {}
    for name in submitted:
        sent, done = (sum(counter.values()) / tasks for counter in (submitted[name], run.get(name, Counter())))
        rows[name] = [Spread((sent,)), *([Spread((done,)), Spread((sent + done,))] if name in run else _UNKNOWN)]
    return Section(
        key="commands",
        title=f"2. Commands that Redis gets for one task (means of {tasks:,})",
        columns=("submit", "run", "whole life"),
        rows={name: row for name, row in rows.items() if name in run},
        note="\n".join(f"{name}: {_listed(submitted[name], run[name], tasks)}" for name in run),
    )
