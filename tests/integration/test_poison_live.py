"""Tasks that would end an agent, live: their failures are their own, and what costs processes or agents is bounded."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chord, signature

from orchestra import TaskState
from orchestra.exceptions import PermanentError, PoisonError
from orchestra.letters import DeadLetter
from tests.dying_tasks import ENDS_OF_PROCESSES, FAILURES, DyingFleet, dying_fleet
from tests.integration.agents import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

POOLS = ("prefork", "threads", "solo", "inline")


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str) -> Iterator[DyingFleet]:
    """Give a fleet without agents."""
    with dying_fleet(tmp_path, redis_url) as fleet:
        yield fleet


def _error_of(result: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:  # which one is the question
        result.get(timeout=90)
    return caught.value


def _losses(letter: DeadLetter) -> list[tuple[str, str | None]]:
    return [(one.kind, one.agent) for one in letter.deliveries]


class TestFailuresThatEndAgents:
    @pytest.mark.parametrize("pool", POOLS)
    def test_are_the_task_s(self, fleet: DyingFleet, pool: str) -> None:
        """Whatever a task raises or returns, its waiter hears of it, its message is kept, and the agent goes on."""
        agent = fleet.start("a", pool=pool)
        results = {how: fleet.send("end", how) for how in FAILURES}

        errors = {how: _error_of(result) for how, result in results.items()}

        assert 7 == fleet.send("ok", 7).get(timeout=30)
        assert agent.process.poll() is None
        assert dict.fromkeys(FAILURES, 1) == {how: len(fleet.runs(how)) for how in FAILURES}
        letters = {how: fleet.letter(result.id) for how, result in results.items()}
        assert {"permanent"} == {letter.reason for letter in letters.values()}
        for how in ("MemoryError", "all memory"):
            assert isinstance(errors[how], PermanentError)
            assert "ran out of memory" in str(errors[how])
        for how in ("sys.exit", "SystemExit", "KeyboardInterrupt"):
            assert isinstance(errors[how], PermanentError)
            assert how.removeprefix("sys.").casefold() in str(errors[how]).casefold()
        assert isinstance(errors["RecursionError"], RecursionError)
        for how in ("unreadable", "unpicklable", "unmade"):
            assert f"{how.capitalize()}Error" in str(letters[how].error)
        assert "JSON" in str(letters["no result"].error)
        wait_until(fleet.is_empty)
        if pool == "prefork":  # nor did a process have to be replaced
            assert not agent.says("WorkerLostError")


class TestLostProcesses:
    def test_are_bounded(self, fleet: DyingFleet) -> None:
        """A task that kills its process is tried again three times; then its message is kept and its waiters hear."""
        agent = fleet.start("a")
        results = {how: fleet.send("end", how) for how in ENDS_OF_PROCESSES}
        innocents = [fleet.send("ok", number) for number in range(50)]

        for how, result in results.items():
            error = _error_of(result)
            assert isinstance(error, PoisonError)
            assert f"orchestra dead show {result.id}" in str(error)
            letter = fleet.letter(result.id)
            assert ("poison", 4, 0) == (letter.reason, letter.lost_processes, letter.lost_agents)
            assert [("process", "a@test")] * 4 == _losses(letter)
            assert 4 == len({process for _, process in fleet.runs(how)})
            record = fleet.engine.handle(result.id).record()
            assert record is not None
            assert (TaskState.FAILED, True) == (record.state, str(record.error).startswith("PoisonError"))
        assert list(range(50)) == [result.get(timeout=60) for result in innocents]
        assert agent.process.poll() is None
        wait_until(fleet.is_empty)

    def test_a_bound_of_the_task_s_own(self, fleet: DyingFleet) -> None:
        """A task says itself how many processes it may cost; with 0 it never runs again after one."""
        fleet.start("a")
        results = {task: fleet.send(task, "SIGKILL") for task in ("end_once", "end_twice")}

        assert all(isinstance(_error_of(result), PoisonError) for result in results.values())

        assert {"end_once": 1, "end_twice": 2} == {
            task: fleet.letter(result.id).lost_processes for task, result in results.items()
        }

    def test_what_follows(self, fleet: DyingFleet, tmp_path: Path) -> None:
        """Errbacks are called, and a chord's body fails, as after any other failure."""
        fleet.start("a")
        app = fleet.app
        errback = signature("fleet.ok", ("errback",), app=app, immutable=True)
        parts = [signature("fleet.ok", (1,), app=app), signature("fleet.end_once", ("SIGKILL",), app=app)]
        body = chord(parts, app=app)(signature("fleet.ok", ("body",), app=app, immutable=True))
        alone = fleet.send("end_once", "os._exit", link_error=errback)

        assert isinstance(_error_of(alone), PoisonError)

        assert "PoisonError" in repr(_error_of(body))
        wait_until(lambda: fleet.runs("errback"))
        assert [] == fleet.runs("body")
        assert "poison" == fleet.letter(alone.id).reason
        wait_until(fleet.is_empty)

    def test_a_cold_stop_counts_nothing(self, fleet: DyingFleet) -> None:
        """A task whose process is ended with its agent runs again, and nothing is held against it."""
        first = fleet.start("a")
        result = fleet.send("sleep", 1, 4.0)
        wait_until(lambda: fleet.runs(1))
        first.process.send_signal(signal.SIGQUIT)
        first.process.wait(30)
        fleet.start("b")

        assert 1 == result.get(timeout=60)

        assert ["a@test", "b@test"] == [agent for agent, _ in fleet.runs(1)]
        store = fleet.app.store
        wait_until(fleet.is_empty)
        assert 0 == store.command("EXISTS", store.keys.deliveries)


