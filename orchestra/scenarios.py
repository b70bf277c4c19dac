"""Scenarios: a small fleet of mock agents, and the tasks that were submitted to it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, cycle, islice
from random import Random
from typing import Final

from orchestra.capabilities import Capability
from orchestra.exceptions import ValidationError
from orchestra.frozen_clock import FrozenClock
from orchestra.mock_agents import Attempt, MockAgent
from orchestra.mock_tasks import MockTask, Submittable, SubmittedTask, submit
from orchestra.scenario_report import ScenarioReport, TaskRun
from orchestra.terms import Kind
from orchestra.types import Urgency

__all__ = ["ScenarioHarness", "create_test_scenario"]

# What the agents of a scenario can, in turn: each can something that its neighbours can't.
_CAPABILITIES: Final = (
    "general,cpu_intensive",
    "general,nlp,lang=en",
    "gpu,mem_gb=64,cuda=v12.4",
    "nlp,lang=fr,mem_gb=16",
    "general,io",
)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A task that waits in its queue; until `ready_at` for its next attempt, and then for an agent."""

    place: int  # among all that were submitted
    task: SubmittedTask
    number: int = 1
    ready_at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Running:
    """A task in an agent's hands."""

    agent: MockAgent
    waiting: _Waiting
    ends_at: float


class ScenarioHarness:
    """
    A fleet of mock agents with the tasks that were submitted to it: `report = await harness.run()`.

    An agent runs one task at a time, the most urgent first. A task that is to be tried again goes back to its queue,
    and may land on another agent. More agents may be put into `mock_agents`, and more tasks submitted: the next run
    goes on with whatever waits.
    """

    def __init__(
        self,
        scenario_name: str,
        agents: Iterable[MockAgent],
        tasks: Iterable[Submittable] = (),
        *,
        sleep: Callable[[float], Awaitable[object]] | None = None,
    ) -> None:
        self.scenario_name = scenario_name
        self.mock_agents = list(agents)
        self.submitted_tasks: list[SubmittedTask] = []
        self._sleep = sleep or FrozenClock().sleep_async
        self._now = 0.0
        self._waiting: list[_Waiting] = []
        self._running: list[_Running] = []
        self._attempts: dict[str, list[Attempt]] = {}
        self._idle_since: dict[MockAgent, float] = {}
        for task in tasks:
            self.submit(task)

    def submit(self, task: Submittable) -> SubmittedTask:
        """
        Check and route a task, and put it into its queue.

        Raises:
            ValidationError: the call would be refused where it's submitted.

        """
        place = len(self.submitted_tasks) + 1
        task_id = f"{self.scenario_name}-{place}"
        submitted = replace(submit(task, task_id=task_id), id=task_id)
        self.submitted_tasks.append(submitted)
        self._waiting.append(_Waiting(place, submitted, ready_at=self._now))
        return submitted

    def run_sync(self) -> ScenarioReport:
        """Do what `run` does, where no event loop runs."""
        return asyncio.run(self.run())

    async def run(self) -> ScenarioReport:
        """
        Run every task that an agent takes, to its end.

        Raises:
            ValidationError: there is no agent, or two have one name.

        """
        self._check_names()
        while (moment := self._hand_out()) is not None:
            await self._sleep(moment - self._now)
            self._now = moment
            self._finish()
        return self.report()

    def report(self) -> ScenarioReport:
        """Return how things stand."""
        waiting = {one.task.id: one.task for one in self._waiting}
        runs = (
            TaskRun(
                task=task,
                attempts=tuple(self._attempts.get(task.id, ())),
                missing={agent.name: agent.missing(waiting[task.id]) for agent in self.mock_agents}
                if task.id in waiting
                else {},
            )
            for task in self.submitted_tasks
        )
        names = tuple(agent.name for agent in self.mock_agents)
        return ScenarioReport(
            scenario_name=self.scenario_name, agents=names, runs=tuple(runs), elapsed_seconds=self._now
        )

    def _check_names(self) -> None:
        names = [agent.name for agent in self.mock_agents]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled or not names:
            problem = f"several agents are named {doubled[0]!r}: give each a name=" if doubled else "it has no agent"
            message = f"Scenario {self.scenario_name} can't run: {problem}."
            raise ValidationError(message)

    def _hand_out(self) -> float | None:
        """Give idle agents what they take; return the moment at which something happens next, None for never."""
        for waiting in sorted(self._waiting, key=lambda one: (one.task.priority, one.place)):
            agent = self._idle_agent(waiting.task) if waiting.ready_at <= self._now else None
            if agent is not None:
                self._waiting.remove(waiting)
                self._running.append(_Running(agent, waiting, self._now + agent.processing_delay))
        ends = [running.ends_at for running in self._running]
        later = [one.ready_at for one in self._waiting if one.ready_at > self._now and self._takers(one.task)]
        return min([*ends, *later], default=None)

    def _idle_agent(self, task: SubmittedTask) -> MockAgent | None:
        """Return the agent that takes a task and has been idle the longest."""
        busy = [running.agent for running in self._running]
        idle = [agent for agent in self._takers(task) if agent not in busy]
        return min(idle, key=lambda agent: self._idle_since.get(agent, 0.0), default=None)

    def _takers(self, task: SubmittedTask) -> list[MockAgent]:
        return [agent for agent in self.mock_agents if agent.missing(task) == ()]

    def _finish(self) -> None:
        """Make the attempts that end now."""
        ended = [running for running in self._running if running.ends_at <= self._now]
        for running in ended:
            self._running.remove(running)
            self._idle_since[running.agent] = self._now
            was = running.waiting
            attempt = running.agent.attempt(was.task, number=was.number)
            self._attempts.setdefault(was.task.id, []).append(attempt)
            if attempt.again is not None:
                ready_at = self._now + (attempt.wait_seconds or 0.0)
                self._waiting.append(_Waiting(was.place, attempt.again, was.number + 1, ready_at))


