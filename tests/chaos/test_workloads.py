"""What is published during a fault follows from the seed, and is what the figures say."""

from random import Random

import pytest

from tests.chaos.producer import _expected
from tests.chaos.workloads import WORKLOADS, Canvas, Item, Workload


def workload(name: str, *, tasks: int = 200, seed: int = 1) -> Workload:
    """Make a workload as a run does."""
    return WORKLOADS[name](tasks, 50.0, Random(seed))


def items_of(made: Workload) -> list[Item]:
    """Return every task of a workload."""
    return [item for one in made.items for item in (one.items if isinstance(one, Canvas) else (one,))]


@pytest.mark.parametrize("name", WORKLOADS)
def test_follows_from_the_seed(name: str) -> None:
    """The same seed makes the same tasks, each with a number of its own; another one makes others."""
    items = items_of(workload(name))

    assert items == items_of(workload(name))
    assert items != items_of(workload(name, seed=2))
    assert len(items) == len({item.number for item in items})


def test_chords_and_chains() -> None:
    """All tasks are members of two chords, and twenty chains of twenty steps come besides."""
    made = workload("canvases", tasks=2000)
    shapes = [(one.shape, len(one.items)) for one in made.items if isinstance(one, Canvas)]

    assert [("chord", 1001), *[("chain", 20)] * 20, ("chord", 1001)] == shapes
    assert 2 + 20 * 19 == sum(item.follows for item in items_of(made))


def test_what_is_expected_of_them() -> None:
    """A chord's body returns the sum of its members' numbers, and a chain's last step how many there were."""
    three = tuple(Item(number, 0.0) for number in (4, 5, 6))

    assert [4, 5, 4 + 5] == _expected(Canvas("chord", three))
    assert [1, 2, 3] == _expected(Canvas("chain", three))
    assert [4] == _expected(three[0])


def test_a_soak_has_some_of_each() -> None:
    """Of each hundred ten are members of a chord, one takes seconds, and some are delayed."""
    made = workload("soak", tasks=1000)
    items = items_of(made)

    assert 1000 == len(items)
    assert (10, 10) == (sum(isinstance(one, Canvas) for one in made.items), sum(item.seconds == 3 for item in items))
    assert 50 < sum(item.due is not None for item in items) < 150


def test_poison_is_rare() -> None:
    """There are two tasks for each deed."""
    deeds = [item.deed for item in items_of(workload("poison")) if item.deed]

    assert 2 * len(set(deeds)) == len(deeds) >= 10
