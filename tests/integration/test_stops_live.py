"""Stops and drains, live: what an agent hasn't started goes to others at once, and what it has isn't lost."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.oracle import Execution
from tests.chaos.servers import server_in
from tests.keys import keys_holding
from tests.lease_tasks import POOLS, LiveFleet, live_fleet

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

SHORT = range(2, 7)  # the tasks behind a long one, whose number is 1; pools count from different hundreds
SOON_SECONDS = 1.5  # one second, and some more for a machine that has other things to do

log = logging.getLogger(__name__)  # what was measured


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str) -> Iterator[LiveFleet]:
    """Give a fleet without agents, where nobody counts as lost before a minute: what comes back was given back."""
    with (
        server_in(tmp_path / "redis", append_only=True) as server,
        live_fleet(tmp_path, server, redis_url, lost_after_beats=150) as fleet,
    ):
        yield fleet


def _of(pool: str, number: int) -> int:
    """Return a pool's own number for a task."""
    return 100 * (1 + POOLS.index(pool)) + number


def _short(pool: str) -> list[int]:
    return [_of(pool, number) for number in SHORT]


def _agents(runs: list[Execution]) -> list[str]:
    return [run.agent.removesuffix("@test") for run in runs]


def _load(fleet: LiveFleet, name: str, *, pool: str, seconds: float) -> Any:
    """Have an agent run a long task, and hold short ones behind it; return the long one's result."""
    fleet.learn_pace(name, requires=pool)
    fleet.tell("drain", name)
    result = fleet.send(_of(pool, 1), seconds, requires=pool)
    for number in _short(pool):
        fleet.send(number, requires=pool)
    fleet.tell("resume", name)
    fleet.begun(_of(pool, 1))
    fleet.holds(name, 1 + len(SHORT))
    return result


class TestWarmStop:
    def test_gives_back_what_has_not_started(self, fleet: LiveFleet) -> None:
        """A stopped agent finishes the task that it runs, others run the rest at once, and nothing of it is left."""
        for pool in POOLS:
            fleet.start(f"{pool}-a", "--capabilities", pool, pool=pool)
            fleet.start(f"{pool}-b", "--capabilities", pool)
        fleet.joined()
        for pool in POOLS:
            fleet.tell("drain", f"{pool}-b")
        results = {pool: _load(fleet, f"{pool}-a", pool=pool, seconds=4.0) for pool in POOLS}
        holders = {pool: fleet.holder_of(f"{pool}-a") for pool in POOLS}

        stopped_at = time.monotonic()
        for pool in POOLS:
            fleet.strike(f"{pool}-a", signal.SIGTERM)
        for pool in POOLS:
            fleet.tell("resume", f"{pool}-b")

        for pool in POOLS:
            ran = fleet.ended(*_short(pool))
            waited = max(run.began for run in ran) - stopped_at
            log.info("%s: the last of what was given back began after %.2f s", pool, waited)
            assert [f"{pool}-b"] * len(SHORT) == _agents(ran)
            assert waited < SOON_SECONDS
        for pool, result in results.items():
            assert _of(pool, 1) == result.get(timeout=20)
            assert 0 == fleet.agents[f"{pool}-a"].process.wait(20)
            assert [f"{pool}-a"] == _agents(fleet.runs(_of(pool, 1)))
            _assert_gone(fleet, f"{pool}-a", holders[pool])


def _assert_gone(fleet: LiveFleet, name: str, holder: str) -> None:
    """Find nothing of an agent but what tells of it and its tasks, and that it may be forgotten, which others do."""
    of_holders = {fleet.keys.holders, fleet.keys.sessions}
    assert fleet.client.zscore(fleet.keys.holders, holder) in {None, 0.0}
    assert keys_holding(fleet.client, holder) <= of_holders
    assert not fleet.client.exists(fleet.keys.leases(holder))
    assert fleet.client.zscore(fleet.keys.agents, f"{name}@test") is None
    remembers = (fleet.keys.task(""), "celery-task-meta-", fleet.keys.former_agents)
    assert not [key for key in keys_holding(fleet.client, f"{name}@test") if not key.startswith(remembers)]


