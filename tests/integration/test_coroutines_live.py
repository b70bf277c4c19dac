"""Coroutines, live: on every pool they run to their end, and what interrupts them is raised where they wait."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestra import Orchestra
from tests.fleets import app_at
from tests.integration.agents import Agents, agents, wait_until
from tests.lease_tasks import POOLS

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

APP = """
import asyncio
from pathlib import Path

from celery.exceptions import SoftTimeLimitExceeded

from orchestra import OrchestraCelery

app = OrchestraCelery("shop")
FOLDER = Path(__file__).parent


@app.task
async def add(x, y):
    return sum(await asyncio.gather(asyncio.sleep(0.05, x), asyncio.sleep(0.05, y)))


@app.task(timeout=1)
async def listen():
    try:
        await asyncio.sleep(60)
    except SoftTimeLimitExceeded:
        await asyncio.sleep(0)
        return "answered"


@app.task
async def wait_long():
    (FOLDER / "begun").touch()
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        (FOLDER / "tidied").touch()
"""


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str) -> Iterator[Agents]:
    """Give a starter of agents that know the tasks."""
    with agents(tmp_path, redis_url) as fleet:
        fleet.write_app(APP)
        yield fleet


@pytest.fixture
def orchestra(redis_url: str) -> Iterator[Any]:
    """Give the door to the fleet of a submitter without the tasks' code."""
    with app_at(redis_url) as app:
        yield Orchestra(app)


@pytest.mark.parametrize("pool", POOLS)
def test_ends_and_limits(fleet: Agents, orchestra: Any, pool: str) -> None:
    """What it awaits at once is awaited at once, and it may answer its time limit, long before it would end."""
    fleet.start("-c", "1", name="a", pool=pool)

    assert 3 == orchestra.submit("fleet.add", {"x": 1, "y": 2}).get(timeout=20)
    assert "answered" == orchestra.submit("fleet.listen", {}).get(timeout=20)
    assert 7 == orchestra.submit("fleet.add", {"x": 3, "y": 4}).get(timeout=20)


def test_a_cancelled_one_tidies_up(fleet: Agents, orchestra: Any, tmp_path: Path) -> None:
    """One that is called off while it waits in a process of its own comes to its `finally` first."""
    fleet.start("-c", "1", name="a", pool="prefork")
    handle = orchestra.submit("fleet.wait_long", {})
    wait_until((tmp_path / "begun").exists)

    handle.cancel()

    wait_until((tmp_path / "tidied").exists, seconds=20)
