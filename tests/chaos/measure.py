"""What publishes, executions and strikes come to: lost, run twice, late. No I/O."""

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from math import inf
from typing import Any, Final

from tests.chaos.oracle import Execution
from tests.chaos.producer import Publish
from tests.chaos.stage import Strike

__all__ = [
    "ACKNOWLEDGED_WITHIN",
    "Outcome",
    "counted",
    "excused",
    "pending",
    "recovery",
    "repeated",
    "slowest",
    "too_early",
]

# s; a body that ended so shortly before a strike counts as running: the oracle sees bodies, and the result of one may
# not have been stored yet.
ACKNOWLEDGED_WITHIN: Final = 0.25
MOST_RUNS: Final = 4  # of a task that ends its process each time: the fourth loss is one too many
_SLOW_SECONDS: Final = 1.0
_EARLY_SECONDS: Final = 0.05  # what clocks and roundings may differ by


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    The figures of one run; tasks go by their numbers.

    Attributes:
        confirmed: publishes that returned.
        unconfirmed: publishes that raised, and `unconfirmed_run` of them ran anyhow.
        executed: bodies that began.
        lost: confirmed tasks whose body never came to its end, and that didn't end as failures as they had to;
            `loses` says that the fault is struck to show them, and results that are lost.
        duplicates: bodies that began beyond the first of a task; `running` may do so for the strikes, and `unexcused`
            are the tasks that did though no strike met them.
        failed: tasks that can't come to their end and ended as failures, and `most_runs` is how often the body of one
            of them began at the most.
        early: delayed tasks that began before their time.
        recovery: the longest time from a strike until no task had to wait for more than a second; None when that never
            came.
        slowest: the longest time that a task has waited; None when one never ran.
        stuck: messages that are still in the broker at the end, by key.
        without_result: confirmed tasks that ran, and have no result or a wrong one.
        alive: agents that still take tasks at the end.
        own_ends: agents that ended unasked; `hung_stops` didn't end within 10 s of being asked, and `orphans` are
            processes that an agent has left behind.
        struck: begin and end of each strike, and the agents.

    """

    system: str
    fault: str
    seed: int
    confirmed: int
    unconfirmed: int
    unconfirmed_run: int
    executed: int
    lost: list[int]
    loses: bool
    duplicates: int
    running: int
    unexcused: list[int]
    failed: int
    most_runs: int
    early: list[int]
    recovery: float | None
    slowest: float | None
    stuck: dict[str, int]
    without_result: list[int]
    agents: int
    alive: int
    own_ends: int
    hung_stops: int
    orphans: int
    errors: list[str]
    struck: list[tuple[float, float, list[str]]]
    seconds: float

    @property
    def broken(self) -> list[str]:
        """
        Say which promises were not kept.

        A stop that takes too long is none: billiard's pool lets a process that ran what its parent has forgotten, as it
        does with its connection, wait for 30 s. Such an agent is killed, which must cost nothing.
        """
        zeros = ["stuck", "unexcused", "early"] + ["lost", "without_result"] * (not self.loses)
        wrong = [f"{name} {getattr(self, name)}" for name in zeros if getattr(self, name)]
        if self.duplicates > self.running:
            wrong.append(f"run twice {self.duplicates}, of {self.running} that were running")
        if self.alive < self.agents:
            wrong.append(f"alive {self.alive} of {self.agents}")
        if self.own_ends:
            wrong.append(f"ended unasked {self.own_ends}")
        if self.most_runs > MOST_RUNS:
            wrong.append(f"a task that can't end was run {self.most_runs} times")
        return wrong

    def to_json(self) -> dict[str, Any]:
        """Return the figures as programs read them."""
        return asdict(self)


def counted(
    publishes: Sequence[Publish],
    executions: Sequence[Execution],
    strikes: Sequence[Strike],
    failed: AbstractSet[int] = frozenset(),
) -> dict[str, Any]:  # a part of an Outcome's fields
    """Return what follows from the marks alone, and from the tasks with a deed that ended as failures."""
    unconfirmed = [publish for publish in publishes if publish.result is None]
    ran = Counter(execution.number for execution in executions)
    doers = {publish.item.number for publish in publishes if publish.item.deed}
    others = [execution for execution in executions if execution.number not in doers]
    again, running = repeated(others), excused(others, strikes)
    return {
        "confirmed": len(publishes) - len(unconfirmed),
        "unconfirmed": len(unconfirmed),
        "unconfirmed_run": sum(publish.item.number in ran for publish in unconfirmed),
        "executed": len(executions),
        "lost": sorted({publish.item.number for publish in pending(publishes, executions)} - failed),
        "failed": len(failed),
        "most_runs": max((ran[number] for number in doers), default=0),
        "duplicates": again.total(),
        "running": running.total(),
        "unexcused": sorted((again - running).elements()),
        "early": too_early(publishes, executions),
        "recovery": recovery(publishes, executions, strikes),
        "slowest": slowest(publishes, executions),
    }


def pending(publishes: Sequence[Publish], executions: Sequence[Execution]) -> list[Publish]:
    """Return the confirmed publishes whose task has not come to its end."""
    done = {execution.number for execution in executions if execution.ended is not None}
    return [publish for publish in publishes if publish.result is not None and publish.item.number not in done]


def repeated(executions: Sequence[Execution]) -> Counter[int]:
    """Count, by task, the executions beyond the first."""
    return Counter(execution.number for execution in executions) - Counter(
        {execution.number for execution in executions}
    )


def excused(executions: Sequence[Execution], strikes: Sequence[Strike]) -> Counter[int]:
    """Count, by task, the executions that were running at a strike."""
    return Counter(
        execution.number for execution in executions if any(_was_running(execution, strike) for strike in strikes)
    )


def _was_running(execution: Execution, strike: Strike) -> bool:
    if execution.agent not in strike.agents or execution.began > strike.ended:
        return False
    return execution.ended is None or execution.ended + ACKNOWLEDGED_WITHIN >= strike.began


def recovery(publishes: Sequence[Publish], executions: Sequence[Execution], strikes: Sequence[Strike]) -> float | None:
    """
    Return the longest time from a strike until no task had to wait for more than a second.

    A task waits from its readiness until the run begins that comes to its end; None when that never came.
    """
    begins = _last_begins(executions)
    confirmed = [publish for publish in publishes if publish.result is not None and not publish.item.deed]
    if any(publish.item.number not in begins for publish in confirmed):
        return None
    confirmed = [publish for publish in confirmed if not publish.item.follows]  # which wait for others' ends
    waits = [(publish.ready, begins[publish.item.number]) for publish in confirmed]
    slow = [(ready, begin) for ready, begin in waits if begin - ready > _SLOW_SECONDS]
    nexts = [*(strike.began for strike in strikes[1:]), inf]
    return max(
        (
            begin - strike.began
            for strike, following in zip(strikes, nexts, strict=False)
            for ready, begin in slow
            if begin > strike.began and ready < following
        ),
        default=0.0,
    )


def slowest(publishes: Sequence[Publish], executions: Sequence[Execution]) -> float | None:
    """Return the longest time that a confirmed task has waited, as `recovery` has it."""
    begins = _last_begins(executions)
    confirmed = [publish for publish in publishes if publish.result is not None and not publish.item.deed]
    if any(publish.item.number not in begins for publish in confirmed):
        return None
    confirmed = [publish for publish in confirmed if not publish.item.follows]  # which wait for others' ends
    return max((begins[publish.item.number] - publish.ready for publish in confirmed), default=0.0)


def _last_begins(executions: Sequence[Execution]) -> dict[int, float]:
    """Return, by task, when the execution began that was the first to come to its end."""
    ended = [(execution.ended, execution) for execution in executions if execution.ended is not None]
    found: dict[int, float] = {}
    for _, execution in sorted(ended, key=lambda pair: pair[0]):
        found.setdefault(execution.number, execution.began)
    return found


def too_early(publishes: Sequence[Publish], executions: Sequence[Execution]) -> list[int]:
    """Return the tasks that began before they were due; a publish that failed may have had its effect all the same."""
    due = {publish.item.number: publish.due for publish in publishes}
    early = (
        execution.number
        for execution in executions
        if execution.began < due.get(execution.number, -inf) - _EARLY_SECONDS
    )
    return sorted(set(early))