class TestSoftShutdown:
    def test_gives_back_what_does_not_end_in_time(self, fleet: LiveFleet) -> None:
        """What ends within the given seconds ends here, and the rest goes to another agent."""
        agent = fleet.start("a", "-c", "2", pool="prefork", SOFT_SHUTDOWN_SECONDS="2")
        fleet.joined()
        fleet.send(1, 30.0)
        ending = fleet.send(2, 1.5)
        for number in (1, 2):
            fleet.begun(number)
        fleet.start("b")
        fleet.joined()
        holder = fleet.holder_of("a")

        stopped_at = time.monotonic()
        fleet.strike("a", signal.SIGQUIT)

        assert 2 == ending.get(timeout=20)
        log.info("begun again after %.2f s", fleet.begun(1, times=2)[1].began - stopped_at)
        agent.process.wait(20)
        assert ["a", "b"] == _agents(fleet.runs(1))
        assert ["a"] == _agents(fleet.runs(2))
        _assert_gone(fleet, "a", holder)


class TestColdStop:
    def test_gives_back_what_runs(self, fleet: LiveFleet) -> None:
        """A pool of processes is ended, and its task goes to another agent; other pools let theirs come to its end."""
        for pool in POOLS:
            fleet.start(f"{pool}-a", "--capabilities", pool, pool=pool)
            fleet.start(f"{pool}-b", "--capabilities", pool)
        fleet.joined()
        for pool in POOLS:
            fleet.tell("drain", f"{pool}-b")
        results = {pool: _load(fleet, f"{pool}-a", pool=pool, seconds=4.0) for pool in POOLS}
        holders = {pool: fleet.holder_of(f"{pool}-a") for pool in POOLS}

        stopped_at = time.monotonic()
        for pool in POOLS:
            fleet.strike(f"{pool}-a", signal.SIGQUIT)
        for pool in POOLS:
            fleet.tell("resume", f"{pool}-b")

        for pool, result in results.items():
            assert _of(pool, 1) == result.get(timeout=20)
            fleet.ended(*_short(pool))
            long = fleet.runs(_of(pool, 1))
            waited = max(run.began for run in fleet.runs(*_short(pool))) - stopped_at
            code = fleet.agents[f"{pool}-a"].process.wait(20)
            log.info("%s: exit code %d, the others begun after %.2f s", pool, code, waited)
            log.info("%s: the long task last begun after %.2f s", pool, long[-1].began - stopped_at)
            assert ([f"{pool}-a", f"{pool}-b"] if pool == "prefork" else [f"{pool}-a"]) == _agents(long)
            assert [f"{pool}-b"] * len(SHORT) == _agents(fleet.runs(*_short(pool)))
            _assert_gone(fleet, f"{pool}-a", holders[pool])


class TestDrain:
    def test_gives_back_and_comes_back(self, fleet: LiveFleet, tmp_path: Path) -> None:
        """`orchestra drain` gives back what has not started, tells when the rest is done, and `resume` undoes it."""
        for pool in POOLS:
            fleet.start(f"{pool}-a", "--capabilities", pool, pool=pool)
        fleet.joined()
        names = [f"{pool}-a@test" for pool in POOLS]
        results = {pool: _load(fleet, f"{pool}-a", pool=pool, seconds=4.0) for pool in POOLS}

        asked_at = time.monotonic()
        draining = _orchestra(fleet, tmp_path, "drain", *names)
        for pool in ("prefork", "threads"):  # a solo agent hears of it after its task
            fleet.waits(f"fleet:{pool}", len(SHORT))
            assert fleet.runs(_of(pool, 1))[0].ended is None
            log.info("%s: given back after %.2f s", pool, time.monotonic() - asked_at)
        told, _ = draining.communicate(timeout=30)

        assert [f"{name} is drained" for name in sorted(names)] == sorted(told.splitlines())
        assert 0 == draining.returncode
        for pool, result in results.items():
            assert _of(pool, 1) == result.get(timeout=1)
            assert (0 if pool == "solo" else len(SHORT)) == fleet.waiting(f"fleet:{pool}")
            assert not fleet.held_by(f"{pool}-a")
        assert [1] * len(POOLS) == [len(fleet.runs(_of(pool, 1))) for pool in POOLS]

        told, _ = _orchestra(fleet, tmp_path, "resume", *names).communicate(timeout=30)

        assert [f"{name} takes tasks again" for name in sorted(names)] == sorted(told.splitlines())
        for pool in POOLS:
            assert [f"{pool}-a"] * len(SHORT) == _agents(fleet.ended(*_short(pool)))


def _orchestra(fleet: LiveFleet, folder: Path, *words: str) -> "subprocess.Popen[str]":
    """Start the command `orchestra` in the project's folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "orchestra", "--app", "fleet", *words],
        cwd=folder,
        env={**os.environ, **fleet.environment, "ORCHESTRA_BROKER_URL": fleet.server.url},
        stdout=subprocess.PIPE,
        text=True,
    )
