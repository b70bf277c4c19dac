"""Dead letters, live: nothing that fails is lost, and what is replayed runs once, whatever is known of its id."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import Reject, TaskRevokedError

from orchestra import TaskState
from orchestra.exceptions import PermanentError, RetryableError
from tests.dying_tasks import DyingFleet, dying_fleet
from tests.integration.agents import wait_until
from tests.keys import keys_holding

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

POOLS = ("prefork", "threads", "solo", "inline")


@pytest.fixture
def fleet(tmp_path: Path, redis_url: str) -> Iterator[DyingFleet]:
    """Give a fleet without agents."""
    with dying_fleet(tmp_path, redis_url) as fleet:
        yield fleet


def _replayed(fleet: DyingFleet, **which: Any) -> None:
    assert fleet.engine.dead_letters.replay(**which)


def _expired(fleet: DyingFleet, number: int, **options: Any) -> Any:
    """Send a task that is past its time."""
    return fleet.send("fail", number, expires=datetime.now(UTC) - timedelta(seconds=1), **options)


class TestReasons:
    @pytest.mark.parametrize("pool", POOLS)
    def test_each(self, fleet: DyingFleet, pool: str) -> None:
        """What fails for good, uses its attempts up, is rejected or expires is kept with its reason, and runs anew."""
        fleet.start("a", pool=pool)
        results = {
            "permanent": fleet.send("fail", 1),
            "exhausted": fleet.send("flaky", 2, "retryable"),
            "rejected": fleet.send("fail", 3, "rejected"),
            "expired": _expired(fleet, 4),
        }
        expected = {
            "permanent": PermanentError, "exhausted": RetryableError, "rejected": Reject, "expired": TaskRevokedError,
        }  # fmt: skip

        for reason, result in results.items():
            with pytest.raises(expected[reason]):
                result.get(timeout=60)
            assert reason == fleet.letter(result.id).reason
        wait_until(fleet.is_empty)
        assert [1, 2, 1, 0] == [len(fleet.runs(number)) for number in (1, 2, 3, 4)]

        fleet.mend()
        _replayed(fleet, task="fleet.*")

        handles = [fleet.engine.handle(result.id) for result in results.values()]
        assert [1, 2, 3, 4] == [handle.get(timeout=60) for handle in handles]
        assert {TaskState.SUCCEEDED} == {handle.state for handle in handles}
        assert "replayed, was permanent" in [entry.note for entry in handles[0].history()]
        wait_until(fleet.is_empty)
        assert 0 == fleet.engine.dead_letters.count()

    def test_what_is_not_kept(self, fleet: DyingFleet) -> None:
        """Errors that a task expects, and tasks that want no letters, leave none; nor does what succeeds or retries."""
        fleet.start("a")
        results = [fleet.send("expected", 1, "key"), fleet.send("unkept", 2), fleet.send("unkept", 3, "rejected")]

        errors: list[type[Exception]] = [KeyError, PermanentError, Reject]
        for result, error in zip(results, errors, strict=True):
            with pytest.raises(error):
                result.get(timeout=60)

        assert 4 == fleet.send("ok", 4).get(timeout=30)
        wait_until(fleet.is_empty)
        assert 0 == fleet.engine.dead_letters.count()

    def test_without_a_result(self, fleet: DyingFleet) -> None:
        """A message is kept as well where its task's result is ignored, or followed by errbacks."""
        fleet.start("a")
        errback = fleet.app.signature("fleet.ok", args=("errback",), immutable=True)
        ignored = fleet.send("fail", 1, ignore_result=True)
        followed = fleet.send("fail", 2, link_error=errback)

        assert ["permanent", "permanent"] == [fleet.letter(result.id).reason for result in (ignored, followed)]
        wait_until(lambda: fleet.runs("errback"))
        wait_until(fleet.is_empty)
        assert TaskState.FAILED is fleet.engine.handle(ignored.id).state

    def test_the_bytes_are_the_same(self, fleet: DyingFleet) -> None:
        """The message that is replayed is the one that was sent, to the last bit."""
        sent = fleet.send("fail", 1, headers={"floats": [1.0, 1e300, -0.0], "empty": [[], {}], "text": "Grüße 🎻"})
        client = fleet.app.store
        (key,) = [one for one in _lists(fleet) if client.command("LLEN", one)]
        raw = client.command("LINDEX", key, 0)
        agent = fleet.start("a", pool="solo")
        assert raw == fleet.letter(sent.id).message
        agent.stop()

        _replayed(fleet, task="fleet.fail")

        assert [raw] == client.command("LRANGE", key, 0, -1)


def _lists(fleet: DyingFleet) -> list[str]:
    return [f"celery{step}" for step in fleet.app.priority_steps]


