"""Scenarios, and what becomes of them."""

import asyncio
from typing import Any

import pytest

from orchestra.capabilities import Requirement
from orchestra.exceptions import Backoff, PermanentError, RetryableError, ValidationError
from orchestra.frozen_clock import FrozenClock
from orchestra.mock_agents import MockAgent
from orchestra.mock_tasks import MockTask, submit
from orchestra.private_app import PrivateApp
from orchestra.scenario_report import ScenarioReport
from orchestra.scenarios import ScenarioHarness, create_test_scenario

STEADY = Backoff(base_seconds=1, jitter="none")


def harness_of(*capabilities: str, tasks: Any = (), **options: Any) -> ScenarioHarness:
    """Give a harness with one agent for each text, named by it."""
    agents = [MockAgent(can, processing_delay=1, name=can, **options) for can in capabilities]
    return ScenarioHarness("rush", agents, tasks)


class TestCreateTestScenario:
    def test_has_what_was_asked_for(self) -> None:
        """As many agents and tasks as were asked for, with that rate of failure, named after the scenario."""
        harness = create_test_scenario("load_test", num_agents=5, num_tasks=20, agent_failure_rate=0.05)

        assert [f"agent-{number}@load_test" for number in range(1, 6)] == [one.name for one in harness.mock_agents]
        assert [f"load_test-{number}" for number in range(1, 21)] == [one.id for one in harness.submitted_tasks]
        assert {0.05} == {agent.failure_rate for agent in harness.mock_agents}

    @pytest.mark.parametrize("num_agents", [2, 3, 5, 8])
    def test_routing_matters(self, num_agents: int) -> None:
        """Agents differ, and each task is for some of them, but seldom for all."""
        harness = create_test_scenario(num_agents=num_agents, num_tasks=40)
        takers = [
            [agent.name for agent in harness.mock_agents if agent.missing(task) == ()]
            for task in harness.submitted_tasks
        ]

        assert min(5, num_agents) == len({str(agent.capabilities) for agent in harness.mock_agents})
        assert all(takers)
        assert sum(len(each) == num_agents for each in takers) < 10
        assert len({task.requires for task in harness.submitted_tasks}) >= 4

    def test_everything_runs_by_itself(self) -> None:
        """Left to its defaults a scenario's tasks all succeed, each on an agent that satisfies it."""
        harness = create_test_scenario("load_test", num_agents=5, num_tasks=30)
        report = harness.run_sync()
        can = {agent.name: agent.capabilities for agent in harness.mock_agents}

        assert (30, 0, 0, 0) == (len(report.succeeded), len(report.dead), len(report.waiting), report.retries)
        assert [*range(1, 31)] == [run.value for run in report.runs]
        for run in report.runs:
            assert Requirement.parse(str(run.task.requires)).satisfied_by(can[run.agents[0]])

    def test_the_same_seed_is_the_same_run(self) -> None:
        """Tasks, failures, waits, agents and times repeat with the seed, which is the scenario's name by default."""

        def run(**options: Any) -> ScenarioReport:
            return create_test_scenario("rush", 4, 30, 0.5, **options).run_sync()

        first = run()
        assert first.retries > 5
        assert (first.elapsed_seconds, first.by_agent) == (run().elapsed_seconds, run(seed="rush").by_agent)
        assert [one.waits for one in first.runs] == [one.waits for one in run().runs]
        assert first.by_agent != run(seed=1).by_agent

    def test_own_agents_and_tasks(self) -> None:
        """What is given is used in turn; tasks may be real ones."""
        app: Any = PrivateApp("redis://127.0.0.1:1/0")

        @app.task(name="t.double", requires="nlp")
        def double(number: int) -> int:
            return 2 * number

        report = create_test_scenario(
            "own",
            3,
            4,
            capabilities=["nlp", ["gpu", "mem_gb=64"]],
            tasks=[double.s(4), MockTask(requires="mem_gb>=16")],
        ).run_sync()

        assert ["t.double", "mock.task"] * 2 == [run.task.name for run in report.succeeded]
        assert [8, None] * 2 == [run.value for run in report.succeeded]
        assert ["own-2", "own-4"] == report.by_agent["agent-2@own"]

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"num_agents": 0}, "num_agents=0 makes no sense: a scenario has at least one"),
            ({"num_tasks": -1}, "num_tasks=-1"),
            ({"agent_failure_rate": 1.5}, "failure_rate=1.5"),
            ({"processing_delay": -1}, "processing_delay=-1"),
            ({"capabilities": "nlp,gpu"}, "lists with at least one entry"),
            ({"capabilities": []}, "lists with at least one entry"),
            ({"tasks": []}, "lists with at least one entry"),
            ({"capabilities": ["GPU!"]}, "'GPU!' is no capability"),
        ],
    )
    def test_options_that_make_no_sense(self, options: dict[str, Any], problem: str) -> None:
        """A scenario that can't be meant isn't made."""
        with pytest.raises(ValidationError, match=problem):
            create_test_scenario(**options)


