"""Policies for what nobody can run are read strictly, and a fleet's agents are judged by what they were seen to be."""

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.capabilities import CapabilitySet, Requirement
from orchestra.exceptions import NoCapableAgentError, RetryableError, ValidationError
from orchestra.unroutable import (
    WAIT,
    DeadLetterAfter,
    Fallback,
    FleetView,
    Raise,
    SeenAgent,
    UnroutablePolicy,
    no_capable_agent,
    parse_policy,
    text_of_policy,
)

NOW = 1_000_000.0
TRAIN = Requirement.parse("gpu,mem_gb>=40")
QUEUE = "shop:gpu+mem_gb~ge~40"


def seen(
    name: str,
    capabilities: str | None = "",
    *,
    queues: tuple[str, ...] = (),
    tasks: tuple[str, ...] = ("shop.train",),
    alive: bool = True,
    ago: float = 0.0,
) -> SeenAgent:
    """Return an agent as it was seen so many seconds ago."""
    can = None if capabilities is None else CapabilitySet.parse(capabilities)
    return SeenAgent(
        name=name, capabilities=can, queues=frozenset(queues), tasks=frozenset(tasks), alive=alive, seen_at=NOW - ago
    )


def view(*agents: SeenAgent) -> FleetView:
    """Return a view of these agents."""
    return FleetView(agents, NOW)


class TestParse:
    @pytest.mark.parametrize(
        ("text", "policy", "canonical"),
        [
            ("wait", WAIT, "wait"),
            ("Raise", Raise(), "raise"),
            (" raise ", Raise(), "raise"),
            ("fallback:cpu", Fallback(Requirement.parse("cpu")), "fallback:cpu"),
            ("fallback: mem_gb>=016, cpu", Fallback(Requirement.parse("cpu,mem_gb>=16")), "fallback:cpu,mem_gb>=16"),
            ("dead_letter_after:60", DeadLetterAfter(60.0), "dead_letter_after:60"),
            ("dead_letter_after: 1.50", DeadLetterAfter(1.5), "dead_letter_after:1.5"),
            ("dead_letter_after:86400", DeadLetterAfter(86400.0), "dead_letter_after:86400"),
        ],
    )
    def test_every_policy_has_one_text(self, text: str, policy: UnroutablePolicy, canonical: str) -> None:
        """A policy is read from its text, in upper or lower case, and written in one form."""
        assert policy == parse_policy(text)
        assert canonical == text_of_policy(policy)

    @given(
        st.sampled_from(["gpu", "!spot", "mem_gb>=16,gpu", "cuda>=v12,<v13"]).map(
            lambda text: Fallback(Requirement.parse(text))
        )
        | st.floats(1, 86_400).map(DeadLetterAfter)
    )
    def test_the_text_reads_back(self, policy: UnroutablePolicy) -> None:
        """Whatever is written reads back as the same policy, which a policy that was read already is, too."""
        assert policy == parse_policy(text_of_policy(policy)) == parse_policy(policy)

    @pytest.mark.parametrize(
        "value",
        [
            *("", "drop", "wait:3", "raise:now", "fallback", "fallback:", "fallback:gpu,,cpu", "fallback:GPU"),
            *("dead_letter_after", "dead_letter_after:", "dead_letter_after:soon", "dead_letter_after:0"),
            *("dead_letter_after:nan", "dead_letter_after:inf", "dead_letter_after:-5", "dead_letter_after:86401"),
            *(3, True, ["raise"], object()),
        ],
    )
    def test_nonsense_is_refused(self, value: Any) -> None:
        """What is no policy is refused with what was given and all that is allowed."""
        with pytest.raises(ValidationError) as caught:
            parse_policy(value)

        for words in ("on_unroutable=", "'wait', 'raise', 'fallback:'", "'dead_letter_after:'", "1 to 86400"):
            assert words in str(caught.value)
        assert "on_unroutable" == caught.value.errors[0].field


