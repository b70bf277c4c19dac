"""The short way: many tasks begin in one step and end in one, and what isn't plain takes Celery's own."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery.exceptions import Ignore, Reject

from orchestra import Orchestra
from orchestra.exceptions import RetryableError
from orchestra.store import load_script
from orchestra.types import TaskState
from tests.fleets import agent_of, app_at, commands_at
from tests.processes import until

RUNS: list[int] = []


@pytest.fixture
def app(redis_url: str) -> Iterator[Any]:
    """Give an app with tasks that are plain, and some that aren't."""
    RUNS.clear()
    with app_at(redis_url, broker_connection_retry_on_startup=True) as app:

        def note(number: int) -> int:
            RUNS.append(number)
            return number

        def end_by(number: int, kind: str) -> int:
            RUNS.append(number)
            raise {
                "ValueError": ValueError("no"),
                "MemoryError": MemoryError(),
                "SystemExit": SystemExit(3),
                "RecursionError": RecursionError(),
                "Ignore": Ignore(),
                "Reject": Reject("no", requeue=False),
            }[kind]

        def try_again(self: Any, number: int) -> int:
            RUNS.append(number)
            if self.request.retries == 0:
                message = "once more"
                raise RetryableError(message, retry_after=0.01)
            return number

        async def await_it(number: int) -> int:
            RUNS.append(number)
            return number

        def nap(number: int, seconds: float) -> int:
            RUNS.append(number)
            time.sleep(seconds)
            return number

        def unwritable(number: int) -> object:
            RUNS.append(number)
            return object()

        for code in (note, end_by, await_it, nap, unwritable):
            app.task(name=f"shop.{code.__name__}", shared=False)(code)
        app.task(name="shop.try_again", bind=True, max_attempts=3, shared=False)(try_again)
        app.task(name="shop.once", acks_late=False, shared=False)(note)
        app.task(name="shop.silent", ignore_result=True, shared=False)(note)
        app.task(name="shop.guarded", breaker="a-service", shared=False)(note)
        app.task(name="shop.limited", rate_limit="1000/s", shared=False)(note)
        yield app


def counts(agent: Any) -> dict[str, int]:
    """Return how many messages took which way."""
    return dict(agent.lease_holder.lane.counts)


def leases(app: Any) -> int:
    """Return how many messages of the default queue are leased."""
    return int(app.store.command("ZCARD", app.store.keys.leased("celery")))


class TestPlainTasks:
    def test_many(self, app: Any) -> None:
        """Each runs once, in order; its result, its record and the end of its lease are there."""
        orchestra = Orchestra(app)
        handles = orchestra.submit_many("shop.note", [{"number": number} for number in range(200)])
        with agent_of(app, pool="inline") as agent:
            assert list(range(200)) == [handle.get(timeout=20) for handle in handles]
            until(lambda: leases(app) == 0, seconds=10)

            assert {"express": 200} == counts(agent)
            until(lambda: orchestra.agents()[0].ways == {"express": 200}, seconds=10)
        assert list(range(200)) == RUNS
        for handle in handles[::40]:
            assert [TaskState.SUBMITTED, TaskState.RUNNING, TaskState.SUCCEEDED] == [
                entry.state for entry in handle.history()
            ]

    def test_what_they_cost(self, app: Any, redis_url: str) -> None:
        """A backlog costs few calls of Redis, whatever its length."""
        orchestra = Orchestra(app)
        orchestra.submit_many("shop.note", [{"number": 0} for _ in range(20)])  # how long they take is known then
        with agent_of(app, pool="inline"):
            until(lambda: len(RUNS) == 20, seconds=20)
            with commands_at(redis_url) as seen:
                orchestra.submit_many("shop.note", [{"number": number} for number in range(300)])
                until(lambda: len(RUNS) == 320 and leases(app) == 0, seconds=20)
        ours = tuple(f"EVALSHA {load_script(name).sha}" for name in ("fetch", "begin_many", "finish_many", "news"))
        assert 0 < sum(command.startswith(ours) for command in seen) < 100
        assert not [command for command in seen if command.startswith(f"EVALSHA {load_script('start').sha}")]

    def test_without_results(self, app: Any) -> None:
        """A task that ignores its result is recorded all the same."""
        with agent_of(app, pool="inline") as agent:
            handle = Orchestra(app).submit("shop.silent", {"number": 1})
            until(lambda: handle.state is TaskState.SUCCEEDED, seconds=10)

            assert {"express": 1} == counts(agent)
            assert 0 == app.backend.client.exists(app.backend.get_key_for_task(handle.id))

    def test_coroutines(self, app: Any) -> None:
        """A task that is an `async def` runs to its end."""
        with agent_of(app, pool="inline") as agent:
            assert 7 == Orchestra(app).submit("shop.await_it", {"number": 7}).get(timeout=10)
            assert {"express": 1} == counts(agent)


