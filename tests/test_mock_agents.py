"""Mock agents, held against real ones."""

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.capabilities import CapabilitySet, Requirement
from orchestra.exceptions import Backoff, PermanentError, RetryableError, ValidationError
from orchestra.execution import Dead, Retry, Succeeded
from orchestra.frozen_clock import FrozenClock
from orchestra.mock_agents import MockAgent, TaskWaitsError
from orchestra.mock_tasks import MockTask, submit
from orchestra.private_app import PrivateApp
from orchestra.types import TaskState
from tests.fleets import agent_of, app_at
from tests.sample_tasks import FAILURES, declare_tasks

STEADY = Backoff(base_seconds=1, jitter="none")


def execute(agent: MockAgent, task: Any) -> Any:
    """Have an agent execute one task."""
    return asyncio.run(agent.execute_task(task))


class TestCapabilities:
    def test_general_is_the_default(self) -> None:
        """An agent that says nothing of itself serves general work, as a real one does."""
        assert ["general"] == list(MockAgent().capabilities)
        assert ["general"] == list(MockAgent([]).capabilities)
        assert "<MockAgent gpu-1: cuda=v12.4,gpu>" == repr(MockAgent("gpu,cuda=12.4.0", name="gpu-1"))

    @pytest.mark.parametrize(
        ("can", "requires", "missing"),
        [
            ("nlp,general", None, ()),
            ("nlp", None, ("general",)),
            ("gpu,mem_gb=8", "gpu,mem_gb>=16", ("mem_gb>=16",)),
            (["gpu", "spot"], {"!spot", "nlp", "gpu"}, ("nlp", "!spot")),
        ],
    )
    def test_refuses_what_it_cannot_do(self, can: Any, requires: Any, missing: tuple[str, ...]) -> None:
        """A task whose requirement isn't satisfied waits, and nothing of it runs."""
        agent = MockAgent(can)
        task = MockTask("shop.index", requires=requires, run=FAILURES.next)
        FAILURES.set()
        assert missing == agent.missing(task)

        if missing:
            with pytest.raises(TaskWaitsError, match=f"lacks {', '.join(missing)}") as caught:
                execute(agent, task)
            assert (missing, "mock") == (caught.value.missing, caught.value.agent)
            assert (0, []) == (FAILURES.attempts, agent.attempts)
        else:
            assert 1 == execute(agent, task)

    @given(
        can=st.sets(st.sampled_from(["gpu", "nlp", "mem_gb=8", "mem_gb=64", "lang=fr"]), min_size=1),
        requires=st.sets(st.sampled_from(["gpu", "!gpu", "nlp", "mem_gb>=16", "lang!=fr"]), min_size=1),
    )
    def test_agrees_with_the_fleet(self, can: set[str], requires: set[str]) -> None:
        """What it lacks is what requirement matching says, in the same words."""
        if {"gpu", "!gpu"} <= requires:
            return
        expected = Requirement.parse(requires).missing(CapabilitySet.parse(can))

        assert expected == MockAgent(can).missing(MockTask(requires=requires))

    def test_queues_of_the_project(self) -> None:
        """A queue that the project chose itself is out of reach of capabilities."""
        app: Any = PrivateApp("memory://", changes={"task_routes": {"t.mine": "mine"}})

        @app.task(name="t.mine")
        def mine() -> None: ...

        assert MockAgent("general").missing(mine.s()) is None
        with pytest.raises(TaskWaitsError, match=r"t\.mine waits in mine .* the project chose that queue") as caught:
            execute(MockAgent("general"), mine.s())
        assert ("mine", ()) == (caught.value.queue, caught.value.missing)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"failure_rate": 1.1}, "failure_rate=1.1"),
            ({"failure_rate": -0.1}, "from 0 to 1"),
            ({"failure_rate": float("nan")}, "failure_rate=nan"),
            ({"processing_delay": -1}, "processing_delay=-1"),
            ({"processing_delay": float("inf")}, "a number of seconds"),
            ({"capabilities": "gpu>=3"}, "'gpu>=3' is no capability"),
        ],
    )
    def test_that_make_no_sense(self, options: dict[str, Any], problem: str) -> None:
        """An option that can't be meant is refused where it's given."""
        with pytest.raises(ValidationError, match=problem):
            MockAgent(**options)

    def test_processing_takes_its_time(self, frozen_clock: FrozenClock) -> None:
        """Each attempt takes the delay; attempts at the same time take it side by side."""
        agent = MockAgent(processing_delay=0.5, sleep=frozen_clock.sleep_async)

        async def three() -> list[Any]:
            return await asyncio.gather(*(agent.execute_task(MockTask(run=lambda: "done")) for _ in range(3)))

        assert ["done"] * 3 == asyncio.run(three())
        assert 0.5 == frozen_clock.elapsed_seconds

    def test_real_time_is_the_default(self) -> None:
        """Unless told otherwise it really waits, so that a test's own timeouts can strike."""

        async def impatient() -> None:
            await asyncio.wait_for(MockAgent(processing_delay=3600).execute_task(MockTask()), 0.01)

        with pytest.raises(TimeoutError):
            asyncio.run(impatient())


