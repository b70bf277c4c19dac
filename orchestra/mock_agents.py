"""Mock agents: they take and refuse tasks, fail and try again as real ones do, in the test's own process."""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any, assert_never

from orchestra.capabilities import GENERAL, CapabilitySet, Requirement
from orchestra.exceptions import AgentOrchestraException, RetryableError, ValidationError
from orchestra.execution import Dead, Outcome, Retry, Succeeded
from orchestra.mock_tasks import Submittable, SubmittedTask, submit

__all__ = ["Attempt", "MockAgent", "TaskWaitsError"]


class TaskWaitsError(AgentOrchestraException):
    """
    An agent doesn't take a task: it waits in its queue for another one.

    `missing` holds the terms of its requirement that the agent doesn't satisfy, none if the project chose a queue of
    its own, which requirements don't reach.
    """

    agent: str = ""
    queue: str = ""
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """
    One attempt of a task: which agent made it, and what became of it.

    `number` counts from 1; `again` is the task as it's submitted for the next attempt, None where there is no other.
    """

    task: SubmittedTask
    agent: str
    number: int
    outcome: Outcome
    again: SubmittedTask | None = None

    @property
    def wait_seconds(self) -> float | None:
        """How long the task waits for its next attempt; None where there is no other."""
        return self.outcome.delay_seconds if isinstance(self.outcome, Retry) else None

    @property
    def error(self) -> Exception | None:
        """What the attempt failed with; None where it succeeded."""
        return None if isinstance(self.outcome, Succeeded) else self.outcome.error


class MockAgent:
    """
    An agent without a worker: `await agent.execute_task(task)`.

    Routing, requirements, argument checks, retries and waits are the fleet's own. `capabilities` are what an agent is
    started with, `general` if there are none. Of its attempts a share of `failure_rate` fails before it reaches the
    task's code, with what `error` makes of a message; each takes `processing_delay` seconds.

    With the same `seed`, which is the agent's name unless it's given, the same attempts fail, the same waits are drawn,
    and the task's code draws the same from Python's `random`. All waiting is done by `sleep`: with the `sleep_async` of
    a FrozenClock it takes no time.
    """

    def __init__(
        self,
        capabilities: str | Iterable[str] | None = None,
        failure_rate: float = 0.0,
        processing_delay: float = 0.0,
        *,
        name: str = "mock",
        seed: int | str | None = None,
        error: Callable[[str], Exception] = RetryableError,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.name = name
        self.capabilities = CapabilitySet.parse(capabilities or GENERAL.text)
        self.failure_rate = _share(failure_rate)
        self.processing_delay = _seconds(processing_delay)
        self.attempts: list[Attempt] = []
        self._error = error
        self._sleep = sleep
        self._random = Random(name if seed is None else seed)  # noqa: S311  # nothing here is secret
        self._ids = count(1)

    def __repr__(self) -> str:
        """Show the name, and what it can do."""
        return f"<{type(self).__name__} {self.name}: {self.capabilities}>"

    def missing(self, task: Submittable) -> tuple[str, ...] | None:
        """
        Return the terms of a task's requirement that the agent doesn't satisfy; none means that it takes the task.

        None stands for a queue that the project chose itself: agents serve those by `-Q` alone.
        """
        submitted = self._submitted(task)
        if submitted.requires is None:
            return None
        return Requirement.parse(submitted.requires).missing(self.capabilities)

    async def execute_task(self, task: Submittable) -> Any:  # whatever the task returns
        """
        Run a task to its end and return its result, as whoever waits for it gets it: in its JSON form.

        A signature's own code runs, in the event loop's thread. Attempts that fail in a way that may pass are followed
        by others, as the task's own policy has it; all are kept in `attempts`.

        Raises:
            TaskWaitsError: the agent doesn't satisfy what the task requires.
            ValidationError: the call would have been refused where it's submitted.
            Exception: what the task's last attempt failed with.

        """
        submitted = self._submitted(task)
        number = 0
        while True:
            number += 1
            self._refuse(submitted)
            await self._sleep(self.processing_delay)
            attempt = self.attempt(submitted, number=number)
            match attempt.outcome:
                case Succeeded(value):
                    return value
                case Dead(error):
                    raise error
                case Retry(delay_seconds=delay):
                    await self._sleep(delay)
                    submitted = attempt.again or submitted
                case _:
                    assert_never(attempt.outcome)

    def attempt(self, task: SubmittedTask, *, number: int) -> Attempt:
        """Make one attempt at a task, at once and whether the agent satisfies its requirement or not."""
        with _drawing_from(self._random):
            if random.random() < self.failure_rate:  # noqa: S311  # nothing here is secret
                message = f"{self.name} failed on purpose: its failure_rate is {self.failure_rate:g}."
                outcome, again = task.fail(self._error(message), attempt=number)
            else:
                outcome, again = task.perform(attempt=number, agent=self.name)
        attempt = Attempt(task=task, agent=self.name, number=number, outcome=outcome, again=again)
        self.attempts.append(attempt)
        return attempt

    def _submitted(self, task: Submittable) -> SubmittedTask:
        return submit(task, task_id=f"{self.name}-{next(self._ids)}")

    def _refuse(self, task: SubmittedTask) -> None:
        missing = self.missing(task)
        if missing == ():
            return
        reason = "the project chose that queue itself" if missing is None else f"it lacks {', '.join(missing)}"
        message = (
            f"{task.name} waits in {task.queue} for an agent other than {self.name} ({self.capabilities}): {reason}."
        )
        raise TaskWaitsError(message, agent=self.name, queue=task.queue, missing=missing or ())


@contextmanager
def _drawing_from(source: Random) -> Iterator[None]:
    """Let Python's own `random`, which backoffs and tasks draw from, go on where `source` is, and back afterwards."""
    before = random.getstate()
    random.setstate(source.getstate())
    try:
        yield
    finally:
        source.setstate(random.getstate())
        random.setstate(before)


def _share(rate: float) -> float:
    if not 0 <= rate <= 1:
        message = f"failure_rate={rate!r} makes no sense: give the share of attempts that fail, from 0 to 1."
        raise ValidationError(message)
    return rate


def _seconds(delay: float) -> float:
    if not 0 <= delay < math.inf:
        message = f"processing_delay={delay!r} makes no sense: give a number of seconds, 0 or more."
        raise ValidationError(message)
    return delay