class TestRun:
    def test_what_no_agent_takes_waits(self) -> None:
        """The report says what each agent lacks; once an agent can, the next run goes on."""
        harness = harness_of("nlp", "gpu", tasks=[MockTask(requires="nlp"), MockTask(requires="gpu,mem_gb>=16")])

        report = harness.run_sync()

        assert "rush: 2 tasks, 2 agents: 1 succeeded, 0 dead, 1 waiting; 0 retries; 1.0 s" == str(report)
        assert [{"nlp": ("gpu", "mem_gb>=16"), "gpu": ("mem_gb>=16",)}] == [one.missing for one in report.waiting]
        assert (None, None, ()) == (report.waiting[0].value, report.waiting[0].error, report.waiting[0].agents)
        harness.mock_agents.append(MockAgent("gpu,mem_gb=16", name="big"))
        report = harness.run_sync()
        assert ((), ["rush-2"]) == (report.waiting, report.by_agent["big"])
        assert {} == report.runs[1].missing

    def test_more_may_be_submitted(self) -> None:
        """A later run goes on where the first one ended, and its report tells of both."""
        harness = harness_of("nlp")
        assert () == harness.run_sync().runs

        harness.submit(MockTask(requires="nlp"))
        harness.run_sync()
        again = harness.submit(harness.submitted_tasks[0])

        assert "rush-2" == again.id
        assert 2 == len(harness.run_sync().succeeded) == harness.report().elapsed_seconds

    def test_the_urgent_come_first(self) -> None:
        """An agent takes the most urgent of what waits, and among equals what came first."""
        order: list[str] = []
        tasks = [
            MockTask(args=(name,), run=order.append, urgency=urgency)
            for name, urgency in [("a", None), ("b", "low"), ("c", "critical"), ("d", "high"), ("e", "critical")]
        ]

        harness_of("general", tasks=tasks).run_sync()

        assert ["c", "e", "d", "a", "b"] == order

    def test_agents_work_side_by_side(self) -> None:
        """Tasks are spread over those who are idle, and time passes for all of them together."""
        harness = ScenarioHarness("rush", [MockAgent(processing_delay=1, name=name) for name in "abc"])
        for _ in range(7):
            harness.submit(MockTask())

        report = harness.run_sync()

        assert [3, 2, 2] == [len(ids) for ids in report.by_agent.values()]
        assert 3 == report.elapsed_seconds

    def test_a_retry_may_land_elsewhere(self) -> None:
        """A task that failed goes back to its queue, waits as its policy says, and is anybody's who satisfies it."""
        harness = ScenarioHarness(
            "rush",
            [
                MockAgent("gpu", failure_rate=1, processing_delay=1, name="broken"),
                MockAgent("gpu", processing_delay=2, name="sound"),
            ],
            [MockTask(requires="gpu", max_attempts=5, backoff=STEADY)],
        )

        (run,) = harness.run_sync().succeeded

        assert (("broken", "sound"), (1,)) == (run.agents, run.waits)
        assert 4 == harness.report().elapsed_seconds

    def test_the_dead_and_why(self) -> None:
        """A task whose attempts are used up, or whose error is permanent, is dead, with its last error."""
        unlucky = MockTask("t.unlucky", run=_raise, args=("RetryableError",), max_attempts=2, backoff=STEADY)
        wrong = MockTask("t.wrong", run=_raise, args=("PermanentError",), max_attempts=2)

        report = harness_of("general", tasks=[unlucky, wrong]).run_sync()

        assert [(RetryableError, 2), (PermanentError, 1)] == [
            (type(run.error), len(run.attempts)) for run in report.dead
        ]
        assert [False, False] == [run.succeeded or run.waiting for run in report.dead]
        assert 1 == report.retries

    def test_a_retry_that_nobody_takes(self) -> None:
        """A task that raises its requirement on the way waits for it, with the attempts that it had."""
        app: Any = PrivateApp("memory://")

        @app.task(name="t.grows", bind=True, max_attempts=3)
        def grows(self: Any) -> None:
            self.retry(countdown=2, requires="gpu")

        (run,) = harness_of("general", tasks=[grows.s()]).run_sync().waiting

        assert (1, {"general": ("gpu",)}) == (len(run.attempts), run.missing)

    def test_time_is_given_from_outside(self, frozen_clock: FrozenClock) -> None:
        """The harness passes time by one sleep, which may be anybody's."""
        harness = create_test_scenario(num_agents=1, num_tasks=4, processing_delay=30, sleep=frozen_clock.sleep_async)

        report = asyncio.run(harness.run())

        assert 120 == report.elapsed_seconds == frozen_clock.elapsed_seconds

    def test_a_fleet_that_cannot_run(self) -> None:
        """Without an agent, or with two of one name, a report would mean nothing."""
        with pytest.raises(ValidationError, match="Scenario rush can't run: it has no agent"):
            harness_of(tasks=[MockTask()]).run_sync()
        with pytest.raises(ValidationError, match="several agents are named 'nlp'"):
            harness_of("nlp", "gpu", "nlp").run_sync()

    def test_calls_that_no_sender_would_send(self) -> None:
        """A scenario's tasks are checked when they are submitted."""
        with pytest.raises(ValidationError, match="is no task"):
            harness_of("nlp").submit(7)  # type: ignore[arg-type]  # wrong on purpose

    def test_queues_of_the_project_wait(self) -> None:
        """What the project routed itself is for other agents than these."""
        app: Any = PrivateApp("memory://", changes={"task_routes": {"t.mine": "mine"}})

        @app.task(name="t.mine")
        def mine() -> None: ...

        (run,) = harness_of("general", tasks=[submit(mine.s(), task_id="1")]).run_sync().waiting

        assert {"general": None} == run.missing


def _raise(kind: str) -> None:
    raise {"RetryableError": RetryableError, "PermanentError": PermanentError}[kind](kind)
