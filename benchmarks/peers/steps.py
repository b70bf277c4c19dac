"""What is measured, step by step; each step returns its figures for one system in one round."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import quantiles
from typing import Final

from benchmarks.peers.stage import Sender, Stage, Workers
from benchmarks.peers.systems import System
from orchestra.exceptions import PermanentError

__all__ = ["STEPS", "Crew", "Step", "Visit", "await_tasks", "awake"]

_POLL_SECONDS: Final = 0.002
_STALLED_SECONDS: Final = 20.0  # since the last task was run
_SETTLING_SECONDS: Final = 1.0
_WARM_TASKS: Final = 20
_WARM_SECONDS: Final = 15.0
_LATENCIES: Final = 100
_LOADED_TASKS: Final = 200
_LOADED_RATE: Final = 100.0  # tasks a second
_SMALL, _LARGE = 1_024, 102_400  # bytes
_COMPUTE_MS: Final = 5
_PAUSE_MS: Final = 50


class Crew(Enum):
    """Which workers a step is for."""

    NONE = "none"
    ONE = "one process"
    TWO = "two processes"
    WAITING = "one process, for tasks that wait"
    QUEUE = "one process, for one queue"
    QUEUES = "one process, for many queues"


@dataclass(frozen=True, slots=True)
class Visit:
    """
    One system's turn: its processes, and how many tasks it gets.

    `workers` is None where a step needs none; `started` is when they were, by the monotonic clock. `queues` says over
    how many queues of their own tasks are spread; None is the one that all have.
    """

    system: System
    stage: Stage
    sender: Sender
    tasks: int
    workers: Workers | None = None
    started: float = 0.0
    queues: int | None = None

    def few(self, divisor: int = 1, least: int = 10) -> int:
        """Return a part of the tasks; a slow system gets fewer of them."""
        return max(least, round(self.tasks * self.system.share / divisor))

    def fill(self, kind: str, argument: object, count: int) -> None:
        """Submit so many tasks in the quickest way."""
        if self.queues is None:
            self.sender.ask("bulk", kind=kind, argument=argument, count=count)
        else:
            self.sender.ask("spread", kind=kind, argument=argument, count=count, queues=self.queues)


Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One table: its key, the words above and below it, its figures by their columns, and how they are found."""

    key: str
    title: str
    columns: Sequence[str]
    crew: Crew
    act: Callable[[Visit], Figures]
    note: str = ""


def awake(visit: Visit, processes: int) -> None:
    """
    Have every process of the workers run tasks, so that it's connected and has loaded what it needs.

    Raises:
        PermanentError: a worker has ended, or tasks aren't run.

    """
    tally, deadline = visit.stage.tally, time.monotonic() + _WARM_SECONDS
    while True:
        before = sum(tally.counts())
        visit.fill("compute", 2, _WARM_TASKS)
        await_tasks(visit, before + _WARM_TASKS)
        visit.sender.ask("settle")
        if len(tally.counts()) >= processes or time.monotonic() > deadline:
            return


def await_tasks(visit: Visit, total: int) -> None:
    """
    Wait until so many tasks have been run in all.

    Raises:
        PermanentError: a worker has ended, or no task has been run for a while.

    """
    tally, seen, since = visit.stage.tally, -1, time.monotonic()
    while (done := sum(tally.counts())) < total:
        now = time.monotonic()
        if done != seen:
            seen, since = done, now
        elif now - since > _STALLED_SECONDS:
            message = f"{visit.system.name} has run {done} of {total} tasks, and no other for {_STALLED_SECONDS:.0f} s."
            raise PermanentError(message)
        if visit.workers is not None:
            visit.workers.check()
        time.sleep(_POLL_SECONDS)


# ── without workers ──


