"""
Which commands Redis gets for one task, and in how many round trips, counted with MONITOR and INFO.

    python -m benchmarks.commands [--tasks N] [--json FILE]
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from redis import Redis
from redis.connection import AbstractConnection

from benchmarks.bulk import SENDERS
from benchmarks.drain import PLANS, Plan, Station, station
from benchmarks.figures import Section, Spread
from benchmarks.submit import clear

__all__ = ["measure_commands"]

_FIRST, _LAST = "benchmark:first", "benchmark:last"
_SELDOM: Final = 0.05  # commands a task; what comes less often is a beat or a mark
_IDLE_SECONDS: Final = 4.0
_ALONE: Final = 20  # tasks that come to an idle agent, one after the other
_POLL_SECONDS: Final = 0.002
_WORKERS: Final = {  # what runs -> the plan of either side
    "solo": {"stock": "stock, solo", "ours": "ours, solo"},
    "2 processes": {"stock": "stock, 2 processes", "ours": "ours, 2 processes"},
}


@dataclass(slots=True)
class _Own:
    """What this process itself says to Redis."""

    writes: int = 0
    ports: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Traffic:
    """Commands and round trips, of this process and of all others."""

    own: Counter[str]
    own_trips: int
    others: Counter[str]
    others_trips: int
    seconds: float


def measure_commands(client: "Redis", *, tasks: int) -> Section:
    """Count what clients send, not what scripts do: at the submission, and while a worker runs the task."""
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    lists: list[str] = []

    def note(what: str, side: str, counted: Counter[str], trips: int, times: float) -> None:
        rows.setdefault(what, {})[side] = (sum(counted.values()) / times, trips / times)
        lists.append(f"{side}, {what}: {_listed(counted, times)}")

    for way, senders in SENDERS.items():
        for side, send in senders.items():
            send(1)
            seen = _counted(client, partial(send, tasks))
            clear(client)
            note(f"submit, {way}", side, seen.own, seen.own_trips, tasks)
    for pool, sides in _WORKERS.items():
        for side, name in sides.items():
            for what, seen, times in _of_a_worker(client, PLANS[name], pool, tasks):
                note(what, side, seen.others, seen.others_trips, times)
    return Section(
        key="commands",
        title=f"2. What Redis gets for one task, in commands and round trips (of {tasks:,})",
        columns=("stock", "round trips", "ours", "ours in trips"),
        rows={what: _columns(figures) for what, figures in rows.items()},
        note="\n".join([*lists, "What a client sends in one write is one round trip, however many commands it holds."]),
    )


def _columns(figures: Mapping[str, tuple[float, float]]) -> list[Spread]:
    return [Spread((figure,)) for side in ("stock", "ours") for figure in figures[side]]


def _of_a_worker(client: "Redis", plan: Plan, pool: str, tasks: int) -> Iterator[tuple[str, _Traffic, float]]:
    """Yield what was counted, and for how many tasks or seconds it is."""
    with station(plan, 1) as worker:
        worker.drain(tasks)  # it connects and loads what it needs
        yield f"loaded agent, {pool}", _counted(client, partial(worker.drain, tasks)), tasks
        idle = _counted(client, partial(time.sleep, _IDLE_SECONDS))
        alone = _counted(client, partial(_one_after_another, worker, min(tasks, _ALONE)))
        yield f"idle agent, {pool}", alone, min(tasks, _ALONE)
        yield f"idle second, {pool}", idle, idle.seconds


def _one_after_another(worker: Station, count: int) -> None:
    """Send each task when the one before has ended and its agent waits again."""
    task, options = worker.plan.queues[0]
    for _ in range(count):
        sent = task.apply_async((1, "two"), connection=worker.connection, **options)
        while not worker.client.exists(f"celery-task-meta-{sent.id}"):
            time.sleep(_POLL_SECONDS)
        time.sleep(5 * _POLL_SECONDS)


# ── counting ──


@contextmanager
def _overheard() -> Iterator[_Own]:
    """Count what this process writes to Redis, by whichever of redis-py's connections."""
    own = _Own()
    write: Any = AbstractConnection.send_packed_command  # which is untyped

    def count_and_write(connection: Any, *args: Any, **options: Any) -> None:  # redis-py's signature
        write(connection, *args, **options)
        own.writes += 1
        own.ports.add(connection._sock.getsockname()[1])  # noqa: SLF001  # redis-py tells no other way

    AbstractConnection.send_packed_command = count_and_write  # type: ignore[method-assign,assignment]
    try:
        yield own
    finally:
        AbstractConnection.send_packed_command = write  # type: ignore[method-assign]


def _counted(client: Any, act: Callable[[], object]) -> _Traffic:  # Redis, whose monitor is untyped
    """Count what is said to the server while something is done."""
    with client.monitor() as monitor, _overheard() as own:
        start, before = time.monotonic(), client.info("stats")["total_reads_processed"]
        client.echo(_FIRST)
        act()
        client.echo(_LAST)
        after, seconds = client.info("stats")["total_reads_processed"], time.monotonic() - start
        counted = {True: Counter[str](), False: Counter[str]()}
        while monitor.next_command()["command"] != f"ECHO {_FIRST}":
            pass
        while (seen := monitor.next_command())["command"] != f"ECHO {_LAST}":
            if seen["client_type"] != "lua":
                counted[int(seen["client_port"]) in own.ports][seen["command"].split(" ", 1)[0].upper()] += 1
    around = 4  # two INFO and two ECHO, of which the first INFO was read before the server counted
    return _Traffic(counted[True], own.writes - around, counted[False], after - before - (own.writes - 1), seconds)


def _listed(counter: Counter[str], times: float) -> str:
    often = ((name, count / times) for name, count in counter.most_common() if count / times >= _SELDOM)
    return ", ".join(f"{name} {share:.3g}" for name, share in often) or "nothing"


if __name__ == "__main__":
    from benchmarks.overhead import main  # which imports this module

    sys.exit(main(["--only", "commands", *sys.argv[1:]]))
