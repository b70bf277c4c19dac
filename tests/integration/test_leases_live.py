"""Leases, live: a task is its agent's as long as that lives, and somebody else's soon after, whatever the task does."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from billiard.exceptions import WorkerLostError

from tests.chaos.oracle import Execution
from tests.chaos.servers import Server, server_in
from tests.integration.agents import wait_until
from tests.lease_tasks import POOLS, Command, LiveFleet, live_fleet

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

LONG_SECONDS = float(os.environ.get("LONG_TASK_SECONDS", "12"))
HOLDING_SECONDS = 10.0
TTL_SECONDS = 2.0
SHORT = range(2, 7)  # what comes after a long task, whose number is 1; pools count from different hundreds

FleetOf = Callable[..., AbstractContextManager[LiveFleet]]

log = logging.getLogger(__name__)  # what was measured


@pytest.fixture
def fleet_of(tmp_path: Path, redis_url: str) -> FleetOf:
    """Give a maker of fleets on servers of their own; the session's server hears of the runs."""

    @contextmanager
    def made(beat_seconds: float = TTL_SECONDS / 5) -> Iterator[LiveFleet]:
        with (
            server_in(tmp_path / "redis", append_only=True) as server,
            live_fleet(tmp_path, server, redis_url, beat_seconds=beat_seconds) as fleet,
        ):
            yield fleet

    return made


@pytest.fixture
def fleet(fleet_of: FleetOf) -> Iterator[LiveFleet]:
    """Give a fleet whose silent agents are lost after two seconds."""
    with fleet_of() as fleet:
        yield fleet


def _of(pool: str, number: int) -> int:
    """Return a pool's own number for a task."""
    return 100 * (1 + POOLS.index(pool)) + number


def _agents(runs: list[Execution]) -> list[str]:
    return [run.agent.removesuffix("@test") for run in runs]


def _pause_for(seconds: float) -> None:
    """Let a fault last."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= end, seconds=seconds + 5)


# ── while agents live ──


class TestALongTask:
    def test_is_its_agents(self, fleet: LiveFleet) -> None:
        """However long a task runs or holds Python's lock, it runs once, and the agent beside it does all the rest."""
        for pool in POOLS:
            for name in (f"{pool}-a", f"{pool}-b"):
                fleet.start(name, "--capabilities", pool, pool=pool)
        fleet.joined()

        waits = [
            *_serve_beside(fleet, 1, task="sleep", seconds=LONG_SECONDS),
            *_serve_beside(fleet, 2, task="hold", seconds=HOLDING_SECONDS),
        ]

        log.info("a task beside a busy agent waited for %.2f s at most", max(waits))
        assert max(waits) < 5.0
        for pool in POOLS:
            assert [1, 1] == [len(fleet.runs(_of(pool, number))) for number in (1, 2)]


def _serve_beside(fleet: LiveFleet, number: int, *, task: str, seconds: float) -> list[float]:
    """Have one agent of each pool busy, send others short tasks until it's done; return how long these waited."""
    busy = {pool: fleet.send(_of(pool, number), seconds, task=task, requires=pool) for pool in POOLS}
    by = {pool: fleet.begun(_of(pool, number))[0].agent for pool in POOLS}
    waits, beside = [], 10_000 * number
    while any(run.ended is None for run in fleet.runs(*(_of(pool, number) for pool in POOLS))):
        for pool in POOLS:
            beside += 1
            sent = time.monotonic()
            fleet.send(beside, requires=pool)
            (run,) = fleet.ended(beside)
            (long,) = fleet.runs(_of(pool, number))
            waits.append(run.began - sent)
            assert run.agent != by[pool] or (long.ended is not None and long.ended <= run.began)
    for pool, result in busy.items():
        assert _of(pool, number) == result.get(timeout=20)
    return waits


# ── when one dies ──