def _submit(visit: Visit) -> Figures:
    """Submit one by one."""
    count = visit.few(4)
    visit.sender.ask("submit", kind="nothing", argument=0, count=10)  # it connects
    before = visit.stage.reading()
    took = visit.sender.ask("submit", kind="nothing", argument=0, count=count)
    after = visit.stage.reading()
    return {
        "µs": took["wall"] * 1e6 / count,
        "CPU µs": took["cpu"] * 1e6 / count,
        "commands": (after.commands - before.commands) / count,
        "round trips": (after.reads - before.reads - 1) / count,
    }


def _bulk(visit: Visit) -> Figures:
    """Submit many the way that the system has for it."""
    count = visit.few()
    took = visit.sender.ask("bulk", kind="nothing", argument=0, count=count)
    return {"tasks/s": count / took["wall"], "CPU µs": took["cpu"] * 1e6 / count}


# ── with workers ──


def _drained(visit: Visit, kind: str, argument: object, count: int) -> dict[str, float]:
    """Fill the queue while the workers stand still, let them go, and see what it takes to the last result."""
    workers, stage = _crew(visit), visit.stage
    with workers.paused():
        visit.fill(kind, argument, count)
        stage.tally.clear()
        cpu, before, start = workers.cpu_seconds(), stage.reading(), time.monotonic()
    await_tasks(visit, count)
    visit.sender.ask("settle")
    after, spent = stage.reading(), workers.cpu_seconds() - cpu
    return {
        "tasks/s": count / (stage.tally.last_ns() / 1e9 - start),
        "CPU µs": spent * 1e6 / count,
        "commands": (after.commands - before.commands) / count,
        "round trips": (after.reads - before.reads) / count,
        "run twice": float(sum(stage.tally.counts()) - count),
    }


def _drain(visit: Visit) -> Figures:
    return _drained(visit, "nothing", 0, visit.few())


def _compute(visit: Visit) -> Figures:
    found = _drained(visit, "compute", _COMPUTE_MS, visit.few(5))
    return {"tasks/s": found["tasks/s"]}


def _pause(visit: Visit) -> Figures:
    found = _drained(visit, "pause", _PAUSE_MS, visit.few(2))
    return {"tasks/s": found["tasks/s"], "CPU µs": found["CPU µs"]}


def _payloads(visit: Visit) -> Figures:
    """Send arguments of two sizes, one by one, and work them off."""
    found: dict[str, float] = {}
    for name, size, divisor in (("1 KB", _SMALL, 4), ("100 KB", _LARGE, 20)):
        count, text = visit.few(divisor), "x" * size
        workers = _crew(visit)
        with workers.paused():
            took = visit.sender.ask("submit", kind="nothing", argument=text, count=count)
        found[f"submit {name}, µs"] = took["wall"] * 1e6 / count
        visit.sender.ask("settle")
        found[f"drain {name}, tasks/s"] = _drained(visit, "nothing", text, count)["tasks/s"]
    return found


def _start(visit: Visit) -> Figures:
    """Tell how long it took from the start of the worker's process until the task was run that waited for it."""
    return {"s": visit.stage.tally.last_ns() / 1e9 - visit.started}


def _memory(visit: Visit) -> Figures:
    time.sleep(_SETTLING_SECONDS)
    workers = _crew(visit)
    return {"PSS MiB": workers.pss_bytes() / 2**20, "processes": float(len(workers.pids))}


def _latency(visit: Visit) -> Figures:
    """Submit tasks one after the other to a worker that has nothing else to do."""
    took = visit.sender.ask("latency", kind="nothing", argument=0, count=_LATENCIES)
    return {"p50, ms": _percentile(took, 50) * 1e3, "p99, ms": _percentile(took, 99) * 1e3}


def _load(visit: Visit) -> Figures:
    """Submit tasks at a steady rate, each of which tells how long it has waited for its start."""
    tally = visit.stage.tally
    tally.clear()
    visit.sender.ask("pace", count=_LOADED_TASKS, rate=_LOADED_RATE)
    await_tasks(visit, _LOADED_TASKS)
    visit.sender.ask("settle")
    delays = [delay / 1e6 for delay in tally.delays_ns()]
    return {"p50, ms": _percentile(delays, 50), "p99, ms": _percentile(delays, 99)}