class TestRevokedIds:
    def test_an_expired_task(self, fleet: DyingFleet, tmp_path: Path) -> None:
        """It runs when it's replayed, at the agent that has its id among the revoked, and after that has restarted."""
        database = ("--statedb", str(tmp_path / "state"))
        agent = fleet.start("a", *database)
        results = [_expired(fleet, number) for number in (1, 2)]
        for result in results:
            assert "expired" == fleet.letter(result.id).reason
        fleet.mend()

        _replayed(
            fleet, task="fleet.fail", since=datetime.now(UTC) - timedelta(hours=1), until=_died(fleet, results[0])
        )
        assert 1 == fleet.engine.handle(results[0].id).get(timeout=30)
        agent.stop()
        fleet.start("a", *database)
        _replayed(fleet, task="*")

        assert 2 == fleet.engine.handle(results[1].id).get(timeout=30)

    def test_a_revoked_one(self, fleet: DyingFleet) -> None:
        """One that was revoked everywhere runs too, and so does its retry, whoever gets that."""
        for name in ("a", "b"):
            fleet.start(name, pool="solo", RETRIES_BEFORE="0")
        result = fleet.send("flaky", 1, "retryable")
        assert "exhausted" == fleet.letter(result.id).reason
        first = [agent for agent, _ in fleet.runs(1)]
        fleet.app.control.revoke(result.id)
        inspect = fleet.app.control.inspect(timeout=5, limit=2)
        wait_until(lambda: all(result.id in ids for ids in (inspect.revoked() or {"none": []}).values()))
        second = _expired(fleet, 2)
        assert "expired" == fleet.letter(second.id).reason
        fleet.mend()

        _replayed(fleet, task="*")

        assert [1, 2] == [fleet.engine.handle(one.id).get(timeout=30) for one in (result, second)]
        assert len(first) < len(fleet.runs(1))

    def test_cancelled_after_the_replay(self, fleet: DyingFleet) -> None:
        """A replayed task that waits can be cancelled like any other."""
        agent = fleet.start("a", pool="solo")
        result = fleet.send("fail", 1)
        fleet.letter(result.id)
        agent.stop()
        _replayed(fleet, task="fleet.fail")

        assert fleet.engine.handle(result.id).cancel()
        fleet.start("b", pool="solo")
        wait_until(fleet.is_empty)

        assert 1 == len(fleet.runs(1))
        assert TaskState.CANCELLED is fleet.engine.handle(result.id).state


def _died(fleet: DyingFleet, result: Any) -> datetime:
    return fleet.engine.dead_letters.show(result.id).died_at


class TestCrashes:
    def test_of_an_agent(self, fleet: DyingFleet) -> None:
        """While agents that fail their tasks are killed, each message ends as one letter, and nowhere else."""
        results = [fleet.send("fail", number) for number in range(120)]
        for name in ("a", "b", "c"):
            agent = fleet.start(name)
            count = fleet.engine.dead_letters.count()
            wait_until(lambda count=count: fleet.engine.dead_letters.count() > count + 5, seconds=60)  # type: ignore[misc]  # mypy can't infer it
            os.killpg(agent.process.pid, signal.SIGKILL)
            agent.process.wait()
        fleet.start("last")

        wait_until(lambda: fleet.engine.dead_letters.count() == len(results), seconds=60)
        wait_until(fleet.is_empty, seconds=60)

        letters = fleet.engine.dead_letters.list(limit=1000).letters
        assert {result.id for result in results} == {letter.id for letter in letters}
        assert {"permanent"} == {letter.reason for letter in letters}
        for result in results:
            with pytest.raises(PermanentError):
                result.get(timeout=10)

    def test_of_who_replays(self, fleet: DyingFleet, tmp_path: Path) -> None:
        """A replay that is killed in its middle, and begun again, has each task run once."""
        agent = fleet.start("a")
        results = [fleet.send("fail", number) for number in range(100)]
        wait_until(lambda: fleet.engine.dead_letters.count() == len(results), seconds=60)
        fleet.mend()
        command = [sys.executable, "-m", "orchestra", "--app", "fleet", "dead", "replay", "--task", "*"]
        place: dict[str, Any] = {"cwd": tmp_path, "env": _environment(fleet, tmp_path)}
        with subprocess.Popen([*command, "--rate", "20"], **place) as replaying:
            wait_until(lambda: 0 < fleet.engine.dead_letters.count() < 90, seconds=60)
            replaying.kill()
        assert 0 < fleet.engine.dead_letters.count()
        subprocess.run(command, check=True, **place)

        assert list(range(100)) == [fleet.engine.handle(result.id).get(timeout=60) for result in results]

        wait_until(fleet.is_empty)
        assert {2} == {len(fleet.runs(number)) for number in range(100)}
        assert 0 == fleet.engine.dead_letters.count()
        assert agent.process.poll() is None


def _environment(fleet: DyingFleet, folder: Path) -> dict[str, str]:
    project = Path(__file__).parents[2]
    broker = fleet.app.conf.broker_url
    return {**os.environ, "ORCHESTRA_BROKER_URL": broker, "PYTHONPATH": f"{folder}:{project}"}


class TestUnknownTasks:
    def test_in_a_queue_of_the_project_s_own(self, fleet: DyingFleet) -> None:
        """A task that no agent of its queue knows is kept, rather than dropped as Celery does."""
        fleet.start("a", "-Q", "billing")
        sent = fleet.app.send_task("elsewhere.bill", (1,), queue="billing")

        letter = fleet.letter(sent.id)

        assert ("unregistered", "elsewhere.bill", "billing") == (letter.reason, letter.task, letter.queue)
        assert fleet.app.store.keys.dead_letter(sent.id) in keys_holding(_client(fleet), "elsewhere.bill")


def _client(fleet: DyingFleet) -> Any:
    return fleet.app.store._connect()
