"""What became of a scenario: each task's attempts, the agents that made them, and what waits and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestra.execution import Dead, Succeeded
from orchestra.mock_agents import Attempt
from orchestra.mock_tasks import SubmittedTask

__all__ = ["ScenarioReport", "TaskRun"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRun:
    """
    What became of one task.

    `missing` tells of a task that waits what each agent lacks to take it, by the agents' names; None for one that
    doesn't serve the queue, which the project chose itself.
    """

    task: SubmittedTask
    attempts: tuple[Attempt, ...] = ()
    missing: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        """Whether the task came to a good end."""
        return bool(self.attempts) and isinstance(self.attempts[-1].outcome, Succeeded)

    @property
    def dead(self) -> bool:
        """Whether the task failed for good."""
        return bool(self.attempts) and isinstance(self.attempts[-1].outcome, Dead)

    @property
    def waiting(self) -> bool:
        """Whether the task still waits for an agent that satisfies what it requires."""
        return not (self.succeeded or self.dead)

    @property
    def value(self) -> Any:  # whatever the task returns
        """What the task returned; None unless it succeeded."""
        outcome = self.attempts[-1].outcome if self.attempts else None
        return outcome.value if isinstance(outcome, Succeeded) else None

    @property
    def error(self) -> Exception | None:
        """What the last attempt failed with; None where it succeeded, or there was none."""
        return self.attempts[-1].error if self.attempts else None

    @property
    def agents(self) -> tuple[str, ...]:
        """The agents that had the task, one for each attempt."""
        return tuple(attempt.agent for attempt in self.attempts)

    @property
    def waits(self) -> tuple[float, ...]:
        """The seconds that it waited between attempts."""
        return tuple(attempt.wait_seconds for attempt in self.attempts if attempt.wait_seconds is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioReport:
    """What became of a scenario's tasks, in the order of their submission; `elapsed_seconds` is by its own clock."""

    scenario_name: str
    agents: tuple[str, ...]
    runs: tuple[TaskRun, ...]
    elapsed_seconds: float

    @property
    def succeeded(self) -> tuple[TaskRun, ...]:
        """The tasks that came to a good end."""
        return tuple(run for run in self.runs if run.succeeded)

    @property
    def dead(self) -> tuple[TaskRun, ...]:
        """The tasks that failed for good."""
        return tuple(run for run in self.runs if run.dead)

    @property
    def waiting(self) -> tuple[TaskRun, ...]:
        """The tasks that no agent takes; each run's `missing` says why."""
        return tuple(run for run in self.runs if run.waiting)

    @property
    def retries(self) -> int:
        """How many attempts were followed by another."""
        return sum(len(run.waits) for run in self.runs)

    @property
    def by_agent(self) -> dict[str, list[str]]:
        """The ids of the tasks that each agent had, once for each attempt."""
        return {
            name: [run.task.id for run in self.runs for agent in run.agents if agent == name] for name in self.agents
        }

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"{self.scenario_name}: {len(self.runs)} tasks, {len(self.agents)} agents: {len(self.succeeded)} "
            f"succeeded, {len(self.dead)} dead, {len(self.waiting)} waiting; {self.retries} retries; "
            f"{self.elapsed_seconds:.1f} s"
        )