def _percentile(figures: Sequence[float], percent: int) -> float:
    return quantiles(figures, n=100, method="inclusive")[percent - 1]


def _crew(visit: Visit) -> Workers:
    if visit.workers is None:
        message = "This step needs workers."
        raise ValueError(message)
    return visit.workers


_DRAINED: Final = ("tasks/s", "CPU µs", "commands", "round trips", "run twice")

STEPS: Final[Mapping[str, Step]] = {
    step.key: step
    for step in (
        Step(
            key="submit",
            title="Submitting one task",
            columns=("µs", "CPU µs", "commands", "round trips"),
            crew=Crew.NONE,
            act=_submit,
            note="CPU is the submitting process's. Commands within scripts count, too.",
        ),
        Step(
            key="bulk",
            title="Submitting many tasks",
            columns=("tasks/s", "CPU µs"),
            crew=Crew.NONE,
            act=_bulk,
            note="dramatiq, huey, taskiq, arq and SAQ have no call for many tasks, and submit them one by one.",
        ),
        Step(
            key="start",
            title="From a worker's start to its first task",
            columns=("s",),
            crew=Crew.ONE,
            act=_start,
        ),
        Step(
            key="memory",
            title="Memory of an idle worker with one process",
            columns=("PSS MiB", "processes"),
            crew=Crew.ONE,
            act=_memory,
            note="With all of the processes that belong to it.",
        ),
        Step(
            key="latency",
            title="From a submission to its result, on an idle worker",
            columns=("p50, ms", "p99, ms"),
            crew=Crew.ONE,
            act=_latency,
            note="By the way to wait that each documents; taskiq, arq and SAQ look once a millisecond. "
            "Of streaQ's time 100 ms are its client's, which waits for that long when it ends a subscription.",
        ),
        Step(
            key="load",
            title=f"From a submission to its start, at {_LOADED_RATE:.0f} tasks a second",
            columns=("p50, ms", "p99, ms"),
            crew=Crew.ONE,
            act=_load,
        ),
        Step(
            key="drain",
            title="Tasks that do nothing, by one process",
            columns=_DRAINED,
            crew=Crew.ONE,
            act=_drain,
            note="CPU is that of all of the worker's processes, for each task.",
        ),
        Step(
            key="compute",
            title=f"Tasks that compute for {_COMPUTE_MS} ms, by one process",
            columns=("tasks/s",),
            crew=Crew.ONE,
            act=_compute,
            note=f"No more than {1_000 // _COMPUTE_MS} a second are possible.",
        ),
        Step(
            key="payloads",
            title="Arguments of 1 KB and of 100 KB, by one process",
            columns=("submit 1 KB, µs", "drain 1 KB, tasks/s", "submit 100 KB, µs", "drain 100 KB, tasks/s"),
            crew=Crew.ONE,
            act=_payloads,
        ),
        Step(
            key="drain2",
            title="Tasks that do nothing, by two processes",
            columns=_DRAINED,
            crew=Crew.TWO,
            act=_drain,
        ),
        Step(
            key="compute2",
            title=f"Tasks that compute for {_COMPUTE_MS} ms, by two processes",
            columns=("tasks/s",),
            crew=Crew.TWO,
            act=_compute,
        ),
        Step(
            key="pause",
            title=f"Tasks that wait for {_PAUSE_MS} ms, by one process",
            columns=("tasks/s", "CPU µs"),
            crew=Crew.WAITING,
            act=_pause,
            note="Up to a hundred at a time, by coroutines or threads, where the system has either. "
            "Ours and Celery do it by the threads pool.",
        ),
        Step(
            key="queue",
            title="The drain with one queue of its own",
            columns=_DRAINED,
            crew=Crew.QUEUE,
            act=_drain,
        ),
        Step(
            key="queues",
            title="The drain spread over 256 queues",
            columns=_DRAINED,
            crew=Crew.QUEUES,
            act=_drain,
        ),
    )
}
