"""What is counted, on made-up runs."""

from collections import Counter
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from tests.chaos.leftovers import leftovers
from tests.chaos.measure import counted, excused, pending, recovery, repeated, slowest, too_early
from tests.chaos.oracle import Execution
from tests.chaos.producer import Publish
from tests.chaos.stage import Strike
from tests.chaos.tasks import WORK
from tests.chaos.workloads import Item


def publish(number: int, *, due: float = 0.0, confirmed: float | None = 0.0) -> Publish:
    """Make a publish; without a time of its confirmation it failed."""
    result: Any = None if confirmed is None else object()
    return Publish(item=Item(number, 0.01), due=due, ready=max(due, confirmed or 0.0), result=result)


def execution(number: int, began: float, ended: float | None, *, agent: str = "one") -> Execution:
    """Make a run of a task's body."""
    return Execution(number, agent, 1, began, ended)


def strike(at: float, *, until: float | None = None, agent: str = "one") -> Strike:
    """Make a strike at one agent."""
    return Strike(began=at, ended=at if until is None else until, agents=frozenset({agent}))


class TestPending:
    def test_a_run_that_was_killed_is_not_an_end(self) -> None:
        """A confirmed task is pending until one of its runs has come to its end."""
        first, second = publish(1), publish(2)

        assert [second] == pending([first, second], [execution(1, 1, 2), execution(2, 1, None)])

    def test_what_failed_is_not_awaited(self) -> None:
        """Nobody was told that an unconfirmed task would run."""
        assert [] == pending([publish(1, confirmed=None)], [])


class TestRepeated:
    def test_counts_beyond_the_first(self) -> None:
        """Three runs of a task are two too many, whether they came to their ends or not."""
        runs = [execution(1, 1, None), execution(1, 2, 3), execution(1, 4, 5), execution(2, 1, 2)]

        assert Counter({1: 2}) == repeated(runs)


class TestExcused:
    @pytest.mark.parametrize(
        ("run", "expected"),
        [
            (execution(1, 9.0, 11.0), 1),
            (execution(1, 9.0, None), 1),
            (execution(1, 9.0, 9.99), 1),  # its acknowledgement may have been on its way
            (execution(1, 8.0, 9.0), 0),
            (execution(1, 12.0, 13.0), 0),
            (execution(1, 9.0, 11.0, agent="two"), 0),
        ],
    )
    def test_is_what_ran_at_a_strike(self, run: Execution, expected: int) -> None:
        """A run is excused when the strike came while it ran, at its own agent."""
        assert expected == excused([run], [strike(10.0)])[1]

    def test_counts_a_run_once(self) -> None:
        """Two strikes at one run excuse one more run, not two."""
        assert Counter({1: 1}) == excused([execution(1, 9.0, None)], [strike(10.0), strike(20.0)])

    def test_a_strike_lasts(self) -> None:
        """What an agent begins while the server is away can't be acknowledged, and may run again."""
        assert Counter({1: 1}) == excused([execution(1, 15.0, 15.1)], [strike(10.0, until=20.0)])


class TestRecovery:
    def test_is_over_when_nobody_waits_any_more(self) -> None:
        """The last task that had to wait for more than a second says how long a fault was felt."""
        publishes = [publish(1, confirmed=9.0), publish(2, confirmed=10.5), publish(3, confirmed=14.0)]
        runs = [execution(1, 12.0, 12.1), execution(2, 13.0, 13.1), execution(3, 14.1, 14.2)]

        assert 3.0 == recovery(publishes, runs, [strike(10.0)])
        assert 3.0 == slowest(publishes, runs)

    def test_counts_the_run_that_came_to_its_end(self) -> None:
        """A task that was struck has to wait for its next run."""
        runs = [execution(1, 9.5, None), execution(1, 15.0, 16.0)]

        assert 5.0 == recovery([publish(1, confirmed=9.5)], runs, [strike(10.0)])

    def test_each_strike_has_its_own(self) -> None:
        """What became ready after the next strike isn't laid to the first one's charge."""
        publishes = [publish(1, confirmed=10.0), publish(2, confirmed=20.0)]
        runs = [execution(1, 12.0, 12.1), execution(2, 23.0, 23.1)]

        assert 3.0 == recovery(publishes, runs, [strike(10.0), strike(20.0)])

    def test_never_came(self) -> None:
        """While a confirmed task hasn't run, nothing has recovered."""
        assert recovery([publish(1)], [execution(1, 1.0, None)], [strike(1.5)]) is None
        assert slowest([publish(1)], []) is None


class TestTooEarly:
    def test_counts_tasks(self) -> None:
        """A delayed task that begins before its time is counted once."""
        runs = [execution(1, 5.0, 5.1), execution(1, 6.0, 6.1), execution(2, 10.0, 10.1)]

        assert [1] == too_early([publish(1, due=10.0), publish(2, due=10.0)], runs)


class TestDeeds:
    """Of tasks that end their process, or hang."""

    def test_a_failure_is_their_end(self) -> None:
        """Such a task is lost unless it ended as a failure, and however often it ran is told apart from others."""
        first, second = (Publish(item=Item(number, 0.01, deed="exit"), due=0, ready=0, result=1) for number in (1, 2))
        runs = [execution(1, 1, None), execution(1, 2, None), execution(2, 1, None), execution(3, 1, 2)]

        told = counted([first, second, publish(3)], runs, [], {1})

        assert ([2], 1, 2) == (told["lost"], told["failed"], told["most_runs"])
        assert (0, []) == (told["duplicates"], told["unexcused"])

    def test_nobody_waits_for_them(self) -> None:
        """When things have recovered is told by the others."""
        doer = Publish(item=Item(1, 0.01, deed="hang"), due=0, ready=0, result=1)

        assert 3.0 == recovery([doer, publish(2)], [execution(2, 4.0, 5.0)], [strike(1.0)])


class TestFollowers:
    def test_wait_for_others(self) -> None:
        """What follows another task isn't late for having waited for that, and is lost where it never came."""
        follower = Publish(item=Item(1, 0.01, follows=True), due=0, ready=0, result=1)

        assert 0.0 == recovery([follower], [execution(1, 9.0, 9.1)], [strike(1.0)])
        assert recovery([follower], [], [strike(1.0)]) is None


class TestLeftovers:
    def test_finds_messages_under_whatever_name(self, redis_url: str) -> None:
        """A message is counted where it lies, in a queue, a lease or a set of delayed ones; a result is none."""
        app: Any = Celery("left", broker=redis_url, set_as_current=False)
        with app.connection_for_write() as connection, Redis.from_url(redis_url) as client:
            app.send_task(WORK, (1, 0.1), connection=connection)
            (message,) = client.lrange("celery", 0, -1)
            client.hset("leases", "1", b"celery\ncelery\n" + message)
            client.zadd("later", {message: 1.0})
            client.set("result", f'{{"task": "{WORK}", "status": "SUCCESS"}}')
            client.lpush("a:dead", message)

            assert Counter({"celery": 1, "leases": 1, "later": 1}) == leftovers(client)
        app.close()