class TestOtherEnds:
    @pytest.mark.parametrize("kind", ["ValueError", "MemoryError", "SystemExit", "RecursionError", "Ignore", "Reject"])
    def test_strand_no_other(self, app: Any, kind: str) -> None:
        """However one of many ends, those before and behind it come to their ends, and no lease is left."""
        orchestra = Orchestra(app)
        with agent_of(app, pool="inline"):
            before = orchestra.submit_many("shop.note", [{"number": number} for number in range(20)])
            orchestra.submit("shop.end_by", {"number": 50, "kind": kind})
            behind = orchestra.submit_many("shop.note", [{"number": number} for number in range(20, 40)])

            assert list(range(40)) == [handle.get(timeout=20) for handle in (*before, *behind)]
            until(lambda: leases(app) == 0, seconds=10)
        assert 1 == RUNS.count(50)

    def test_a_failure(self, app: Any) -> None:
        """It's the submitter's, and a dead letter."""
        orchestra = Orchestra(app)
        with agent_of(app, pool="inline"):
            handle = orchestra.submit("shop.end_by", {"number": 1, "kind": "ValueError"})
            with pytest.raises(ValueError, match="no"):
                handle.get(timeout=10)
            until(lambda: orchestra.dead_letters.count() == 1, seconds=10)
        assert TaskState.FAILED is handle.state

    def test_a_result_that_is_no_json(self, app: Any) -> None:
        """It's the task's failure."""
        with agent_of(app, pool="inline"):
            handle = Orchestra(app).submit("shop.unwritable", {"number": 1})
            with pytest.raises(Exception, match="JSON"):
                handle.get(timeout=10)

    def test_a_retry(self, app: Any) -> None:
        """It's published, and runs by the short way too."""
        with agent_of(app, pool="inline") as agent:
            handle = Orchestra(app).submit("shop.try_again", {"number": 3})

            assert 3 == handle.get(timeout=10)
            assert {"express": 2} == counts(agent)
        assert [3, 3] == RUNS

    def test_a_chord(self, app: Any) -> None:
        """Its parts are counted, and its body runs."""
        from celery import chord  # noqa: PLC0415  # the one test that needs it

        @app.task(name="shop.total", shared=False)
        def total(numbers: list[int]) -> int:
            return sum(numbers)

        with agent_of(app, pool="inline"):
            result = chord([app.tasks["shop.note"].s(number) for number in range(20)])(total.s())

            assert sum(range(20)) == result.get(timeout=20)


class TestTheOtherWay:
    @pytest.mark.parametrize(
        ("task", "options", "reason"),
        [
            ("once", {}, "at most once"),
            ("guarded", {}, "breaker"),
            ("limited", {}, "rate limit"),
            ("note", {"expires": 60}, "expires"),
            ("note", {"compression": "zlib"}, "compression"),
        ],
    )
    def test_what_is_not_plain(self, app: Any, task: str, options: dict[str, Any], reason: str) -> None:
        """It takes Celery's own way, with the same end, and the reason is counted."""
        with agent_of(app, pool="inline") as agent:
            result = app.tasks[f"shop.{task}"].apply_async((5,), **options)

            assert 5 == result.get(timeout=10)
            assert {reason: 1} == counts(agent)
        assert [5] == RUNS

    def test_a_cancelled_one(self, app: Any) -> None:
        """What was cancelled while it waited doesn't run."""
        orchestra = Orchestra(app)
        first = orchestra.submit("shop.note", {"number": 1})
        first.cancel()
        with agent_of(app, pool="inline"):
            assert 2 == orchestra.submit("shop.note", {"number": 2}).get(timeout=10)
            until(lambda: leases(app) == 0, seconds=10)
        assert [2] == RUNS
        assert TaskState.CANCELLED is first.state

    def test_the_order(self, app: Any) -> None:
        """What takes the other way doesn't overtake what came before it."""
        for number in range(10):
            app.tasks["shop.once" if number % 3 == 2 else "shop.note"].delay(number)
        with agent_of(app, pool="inline"):
            until(lambda: len(RUNS) == 10, seconds=10)
        assert list(range(10)) == RUNS


class TestALongOne:
    def test_holds_nothing_up(self, app: Any) -> None:
        """What has begun with a task that takes long is told at once, or given to another agent."""
        orchestra = Orchestra(app)
        quick = orchestra.submit_many("shop.nap", [{"number": number, "seconds": 0.0} for number in range(30)])
        with agent_of(app, pool="inline", name="a@test"):
            for handle in quick:
                handle.get(timeout=20)
            RUNS.clear()
            first = orchestra.submit_many("shop.nap", [{"number": number, "seconds": 0.0} for number in range(5)])
            long = orchestra.submit("shop.nap", {"number": 100, "seconds": 3.0})
            rest = orchestra.submit_many("shop.nap", [{"number": number, "seconds": 0.0} for number in range(5, 10)])
            until(lambda: 100 in RUNS, seconds=10)
            with agent_of(app, pool="inline", name="b@test"):
                ends = [handle.get(timeout=2.5) for handle in (*first, *rest)]

                assert list(range(10)) == ends
                assert TaskState.RUNNING is long.state
                assert 100 == long.get(timeout=10)
        assert [*range(10), 100] == sorted(RUNS)