class TestAKilledAgent:
    def test_loses_its_tasks_soon(self, fleet_of: FleetOf) -> None:
        """With the shipped beats another agent begins a killed one's task within ten seconds, however long it is."""
        with fleet_of(beat_seconds=1.0) as fleet:
            for pool in POOLS:
                for name in (f"{pool}-a", f"{pool}-b"):
                    fleet.start(name, "--capabilities", pool, pool=pool)
            fleet.joined()
            for pool, seconds in zip(POOLS, (60.0, 20.0, 6.0, 6.0), strict=True):
                fleet.send(_of(pool, 1), seconds, requires=pool)
            first = {pool: fleet.begun(_of(pool, 1))[0] for pool in POOLS}

            killed_at = time.monotonic()
            for (name,) in (_agents([run]) for run in first.values()):
                fleet.strike(name, signal.SIGKILL)
            for pool in POOLS:
                _, again = fleet.begun(_of(pool, 1), times=2)
                log.info("killed, %s: begun again after %.1f s", pool, again.began - killed_at)
                assert again.agent != first[pool].agent
                assert again.began - killed_at < 10


class TestServerAway:
    @pytest.mark.parametrize("way", ["frozen", "restarted"])
    def test_nobody_is_given_up_for_it(self, fleet: LiveFleet, way: str) -> None:
        """After the server was away no lease moves for as long as makes an agent lost; then only a dead one's does."""
        pools = {"ends-meanwhile": "prefork", "ends-later": "threads", "dies": "prefork"}
        seconds = {"ends-meanwhile": 3.0, "ends-later": 14.0, "dies": 4.0}
        numbers = {"ends-meanwhile": 1, "ends-later": 2, "dies": 3}
        for name, pool in pools.items():
            fleet.start(name, "--capabilities", name, pool=pool)
        fleet.joined()
        results = {name: fleet.send(numbers[name], seconds[name], requires=name) for name in pools}
        for number in numbers.values():
            fleet.begun(number)
        fleet.start("heir", "--capabilities", ",".join(pools))
        fleet.joined()

        back_at = _away(fleet.server, way, meanwhile=lambda: fleet.strike_group("dies", signal.SIGKILL))

        assert list(numbers.values()) == [result.get(timeout=60) for result in results.values()]
        assert ["ends-meanwhile"] == _agents(fleet.runs(1))
        assert ["ends-later"] == _agents(fleet.runs(2))
        assert ["dies", "heir"] == _agents(fleet.runs(3))
        again = fleet.runs(3)[1].began - back_at
        log.info("the server %s: begun again after %.1f s", way, again)
        assert TTL_SECONDS <= again < 15


def _away(server: Server, way: str, *, meanwhile: Callable[[], object]) -> float:
    """Have a server away for longer than makes an agent lost; return when it came back."""
    with server.client() as client:
        pid = int(client.info("server")["process_id"])
    if way == "frozen":
        os.kill(pid, signal.SIGSTOP)
    else:
        server.shut_down()
    meanwhile()
    _pause_for(2.5 * TTL_SECONDS)
    back_at = time.monotonic()
    if way == "frozen":
        os.kill(pid, signal.SIGCONT)
    else:
        server.start()
    return back_at


# ── when one was only frozen ──


class TestAFrozenAgent:
    """One agent of each pool holds a long task, which it has started, and short ones, which it hasn't."""

    @pytest.fixture
    def frozen(self, fleet: LiveFleet) -> LiveFleet:
        """Freeze such agents, beside one that serves other queues."""
        fleet.start("watcher")
        for pool in POOLS:
            fleet.start(f"{pool}-a", "--capabilities", pool, pool=pool)
        fleet.joined()
        for pool in POOLS:
            fleet.learn_pace(f"{pool}-a", requires=pool)
            fleet.tell("drain", f"{pool}-a")
            # An errback, so that only the acknowledgement tells that the task is done with: its record would, too.
            fleet.send(_of(pool, 1), 3.0, requires=pool, link_error=fleet.app.signature("fleet.sleep", (0, 0.0)))
            for number in SHORT:
                fleet.send(_of(pool, number), requires=pool)
            fleet.tell("resume", f"{pool}-a")
            fleet.begun(_of(pool, 1))
            fleet.holds(f"{pool}-a", 1 + len(SHORT))
            fleet.strike_group(f"{pool}-a", signal.SIGSTOP)
        return fleet

    def _thaw(self, fleet: LiveFleet) -> None:
        for pool in POOLS:
            fleet.strike_group(f"{pool}-a", signal.SIGCONT)

    def test_that_is_acknowledged_late(self, frozen: LiveFleet) -> None:
        """A late acknowledgement drops the copy that waits, and what wasn't started runs by its new lease alone."""
        for pool in POOLS:
            frozen.holds(f"{pool}-a", 0)
            assert 1 + len(SHORT) == frozen.waiting(f"fleet:{pool}")

        self._thaw(frozen)

        for pool in POOLS:
            numbers = [_of(pool, number) for number in (1, *SHORT)]
            frozen.ended(*numbers)
            frozen.holds(f"{pool}-a", 0)
            assert dict.fromkeys(numbers, 1) == {number: len(frozen.runs(number)) for number in numbers}
            assert not frozen.waiting(f"fleet:{pool}")

    def test_that_another_agent_replaces(self, frozen: LiveFleet) -> None:
        """What was started runs once more at most, and the thawed agent runs nothing else that it lost."""
        frozen.start("heir", "--capabilities", ",".join(POOLS), "-c", "4", pool="prefork")
        frozen.joined()
        for pool in POOLS:
            frozen.ended(*(_of(pool, number) for number in SHORT))
            frozen.begun(_of(pool, 1), times=2)

        self._thaw(frozen)

        for pool in POOLS:
            frozen.ended(_of(pool, 1), times=2)
            assert 0 == frozen.agents[f"{pool}-a"].stop()
            assert [f"{pool}-a", "heir"] == _agents(frozen.runs(_of(pool, 1)))
            assert ["heir"] * len(SHORT) == _agents(frozen.runs(*(_of(pool, number) for number in SHORT)))