def create_test_scenario(
    scenario_name: str = "scenario",
    num_agents: int = 3,
    num_tasks: int = 10,
    agent_failure_rate: float = 0.0,
    *,
    capabilities: Sequence[str | Iterable[str]] = _CAPABILITIES,
    tasks: Sequence[Submittable] | None = None,
    processing_delay: float = 0.1,
    seed: int | str | None = None,
    sleep: Callable[[float], Awaitable[object]] | None = None,
) -> ScenarioHarness:
    """
    Make a scenario, ready to run; the same `seed` (the scenario's name unless it's given) gives the same one.

    Args:
        scenario_name: what the report, the agents and the tasks are named after.
        num_agents: how many agents.
        num_tasks: how many tasks are submitted.
        agent_failure_rate: the share of attempts that fail, from 0 to 1.
        capabilities: what the agents can, one entry for each; from the start again when there are more agents. By
            default they differ, and so do the tasks: each is one that at least one of the agents takes.
        tasks: what is submitted in place of that, in turn as well.
        processing_delay: the seconds that an attempt takes.
        seed: what chance is drawn from.
        sleep: what time passes with; by default none does.

    Raises:
        ValidationError: a number is below 1, a rate isn't from 0 to 1, or a capability or a task isn't right.

    """
    _check_sizes(num_agents=num_agents, num_tasks=num_tasks)
    if isinstance(capabilities, str) or not capabilities or tasks == []:
        message = "capabilities and tasks are lists with at least one entry: one for each agent, one for each task."
        raise ValidationError(message)
    chance = scenario_name if seed is None else seed
    passing = sleep or FrozenClock().sleep_async
    hired = partial(MockAgent, failure_rate=agent_failure_rate, processing_delay=processing_delay, sleep=passing)
    agents = [
        hired(can, name=f"agent-{number}@{scenario_name}", seed=f"{chance}-{number}")
        for number, can in enumerate(islice(cycle(capabilities), num_agents), 1)
    ]
    given = _tasks(agents, Random(chance)) if tasks is None else cycle(tasks)  # noqa: S311  # nothing here is secret
    return ScenarioHarness(scenario_name, agents, islice(given, num_tasks), sleep=passing)


def _check_sizes(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            message = f"{name}={number!r} makes no sense: a scenario has at least one."
            raise ValidationError(message)


def _tasks(agents: Sequence[MockAgent], chance: Random) -> Iterator[MockTask]:
    """Yield tasks without end, each with one or two of the things that one of the agents can."""
    for number in count(1):
        labels: dict[str, list[Capability]] = {}
        for capability in chance.choice(agents).capabilities.capabilities:
            labels.setdefault(capability.label, []).append(capability)
        chosen = chance.sample(sorted(labels), k=min(len(labels), chance.randint(1, 2)))
        yield MockTask(
            args=(number,),
            run=_same,
            requires=[_term(chance.choice(labels[label])) for label in chosen],
            urgency=chance.choice(list(Urgency)),
        )


def _term(capability: Capability) -> str:
    """Return what asks for a capability; of what has an order, more will do."""
    ordered = capability.value is not None and capability.value.kind is not Kind.TEXT
    return f"{capability.label}>={capability.value}" if ordered else str(capability)


def _same(number: int) -> int:
    return number