class TestFailures:
    def test_waits_and_attempts_are_the_policys(self, frozen_clock: FrozenClock) -> None:
        """Failed attempts are tried again by the task's own policy, until its attempts are used up."""
        agent = MockAgent(failure_rate=1, processing_delay=0.5, sleep=frozen_clock.sleep_async)
        task = MockTask("shop.index", max_attempts=3, backoff=STEADY, run=FAILURES.next)
        FAILURES.set()

        with pytest.raises(RetryableError, match="mock failed on purpose: its failure_rate is 1"):
            execute(agent, task)

        assert [1, 2, None] == [attempt.wait_seconds for attempt in agent.attempts]
        assert [Retry, Retry, Dead] == [type(attempt.outcome) for attempt in agent.attempts]
        assert [(1, "mock"), (2, "mock"), (3, "mock")] == [(one.number, one.agent) for one in agent.attempts]
        assert (0.5, 1, 0.5, 2, 0.5) == frozen_clock.slept
        assert 0 == FAILURES.attempts

    def test_a_share_of_the_attempts(self) -> None:
        """Over many attempts about the given share fails."""
        agent = MockAgent(failure_rate=0.25)
        task = submit(MockTask(), task_id="1")

        failed = sum(agent.attempt(task, number=1).error is not None for _ in range(400))

        assert 80 < failed < 120

    def test_errors_of_another_kind(self) -> None:
        """Whoever wants to see a permanent error names it."""
        agent = MockAgent(failure_rate=1, error=PermanentError)

        with pytest.raises(PermanentError, match="on purpose"):
            execute(agent, MockTask(max_attempts=3))
        assert 1 == len(agent.attempts)

    def test_the_same_seed_is_the_same_run(self) -> None:
        """Failures, waits and what the task draws itself repeat with the seed, which is the name by default."""

        def run(**options: Any) -> list[Any]:
            clock = FrozenClock()
            agent = MockAgent(failure_rate=0.5, sleep=clock.sleep_async, **options)
            drawn = [execute(agent, MockTask(max_attempts=20, run=random.random)) for _ in range(10)]
            return [*drawn, *clock.slept]

        assert run() == run() == run(seed="mock")
        assert run() != run(seed=1) != run(name="other")

    def test_chance_of_the_test_is_left_alone(self) -> None:
        """What the test itself draws doesn't depend on the agents in it."""
        random.seed(4711)
        expected = random.random()

        random.seed(4711)
        execute(MockAgent(), MockTask(run=random.random))

        assert expected == random.random()

    def test_a_retry_that_asks_for_more(self, frozen_clock: FrozenClock) -> None:
        """A task that raises its requirement on the way waits for another agent."""
        app: Any = PrivateApp("memory://")

        @app.task(name="t.grows", bind=True, max_attempts=3)
        def grows(self: Any) -> None:
            self.retry(countdown=2, requires="gpu")

        agent = MockAgent("general", sleep=frozen_clock.sleep_async)

        with pytest.raises(TaskWaitsError, match="lacks gpu"):
            execute(agent, grows.s())
        assert [2] == [attempt.wait_seconds for attempt in agent.attempts]


@pytest.fixture
def fleet(redis_url: str) -> Iterator[Any]:
    """Give an app with a real agent."""
    with app_at(redis_url) as app:
        declare_tasks(app)
        with agent_of(app):
            yield app


class TestBesideARealAgent:
    @pytest.mark.parametrize(
        ("task", "errors"),
        [
            ("t.strict", []),
            ("t.strict", [ConnectionError("a"), RetryableError("b", retry_after=0)]),
            ("t.strict", [ConnectionError("a")] * 3),
            ("t.strict", [KeyError("a")]),
            ("t.loose", [ConnectionError("a")]),
            ("t.listed", [KeyError("a"), TimeoutError("b")]),
            ("t.never", [IndexError("a"), KeyError("b")]),
            ("t.auto", [ValueError("a"), ValueError("b")]),
            ("t.hand", []),
            ("t.hand_out", []),
        ],
    )
    def test_does_the_same(self, fleet: Any, task: str, errors: list[Exception]) -> None:
        """Result or error, and the number of attempts, are a real agent's."""
        call = fleet.tasks[task].s()
        mock = MockAgent("general", sleep=FrozenClock().sleep_async)

        FAILURES.set(*errors)
        result = call.delay()
        expected = _ending(lambda: result.get(timeout=10))
        FAILURES.set(*errors)

        assert expected == _ending(lambda: execute(mock, call))
        record = fleet.state.read(result.id)
        assert record.attempt == len(mock.attempts)
        assert (record.state is TaskState.SUCCEEDED) is isinstance(mock.attempts[-1].outcome, Succeeded)


def _ending(run: Callable[[], Any]) -> tuple[str, str]:
    """Return what a call returned or raised."""
    try:
        return "returned", repr(run())
    except Exception as error:  # noqa: BLE001  # whatever the task raises
        return type(error).__name__, str(error).partition("[")[0]