class TestLostAgents:
    @pytest.mark.parametrize("pool", ["solo", "threads"])
    def test_are_bounded(self, fleet: DyingFleet, pool: str) -> None:
        """A task that kills its agent is tried by one more, as it says, and the third one lives."""
        result = fleet.send("end_twice", "SIGKILL")
        for name in ("a", "b"):
            agent = fleet.start(name, pool=pool)
            wait_until(lambda agent=agent: agent.process.poll() is not None, seconds=60)  # type: ignore[misc]  # mypy can't infer it
        last = fleet.start("c", pool=pool)

        assert isinstance(_error_of(result), PoisonError)

        letter = fleet.letter(result.id)
        assert ("poison", 0, 2) == (letter.reason, letter.lost_processes, letter.lost_agents)
        assert [("agent", "a@test"), ("agent", "b@test")] == _losses(letter)
        assert 7 == fleet.send("ok", 7).get(timeout=30)
        assert last.process.poll() is None

    def test_a_frozen_one_was_not_lost(self, fleet: DyingFleet) -> None:
        """A task whose agent is frozen runs elsewhere; when that comes back, nothing is held against the task."""
        frozen = fleet.start("a", pool="solo")
        result = fleet.send("sleep", 1, 6.0)
        wait_until(lambda: fleet.runs(1))
        store = fleet.app.store
        os.killpg(frozen.process.pid, signal.SIGSTOP)
        try:
            fleet.start("b", pool="solo")
            wait_until(lambda: len(fleet.runs(1)) == 2, seconds=60)
            assert 1 == store.command("HLEN", store.keys.deliveries)
        finally:
            os.killpg(frozen.process.pid, signal.SIGCONT)

        wait_until(lambda: not store.command("HLEN", store.keys.deliveries), seconds=30)
        assert 1 == result.get(timeout=60)
        assert 0 == fleet.engine.dead_letters.count()


class TestOrdinaryTasks:
    def test_pay_nothing(self, fleet: DyingFleet) -> None:
        """Nothing is written of deliveries and letters while all goes well."""
        fleet.start("a")
        assert list(range(20)) == [fleet.send("ok", number).get(timeout=30) for number in range(20)]

        store, keys = fleet.app.store, fleet.app.store.keys
        wait_until(fleet.is_empty)
        assert 0 == store.command("EXISTS", keys.deliveries, keys.dead_letters, keys.redelivered, keys.dead_dropped)
