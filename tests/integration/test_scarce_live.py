"""Scarce skill, live: an agent with a rare skill has its hands free for it, and the rest isn't starved."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.oracle import Execution
from tests.chaos.servers import server_in
from tests.lease_tasks import GENERAL, POOLS, LiveFleet, live_fleet

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

SKILLS = ("--capabilities", "gpu,general")
RARE = 1000  # numbers of tasks from here on need the skill


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str) -> Iterator[LiveFleet]:
    """Give a fleet without agents."""
    with (
        server_in(tmp_path / "redis", append_only=True) as server,
        live_fleet(tmp_path, server, redis_url) as fleet,
    ):
        yield fleet


def _order(runs: list[Execution]) -> list[int]:
    return [run.number for run in sorted(runs, key=lambda run: run.began)]


@pytest.mark.parametrize("pool", POOLS)
def test_scarce_work_is_next(fleet: LiveFleet, pool: str) -> None:
    """However much general work waits, an agent holds none of it but what it runs, so scarce work is next."""
    fleet.start("rare", *SKILLS, pool=pool)
    fleet.joined()
    for number in range(100, 120):  # so that it sees how long general tasks take, of which it would fetch a dozen ahead
        fleet.send(number, 0.02)
    fleet.send(RARE, 0.0, requires="gpu").get(timeout=30)  # which brings the queue
    fleet.ended(*range(100, 120))
    fleet.holds("rare", 0)
    fleet.tell("drain", "rare")
    fleet.send(1, 5.0)
    for number in range(2, 32):
        fleet.send(number, 0.02)
    fleet.tell("resume", "rare")
    fleet.begun(1)

    fleet.waits(GENERAL, 30)
    fleet.send(RARE + 1, 0.0, requires="gpu")

    runs = fleet.ended(*range(1, 32), RARE + 1, seconds=60)
    assert [1, RARE + 1] == _order(runs)[:2]
    assert 32 == len(runs)


@pytest.mark.parametrize("pool", POOLS)
def test_general_work_is_not_starved(fleet: LiveFleet, pool: str) -> None:
    """While a flood of scarce, more urgent work lasts, it goes first, and general work runs now and then."""
    scarce, general = range(RARE + 1, RARE + 201), range(1, 6)
    fleet.start("rare", *SKILLS, pool=pool)
    fleet.joined()
    fleet.send(RARE, 0.0, requires="gpu").get(timeout=30)  # which brings the queue
    fleet.tell("drain", "rare")
    for number in general:
        fleet.send(number, 0.02, urgency="low")
    for number in scarce:
        fleet.send(number, 0.02, requires="gpu", urgency="high")

    fleet.tell("resume", "rare")

    order = _order(fleet.ended(*scarce, *general, seconds=90))
    assert sorted([*scarce, *general]) == sorted(order)
    assert all(number >= RARE for number in order[:7])
    last = max(order.index(number) for number in scarce)
    assert sum(number < RARE for number in order[:last]) >= 1
