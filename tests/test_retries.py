"""Where a fleet's retries are counted: by Redis's clock, in the window in which each is due."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import BrokerUnavailableError
from orchestra.frozen_clock import FrozenClock
from orchestra.leases import Start, start
from orchestra.retries import RetryBudgets, Spent
from orchestra.retry_budget import RetryBudget
from orchestra.state import advance_arguments
from orchestra.store import Store
from orchestra.types import TaskState
from tests.keys import keys_of
from tests.stores import client_at, store_at
from tests.transit import Transit, holder_named, transit_at

TASK = "shop.bill"
HOUR = RetryBudget(ratio=0.2, floor_per_second=10 / 3600, window_seconds=3600)  # no test sees two of its windows begin


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    """Give the shop's store over an empty Redis."""
    with store_at(redis_url) as store:
        yield store


@pytest.fixture
def budgets(store: Store) -> RetryBudgets:
    """Give the shop's budgets."""
    return RetryBudgets(store)


def redis_now(store: Store) -> float:
    """Return Redis's time."""
    seconds, micros = store.command("TIME")
    return float(seconds) + float(micros) / 1e6


def away_from_the_edge(store: Store, budget: RetryBudget) -> float:
    """Return how many seconds from now the middle of the window after next is, in which a wish is surely alone."""
    return (math.floor(redis_now(store) / budget.window_seconds) + 2.5) * budget.window_seconds - redis_now(store)


def note_attempts(store: Store, count: int, *, ago_windows: int = 0, window_ms: int = HOUR.window_ms) -> None:
    """Have so many first attempts counted in a window."""
    window = math.floor(redis_now(store) * 1000 / window_ms) - ago_windows
    store.command("SET", f"{store.keys.first_attempts(TASK)}{window}", count)


class TestSpend:
    def test_within_the_budget(self, store: Store, budgets: RetryBudgets) -> None:
        """As many retries as a window has room for are due when they wish to be, all at once if need be."""
        wish = away_from_the_edge(store, HOUR)

        assert [Spent(0.0, 0.003)] * 10 == [budgets.spend(TASK, HOUR, wish) for _ in range(10)]

    def test_above_it(self, store: Store, budgets: RetryBudgets) -> None:
        """The rest is spread evenly over the windows behind, each of which gets what it has room for."""
        wish = away_from_the_edge(store, HOUR)
        put_off = [budgets.spend(TASK, HOUR, wish).put_off_seconds for _ in range(35)]

        # Half an hour, which is left of the window, and then one every six minutes.
        expected = [*[0.0] * 10, *(1800 + 360 * place for place in range(25))]
        assert expected == pytest.approx(put_off, abs=20)

    def test_by_the_time_at_which_it_is_due(self, store: Store, budgets: RetryBudgets) -> None:
        """A retry for later takes nothing away from those for now, and those that are due together count together."""
        wish = away_from_the_edge(store, HOUR)
        later = [budgets.spend(TASK, HOUR, wish + 36_000) for _ in range(11)]
        sooner = [budgets.spend(TASK, HOUR, wish) for _ in range(10)]

        assert 11 == sum(not spent.put_off_seconds for spent in (*later, *sooner[:1]))
        assert later[-1].put_off_seconds > 0
        assert all(not spent.put_off_seconds for spent in sooner)

    def test_ratio_of_first_attempts(self, store: Store, budgets: RetryBudgets) -> None:
        """Beyond the floor, a task that is called more often may be retried more often."""
        note_attempts(store, 100)

        assert 20 / 3600 == pytest.approx(budgets.spend(TASK, HOUR, 0).rate_per_second, abs=1e-3)

    def test_attempts_of_the_window_before(self, store: Store, budgets: RetryBudgets) -> None:
        """What lies in the last window's time counts, by the share that still does."""
        day = RetryBudget(floor_per_second=0, window_seconds=1000)
        note_attempts(store, 10_000_000, ago_windows=1, window_ms=day.window_ms)
        gone = redis_now(store) / 1000 % 1

        assert (1 - gone) * 2000 == pytest.approx(budgets.spend(TASK, day, 0).rate_per_second, abs=10)

    def test_always_one(self, store: Store, budgets: RetryBudgets) -> None:
        """A budget of nothing still lets one retry go in each window: put off isn't dropped."""
        nothing = RetryBudget(ratio=0, floor_per_second=0, window_seconds=60)
        wish = away_from_the_edge(store, nothing)
        put_off = [budgets.spend(TASK, nothing, wish).put_off_seconds for _ in range(4)]

        assert [0, 30, 90, 150] == pytest.approx(put_off, abs=15)

    def test_tasks_apart(self, store: Store, budgets: RetryBudgets) -> None:
        """Each kind of task has a budget of its own."""
        wish = away_from_the_edge(store, HOUR)
        for _ in range(10):
            budgets.spend(TASK, HOUR, wish)

        assert 0 == budgets.spend("shop.ring", HOUR, wish).put_off_seconds
        assert 0 < budgets.spend(TASK, HOUR, wish).put_off_seconds

    def test_nothing_is_left(self, store: Store, budgets: RetryBudgets, redis_url: str) -> None:
        """Every counter goes soon after its window has passed, however far ahead that is."""
        short = RetryBudget(ratio=0, floor_per_second=0, window_seconds=60)
        for _ in range(5):
            budgets.spend(TASK, short, 0)

        with client_at(redis_url) as client:
            lives = {key: client.pttl(key) / 1000 for key in keys_of(client)}
            edge = 60 - redis_now(store) % 60
        expected = [edge + 60 * ahead + 1 for ahead in range(5)]
        assert expected == pytest.approx(sorted(lives.values()), abs=2)

    @settings(max_examples=25)
    @given(
        wishes=st.lists(st.floats(0, 2_000), min_size=1, max_size=120),
        floor=st.floats(0, 0.2),
        attempts=st.integers(0, 200),
    )
    def test_no_window_gets_more_than_its_room(
        self, redis_server: EmbeddedServer, wishes: list[float], floor: float, attempts: int
    ) -> None:
        """Whatever retries wish for, in whatever order, no window has more of them than room, and none comes early."""
        budget = RetryBudget(ratio=0.2, floor_per_second=floor, window_seconds=100)
        with store_at(redis_server.url) as store:
            store.command("FLUSHALL")
            note_attempts(store, attempts, window_ms=budget.window_ms)
            spent = [RetryBudgets(store).spend(TASK, budget, wish) for wish in wishes]
            begin = store.keys.retries(TASK)
            with client_at(redis_server.url) as client:
                counted = Counter({key: int(client.get(key) or 0) for key in keys_of(client) if key.startswith(begin)})

        assert len(wishes) == counted.total()
        assert max(counted.values()) <= budget.room(attempts)
        assert all(one.put_off_seconds >= 0 for one in spent)

    def test_a_long_storm(self, store: Store, budgets: RetryBudgets) -> None:
        """With thousands of full windows ahead, a place is found in a few looks."""
        second = RetryBudget(ratio=0, floor_per_second=0, window_seconds=1)
        full = math.floor(redis_now(store)) + 1_000
        store.pipeline([("SET", f"{store.keys.retries(TASK)}{full + ahead}", 1) for ahead in range(5_000)])
        before = store.command("INFO", "commandstats")["cmdstat_get"]["calls"]

        put_off = budgets.spend(TASK, second, full - redis_now(store) + 0.5).put_off_seconds

        looks = store.command("INFO", "commandstats")["cmdstat_get"]["calls"] - before
        assert 5_000 == pytest.approx(put_off, abs=2)
        assert looks < 40


