"""Which commands Redis gets for one task, counted with MONITOR."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from redis import Redis

from benchmarks.drain import PLANS, Plan, station
from benchmarks.figures import Section, Spread
from benchmarks.submit import clear
from benchmarks.tasks import FIRST, LAST

__all__ = ["measure_commands"]

Result = TypeVar("Result")

_SELDOM: Final = 0.05  # commands a task; what comes less often is a beat or a mark


def measure_commands(client: "Redis", *, tasks: int) -> Section:
    """Count what clients send, not what scripts do: at the submission, and while a worker runs the task."""
    rows: dict[str, list[Spread]] = {}
    lists: list[str] = []
    for name, plan in PLANS.items():
        sent, _ = _counted(client, partial(_submit, client, plan, tasks))
        with station(plan, 1) as worker:
            worker.drain(tasks)  # it connects and loads what it needs
            done, drained = _counted(client, partial(worker.drain, tasks))
        shares = [sum(counter.values()) / tasks for counter in (sent, done)]
        rows[name] = [Spread((share,)) for share in (*shares, sum(shares), drained.reads / tasks)]
        lists += [f"{name}, submit: {_listed(sent, tasks)}", f"{name}, run: {_listed(done, tasks)}"]
    return Section(
        key="commands",
        title=f"2. Commands that Redis gets for one task (means of {tasks:,})",
        columns=("submit", "run", "whole life", "round trips of the run"),
        rows=rows,
        note="\n".join([*lists, "Round trips: how often the server read from a client."]),
    )


def _submit(client: "Redis", plan: Plan, tasks: int) -> None:
    task, options = plan.queues[0]
    task.apply_async((1, "two"), **options)
    client.echo(FIRST)
    for _ in range(tasks):
        task.apply_async((1, "two"), **options)
    client.echo(LAST)
    clear(client)


def _counted(client: Any, act: Callable[[], Result]) -> tuple[Counter[str], Result]:  # Redis, whose monitor is untyped
    """Count the commands of clients between the two marks that `act` leaves, and return what it returns as well."""
    counter: Counter[str] = Counter()
    with client.monitor() as monitor:
        result = act()
        next_command = monitor.next_command
        while next_command()["command"] != f"ECHO {FIRST}":
            pass
        while (seen := next_command())["command"] != f"ECHO {LAST}":
            if seen["client_type"] != "lua":
                counter[seen["command"].split(" ", 1)[0].upper()] += 1
    return counter, result


def _listed(counter: Counter[str], tasks: int) -> str:
    often = ((name, count / tasks) for name, count in counter.most_common() if count / tasks >= _SELDOM)
    return ", ".join(f"{name} {share:.3g}" for name, share in often)