class TestWhoCanRun:
    @pytest.mark.parametrize(
        ("agent", "able"),
        [
            (seen("a", "gpu,mem_gb=64"), True),
            (seen("a", "gpu,mem_gb=24"), False),
            (seen("a", "gpu,mem_gb=64", tasks=("shop.index",)), False),
            (seen("a", None, queues=(QUEUE,)), True),
            (seen("a", None, queues=("shop:gpu",)), False),
            (seen("a", "nlp", queues=(QUEUE,)), True),
        ],
    )
    def test_by_capabilities_or_queue_and_by_the_task(self, agent: SeenAgent, able: bool) -> None:
        """An agent can run what it satisfies, or what it serves by -Q, if it knows the task."""
        assert able == view(agent).can_run(TRAIN, QUEUE, "shop.train")

    def test_a_worker_with_queues_alone_satisfies_nothing(self) -> None:
        """A worker with -Q has no capabilities, and doesn't serve what only excludes something either."""
        assert not view(seen("a", None)).can_run(Requirement.parse("!spot"), "shop:not~spot")
        assert view(seen("a", "general")).can_run(Requirement.parse("!spot"), "shop:not~spot")

    def test_those_that_are_gone_count_for_a_while(self) -> None:
        """A view within some seconds has the live agents, and those that were seen since."""
        fleet = view(seen("old", alive=False, ago=90), seen("late", alive=False, ago=30), seen("quiet", ago=4))

        assert ["late", "quiet"] == [one.name for one in fleet.within(60).agents]
        assert ["quiet"] == [one.name for one in fleet.within(0).agents]

    @pytest.mark.parametrize(
        ("agents", "at"),
        [
            ([], -inf),
            ([seen("a", "gpu,mem_gb=64", alive=False, ago=70), seen("b", "nlp")], NOW - 70),
            ([seen("a", "gpu,mem_gb=64", alive=False, ago=70), seen("b", "gpu,mem_gb=80", ago=2)], NOW),
            ([seen("a", "gpu,mem_gb=64", tasks=())], -inf),
        ],
    )
    def test_when_one_was_seen_last(self, agents: list[SeenAgent], at: float) -> None:
        """An agent that lives is able now; of those that are gone the last one counts."""
        assert at == view(*agents).last_able_at(TRAIN, QUEUE, "shop.train")


def error(*agents: SeenAgent) -> NoCapableAgentError:
    """Return the error over a view of these agents."""
    return no_capable_agent(
        view(*agents), "shop.train", TRAIN, QUEUE, what="shop.train was not submitted", advice="Ask."
    )


class TestError:
    def test_names_the_nearest_and_what_they_lack(self) -> None:
        """The message tells of three agents, the nearest first, with the terms that each fails, and of how many."""
        raised = error(seen("text@b", "nlp"), seen("big@a", "gpu,mem_gb=24"), seen("x@c"), seen("y@d"))

        assert (
            "shop.train was not submitted: no agent that knows it satisfies gpu,mem_gb>=40; 4 agents are known: "
            "big@a lacks mem_gb>=40; text@b lacks gpu, mem_gb>=40; x@c lacks gpu, mem_gb>=40; and 1 more. Ask."
        ) == str(raised)

    def test_an_agent_without_the_task(self) -> None:
        """An agent that could, but doesn't know the task, is told of as such."""
        raised = error(seen("huge@c", "gpu,mem_gb=80", tasks=()))

        assert "1 agent is known: huge@c satisfies it and doesn't know the task" in str(raised)
        assert (("huge@c",), {}) == (raised.unknown_to, raised.missing)

    def test_nobody(self) -> None:
        """Where there is no agent, that is said."""
        assert "gpu,mem_gb>=40; no agent is known. Ask." in str(error())

    def test_evidence(self) -> None:
        """The error carries requirement, task, and for each agent what it lacks; it may pass, so it's retryable."""
        raised = error(seen("text@b", "nlp"), seen("big@a", "gpu,mem_gb=24"))

        assert ("shop.train", "gpu,mem_gb>=40") == (raised.task_type, raised.requirement)
        assert {"big@a": ("mem_gb>=40",), "text@b": ("gpu", "mem_gb>=40")} == raised.missing
        assert ["big@a", "text@b"] == list(raised.missing)
        assert isinstance(raised, RetryableError)