class TestCounting:
    @pytest.fixture
    def transit(self, redis_url: str) -> Iterator[Transit]:
        """Give the shop's messages."""
        with transit_at(redis_url) as transit:
            yield transit

    def begin(self, transit: Transit, task_id: str, counting: str) -> Start:
        """Begin a task as an agent does."""
        lease = transit.lease(holder_named("a"), f"letter {task_id} {time.monotonic_ns()}")
        record = advance_arguments(TaskState.RUNNING, ttl_seconds=60, name=TASK)
        return start(transit.store, lease, task_id, once=False, followed=False, record=record, counting=counting)[0]

    def test_first_attempts(self, transit: Transit) -> None:
        """Each start that is to be counted is, in its window, and the counter lives as long as it's of use."""
        budgets = RetryBudgets(transit.store)
        for number in range(3):
            assert Start.STARTED is self.begin(transit, str(number), budgets.counting(TASK, HOUR))

        window = math.floor(redis_now(transit.store) / 3600)
        key = f"{transit.keys.first_attempts(TASK)}{window}"
        assert b"3" == transit.client.get(key)
        assert 7_190 < transit.client.ttl(key) <= 7_200

    def test_others_cost_nothing(self, transit: Transit) -> None:
        """A start that isn't to be counted leaves no key behind."""
        self.begin(transit, "1", "")

        assert not [key for key in keys_of(transit.client) if "first_attempts" in key]

    def test_names_with_spaces(self, transit: Transit) -> None:
        """A task may be called whatever it likes."""
        budgets = RetryBudgets(transit.store)
        self.begin(transit, "1", budgets.counting("a task: {x} é", HOUR))

        (key,) = (key for key in keys_of(transit.client) if "first_attempts" in key)
        assert key.startswith(transit.keys.first_attempts("a task: {x} é"))

    def test_moved_leases_do_not_count(self, transit: Transit) -> None:
        """What isn't begun isn't counted."""
        holder = holder_named("a")
        lease = transit.lease(holder, "letter")
        transit.give_back(holder)
        record = advance_arguments(TaskState.RUNNING, ttl_seconds=60)
        counting = RetryBudgets(transit.store).counting(TASK, HOUR)

        verdict = start(transit.store, lease, "1", once=False, followed=False, record=record, counting=counting).verdict

        assert Start.MOVED is verdict
        assert not [key for key in keys_of(transit.client) if "first_attempts" in key]


class TestPutOff:
    def test_told_once_in_a_window(self, store: Store, caplog: pytest.LogCaptureFixture) -> None:
        """The log says when a budget bites: once in a window for each task, with how many retries it put off."""
        clock = FrozenClock()
        budgets = RetryBudgets(store, now=clock)
        wish = away_from_the_edge(store, HOUR)
        for _ in range(15):
            budgets.put_off_seconds(TASK, HOUR, wish)
        assert 1 == caplog.text.count("retry put off")

        clock.advance(HOUR.window_seconds)
        budgets.put_off_seconds(TASK, HOUR, wish)

        told: Any = [record.msg for record in caplog.records]
        assert [1, 5] == [one["count"] for one in told]
        assert (TASK, 0.003) == (told[0]["task"], told[0]["rate_per_second"])
        assert told[0]["seconds"] > 0

    def test_without_redis(self, caplog: pytest.LogCaptureFixture) -> None:
        """A budget that can't be asked puts nothing off, and the log says so."""
        with store_at("redis://127.0.0.1:1/0") as away:
            budgets = RetryBudgets(away)

            assert 0.0 == budgets.put_off_seconds(TASK, HOUR, 5.0)
            assert "retry budget not asked" in caplog.text
            with pytest.raises(BrokerUnavailableError):
                budgets.spend(TASK, HOUR, 5.0)
