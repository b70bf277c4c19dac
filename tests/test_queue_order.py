"""The order in which an agent looks into its queues."""

import pytest

from orchestra.queue_order import FAIR_EVERY, ScarceSkillFirst

QUEUES = ("celery", "shop:nlp", "shop:gpu+mem_gb~ge~16", "shop:gpu")
BY_DEMAND = ["shop:gpu+mem_gb~ge~16", "shop:nlp", "shop:gpu", "celery"]


def served(cycle: ScarceSkillFirst, queue: str, looks: int = 1) -> list[bool]:
    """Let looks bring something of one queue; return which of them were fair."""
    fair = []
    for _ in range(looks):
        cycle.consume(len(QUEUES))
        fair.append(cycle.fair)
        cycle.rotate(queue)
    return fair


class TestOrder:
    def test_demanding_queues_come_first(self) -> None:
        """An agent does the work that only it can do before work that others could do as well."""
        assert BY_DEMAND == ScarceSkillFirst(QUEUES).consume(4)

    def test_equals_come_by_turns(self) -> None:
        """Among queues that ask for as much, the one that was served longest ago comes first."""
        cycle = ScarceSkillFirst(QUEUES)
        served(cycle, "shop:nlp")

        assert ["shop:gpu+mem_gb~ge~16", "shop:gpu", "shop:nlp", "celery"] == cycle.consume(4)

    def test_no_queue(self) -> None:
        """There may be nothing to look into."""
        assert [] == ScarceSkillFirst().consume(3)

    def test_other_queues(self) -> None:
        """An agent's queues change while it runs."""
        cycle = ScarceSkillFirst(QUEUES)
        cycle.update(["celery", "shop:tpu"])

        assert ["shop:tpu", "celery"] == cycle.consume(2)


class TestFairLooks:
    def test_one_in_eight(self) -> None:
        """Of eight looks that bring something, one is fair."""
        fair = served(ScarceSkillFirst(QUEUES), "shop:gpu", 4 * FAIR_EVERY)

        assert [*[False] * (FAIR_EVERY - 1), True] * 4 == fair

    def test_looks_that_bring_nothing_do_not_count(self) -> None:
        """An idle agent doesn't come to a fair look by waiting, so what comes then is taken in the usual order."""
        cycle = ScarceSkillFirst(QUEUES)
        for _ in range(100):
            cycle.consume(4)
            assert not cycle.fair

    def test_begins_with_what_was_served_longest_ago(self) -> None:
        """However much the flood of one queue brings, every other one is the first of a fair look in its turn."""
        cycle = ScarceSkillFirst(QUEUES)
        firsts = []
        for _ in range(4 * FAIR_EVERY):
            order = cycle.consume(4)
            if cycle.fair:
                firsts.append(order[0])
            cycle.rotate(order[0])

        assert {"celery", "shop:nlp", "shop:gpu"} <= set(firsts)


class TestLesser:
    @pytest.mark.parametrize(
        ("queues", "lesser"),
        [
            (QUEUES, {"celery", "shop:nlp", "shop:gpu"}),
            (["shop:nlp", "shop:gpu"], set()),
            (["celery"], set()),
            ([], set()),
            (["celery", "shop:not~spot"], {"celery"}),
        ],
    )
    def test_those_that_ask_for_less_than_another(self, queues: list[str], lesser: set[str]) -> None:
        """Work stands back where the agent serves a queue that asks for more."""
        assert lesser == ScarceSkillFirst(queues).lesser