# ── at most once ──


class TestAtMostOnce:
    def test_when_its_agent_is_killed(self, fleet: LiveFleet) -> None:
        """A task that acknowledges early never comes again, whatever of its agent is killed."""
        struck = {"main": fleet.strike, "group": fleet.strike_group}
        names = {(pool, what): f"{pool}-{what}" for pool in POOLS for what in struck}
        for (pool, _), name in names.items():
            fleet.start(name, "--capabilities", name, pool=pool)
        fleet.joined()
        for number, name in enumerate(names.values(), start=1):
            fleet.send(number, 60.0, task="once", requires=name)
            fleet.begun(number)
        holders = [fleet.holder_of(name) for name in names.values()]

        for (_, what), name in names.items():
            struck[what](name, signal.SIGKILL)

        fleet.start("heir", "--capabilities", ",".join(names.values()))
        fleet.joined()
        for holder in holders:
            _is_forgotten(fleet, holder)
        for number, name in enumerate(names.values(), start=1):
            fleet.send(100 + number, requires=name)
            fleet.ended(100 + number)
            assert [name] == _agents(fleet.runs(number))

    def test_when_its_process_is_killed(self, fleet: LiveFleet) -> None:
        """A task that acknowledges early and whose pool process dies is a failure, as Celery's; the agent goes on."""
        fleet.start("a", pool="prefork")
        fleet.joined()
        result = fleet.send(1, 60.0, task="once")

        os.kill(fleet.begun(1)[0].pid, signal.SIGKILL)

        with pytest.raises(WorkerLostError):
            result.get(timeout=20)
        fleet.send(2).get(timeout=20)
        assert [1, 2] == [run.number for run in fleet.runs()]
        fleet.holds("a", 0)


def _is_forgotten(fleet: LiveFleet, holder: str) -> None:
    wait_until(lambda: fleet.client.zscore(fleet.keys.holders, holder) is None, what="the holder to be given up")


# ── the order ──


class TestOrder:
    def test_a_result_comes_first(self, fleet: LiveFleet) -> None:
        """A task's result is in Redis by the time its message is settled, on every pool, at the latest by one step."""
        for pool in POOLS:
            fleet.start(pool, "--capabilities", pool, pool=pool)
        fleet.joined()
        for pool in POOLS:
            with fleet.commands() as seen:
                result = fleet.send(1, requires=pool)
                result.get(timeout=20)
                fleet.holds(pool, 0)

            stored = _call(seen, "SET", f"celery-task-meta-{result.id}", '"SUCCESS"')
            settled = _call(seen, "HDEL", fleet.keys.leases(fleet.holder_of(pool)))
            assert stored <= settled, pool


def _call(commands: list[Command], *words: str) -> int:
    """Return the number of the first call that had a command carried out with all these words, the first in front."""
    found = [one for one in commands if one.text.startswith(words[0]) and all(word in one.text for word in words)]
    assert found, f"no command with {words}"
    return found[0].call
