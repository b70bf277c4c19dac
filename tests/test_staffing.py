"""Who takes a queue's tasks, what keeps the others from it, and how long that takes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.capabilities import GENERAL, Requirement
from orchestra.explanations import CauseKind, Subject
from orchestra.facts import AgentFacts, BreakerFacts, Facts
from orchestra.staffing import causes_of_queue, estimated_wait, fits_of
from tests.cases import agent, ago, facts

LOST: dict[str, Any] = {"alive": False, "seen_at": ago(540), "name": "lost@a"}
STOPPED: dict[str, Any] = {"alive": False, "stopped": True, "seen_at": ago(60), "name": "stopped@a"}


def kinds(known: Facts) -> list[CauseKind]:
    """Return the kinds of the causes, in order."""
    return [cause.kind for cause in causes_of_queue(known, fits_of(known))]


class TestCauses:
    @pytest.mark.parametrize(
        ("agents", "expected"),
        [
            ([], ["no_agent_alive"]),
            ([agent(**STOPPED), agent(**LOST)], ["no_agent_alive", "capable_agent_lost", "capable_agent_stopped"]),
            ([agent(can="gpu", queues=())], ["no_agent_satisfies"]),
            ([agent(can="gpu", queues=()), agent(**LOST)], ["capable_agent_lost", "no_agent_satisfies"]),
            ([agent(can="gpu", queues=()), agent(**STOPPED)], ["capable_agent_stopped", "no_agent_satisfies"]),
            ([agent(tasks=frozenset())], ["task_not_known"]),
            ([agent(tasks=frozenset()), agent(**LOST)], ["task_not_known", "capable_agent_lost"]),
            ([agent(draining=True, queues=())], ["all_draining"]),
            ([agent(queues=())], ["not_served"]),
            ([agent(running=2)], ["all_busy"]),
            ([agent(running=1)], ["about_to_start"]),
            ([agent(running=2), agent("b", draining=True), agent("c", tasks=frozenset())], ["all_busy"]),
            ([agent(running=2), agent("b")], ["about_to_start"]),
        ],
    )
    def test_of_one_fleet_after_another(self, agents: list[AgentFacts], expected: list[str]) -> None:
        """The first cause is what keeps the agent that is nearest to taking the task."""
        assert expected == kinds(facts(*agents))

    def test_lost_agents_that_would_not_do(self) -> None:
        """A lost agent that lacks something, or doesn't know the task, is no help when it returns."""
        others = agent(can="gpu", **LOST), agent(tasks=frozenset(), **LOST)

        assert [CauseKind.NO_AGENT_ALIVE] == kinds(facts(*others))

    def test_the_latest_is_told(self) -> None:
        """Of several lost agents the one is named that was seen last."""
        older = agent(**{**LOST, "name": "older@a", "seen_at": ago(9000)})
        known = facts(older, agent(**LOST), agent("b", can="gpu", queues=()))

        cause = causes_of_queue(known, fits_of(known))[0]

        assert ("lost@a",) == cause.agents
        assert "An agent that could run it, lost@a, was last seen 9 min ago." == cause.text

    def test_handed_on(self) -> None:
        """In the queue for one task the reason is that it was handed on, until an agent knows it."""
        queue = {"queue": "shop:nlp@shop.index", "handed_on": True}

        assert [CauseKind.HANDED_ON] == kinds(facts(agent(tasks=frozenset()), **queue))
        assert [CauseKind.ALL_BUSY] == kinds(facts(agent(queues=("shop:nlp@shop.index",), running=2), **queue))

    def test_a_queue_that_is_not_ours(self) -> None:
        """Nothing is asked there but that an agent serves it."""
        queue: dict[str, Any] = {"queue": "reports", "requirement": None}

        assert [CauseKind.FOREIGN_QUEUE] == kinds(facts(agent(), **queue))
        assert [CauseKind.ABOUT_TO_START] == kinds(facts(agent(can="", queues=("reports",)), **queue))

    def test_chosen_queues(self) -> None:
        """An agent of -Q alone serves what that names, whatever it can; and general work asks nothing of it."""
        chosen = agent(can="", chosen_queues=True)

        assert [CauseKind.ABOUT_TO_START] == kinds(facts(chosen))
        assert [CauseKind.NO_AGENT_SATISFIES] == kinds(
            facts(chosen, requirement=Requirement.parse("gpu"), queue="shop:gpu")
        )
        assert [CauseKind.NOT_SERVED] == kinds(facts(chosen, requirement=GENERAL, queue="celery"))

    def test_paused(self) -> None:
        """An open breaker comes first, with what else is in the way behind it."""
        breaker = BreakerFacts("printer", ago(-30))

        assert [CauseKind.PAUSED_BY_BREAKER, CauseKind.ALL_BUSY] == kinds(facts(agent(running=2), breaker=breaker))
        assert [CauseKind.PAUSED_BY_BREAKER, CauseKind.NO_AGENT_ALIVE] == kinds(facts(breaker=breaker))

    @given(
        st.lists(
            st.builds(
                lambda number, can, knows, serves, running, draining, alive: agent(
                    f"a{number}",
                    can,
                    tasks=frozenset({"shop.index"} if knows else ()),
                    queues=("shop:nlp",) if serves else (),
                    running=running,
                    draining=draining,
                    alive=alive,
                    mean_seconds=None if running == 2 else 1.0,
                ),
                st.integers(0, 9),
                st.sampled_from(["nlp", "gpu", "nlp,gpu"]),
                st.booleans(),
                st.booleans(),
                st.integers(0, 2),
                st.booleans(),
                st.booleans(),
            ),
            max_size=6,
            unique_by=lambda one: one.name,
        )
    )
    def test_any_fleet(self, agents: list[AgentFacts]) -> None:
        """There is always a first cause; it's one of time alone if and only if a live agent takes the task."""
        known = facts(*agents)
        fits = fits_of(known)

        first = causes_of_queue(known, fits)[0]

        takers = [fit for fit in fits if fit.takes]
        assert bool(takers) == (first.kind in {CauseKind.ALL_BUSY, CauseKind.ABOUT_TO_START})
        assert (first.kind is CauseKind.ABOUT_TO_START) == any(fit.running < fit.slots for fit in takers)
        wait = estimated_wait(known, fits, 3)
        assert wait is None or (takers and wait.seconds >= 0)


