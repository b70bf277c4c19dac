"""An explanation in words: what a person reads, in the order in which it helps."""

import re
from typing import Any

from orchestra.capabilities import Requirement
from orchestra.explanations import CauseKind, Explanation, Subject
from orchestra.facts import Buried
from orchestra.reasons import explain
from orchestra.types import TaskState
from tests.cases import agent, ago, facts, record
from tests.docs_pages import PAGES, ROOT

DEMANDING = Requirement.parse("gpu,mem_gb>=40")
TRAIN: dict[str, Any] = {
    "task": "train.finetune",
    "record": record(task_id="7c9e6679", name="train.finetune"),
    "about": "7c9e6679",
    "queue": "train:gpu+mem_gb~ge~40",
    "requirement": DEMANDING,
}


class TestLines:
    def test_nobody_can(self) -> None:
        """What each agent lacks stands below the finding, and behind it who could once."""
        known = {"tasks": frozenset({"train.finetune"}), "queues": ()}
        agents = [
            agent("big@a", "gpu,mem_gb=24", **known),
            agent("text@b", "nlp", **known),
            agent("huge@c", "gpu,mem_gb=80", **known, alive=False, seen_at=ago(545)),
        ]

        assert [
            "train.finetune 7c9e6679 is queued in train:gpu+mem_gb~ge~40, 3rd of 3, for 2 min 10 s.",
            "No live agent can run it.",
            "  big@a   has gpu, mem_gb=24  lacks mem_gb>=40",
            "  text@b  has nlp             lacks gpu, mem_gb>=40",
            "An agent that could run it, huge@c, was last seen 9 min 5 s ago.",
        ] == explain(facts(*agents, **TRAIN)).lines()

    def test_a_matter_of_time(self) -> None:
        """What each agent does, and how long it takes with what that is reckoned from."""
        agents = [
            agent("a", running=2),
            agent("b", running=2, draining=True),
            agent("c", "nlp,gpu", queues=()),
            agent("d", "", tasks=frozenset()),
        ]

        assert [
            "shop.index 1 is queued in shop:nlp, 3rd of 3, for 2 min 10 s.",
            "The agent that can run it is busy: 2 tasks on 2 processes.",
            "  a  has nlp            runs 2 of 2",
            "  c  has gpu, nlp       doesn't serve shop:nlp",
            "  b  has nlp            is being drained",
            "  d  has nothing named  doesn't know shop.index",
            "Estimated wait: about 2.2 s (3rd of 3, 1 agent with 2 processes, 1.5 s a task).",
        ] == str(explain(facts(*agents))).splitlines()

    def test_a_free_process(self) -> None:
        """Where nothing is in the way, that is said."""
        lines = explain(facts(agent(slots=4, running=1))).lines()

        assert "text@a has a free process and can take it." == lines[1]
        assert "Estimated wait: none (1 agent with 4 processes, 3 of them free)." == lines[-1]

    def test_many_agents(self) -> None:
        """Of a thousand agents the nearest are written out."""
        agents = [agent(f"a{number:04}", "gpu" if number == 500 else "nlp", queues=()) for number in range(1000)]

        lines = explain(facts(*agents, **{**TRAIN, "task": "shop.index"})).lines()

        assert "  a0500  has gpu  lacks mem_gb>=40" == lines[2]
        assert "  and 990 other agents" == lines[-1]
        assert 1 + 1 + 10 + 1 == len(lines)

    def test_what_has_ended(self) -> None:
        """It's told since when, and no agents are."""
        failed = record(TaskState.FAILED, error="KeyError: 1", agent="text@a")
        dead = record(TaskState.FAILED, error="NotRegistered: shop.index")

        assert ["shop.index 1 failed 2 min 10 s ago.", "It failed on text@a: KeyError: 1"] == explain(
            facts(agent(), record=failed, place=None)
        ).lines()
        assert [
            "shop.index 1 failed 2 min 10 s ago.",
            "Its message is among the dead letters: unregistered.",
            "It failed: NotRegistered: shop.index",
        ] == explain(facts(record=dead, place=Buried("unregistered"))).lines()

    def test_headlines(self) -> None:
        """Each subject begins in its own way."""
        new: dict[str, Any] = {"record": None, "place": None}
        nothing: dict[str, Any] = {**new, "queue": None, "depth": None}

        assert [
            "shop.index requires nlp and goes to shop:nlp, in which 1 task waits.",
            "What requires nlp goes to shop:nlp, in which 3 tasks wait.",
            "nope is unknown.",
        ] == [
            _first(explain(one))
            for one in (
                facts(**{**new, "about": "shop.index", "subject": Subject.TASK_TYPE, "depth": 1}),
                facts(**{**new, "about": "nlp", "subject": Subject.REQUIREMENT, "task": None}),
                facts(**{**nothing, "about": "nope", "subject": Subject.UNKNOWN}),
            )
        ]


class TestKinds:
    def test_the_page_has_them_all(self) -> None:
        """What each cause means, and what to do about it, stands on the page about explanations."""
        page = PAGES["docs/explain.md"].read_text(encoding="utf-8")
        told = [
            kind for row in re.findall(r"^\| (`.*?) \| ", page, re.MULTILINE) for kind in re.findall(r"`(\w+)`", row)
        ]

        assert sorted(CauseKind) == sorted(told)

    def test_a_live_test_has_them_all(self) -> None:
        """Each is brought about by acting on processes and on Redis, but for the one that nothing brings about yet."""
        live = (ROOT / "tests/integration/test_explain_live.py").read_text(encoding="utf-8")
        brought_about = set(re.findall(r"why\([^\n]*CauseKind\.(\w+)\)", live))

        assert {kind.name for kind in CauseKind} - {"PAUSED_BY_BREAKER"} == brought_about


def _first(found: Explanation) -> str:
    return found.lines()[0]