class TestFits:
    def test_the_nearest_comes_first(self) -> None:
        """Live agents by how little they lack, then those that are gone and would do."""
        known = facts(
            agent("far", "cpu", queues=()),
            agent("full", running=2),
            agent("free"),
            agent("new", tasks=frozenset()),
            agent(**LOST),
            agent("worse", "cpu", alive=False),
            requirement=Requirement.parse("nlp"),
        )

        fits = fits_of(known)

        assert ["free", "full", "new", "far", "lost@a"] == [fit.name for fit in fits]
        assert [(), (), (), ("nlp",), ()] == [fit.lacks for fit in fits]
        assert [True, True, False, False, False] == [fit.takes for fit in fits]

    def test_without_a_task(self) -> None:
        """Where no task is asked about, nobody has to know it."""
        known = facts(agent(tasks=frozenset()), task=None, subject=Subject.REQUIREMENT)

        assert [None] == [fit.knows_task for fit in fits_of(known)]
        assert [CauseKind.ABOUT_TO_START] == kinds(known)


class TestEstimatedWait:
    def test_by_place_and_pace(self) -> None:
        """It's the place over the processes, times what a task takes there; the larger agents count more."""
        known = facts(agent("a", running=2, mean_seconds=1.0), agent("b", running=6, slots=6, mean_seconds=2.0))

        wait = estimated_wait(known, fits_of(known), 16)

        assert wait is not None
        assert 16 / 8 * 1.75 == wait.seconds
        assert "16th of 16, 2 agents with 8 processes, 1.8 s a task" == wait.basis

    def test_free_processes(self) -> None:
        """With a free process for each that is before it, there's nothing to wait for."""
        known = facts(agent(slots=5, running=2))

        assert [0.0, 0.0, 4 / 5 * 1.5] == [
            wait.seconds for place in (1, 3, 4) if (wait := estimated_wait(known, fits_of(known), place)) is not None
        ]

    @pytest.mark.parametrize(
        ("known", "place"),
        [
            (facts(), 1),
            (facts(agent(running=2, mean_seconds=None)), 1),
            (facts(agent(tasks=frozenset())), 1),
            (facts(agent()), None),
            (facts(agent(), breaker=BreakerFacts("printer")), 1),
        ],
    )
    def test_nothing_to_reckon_with(self, known: Facts, place: int | None) -> None:
        """Nobody takes it, nobody knows how long tasks take, or the place isn't known: there's no estimate."""
        assert estimated_wait(known, fits_of(known), place) is None
