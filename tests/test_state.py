"""A task's life is written down, and moves forward only."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from orchestra.state import LEGAL, StateManager, advance_arguments
from orchestra.store import Store
from orchestra.types import TaskRecord, TaskState
from tests.stores import manager_of, publish, states_of, store_at

SUBMITTED, RUNNING, RETRYING = TaskState.SUBMITTED, TaskState.RUNNING, TaskState.RETRYING
SUCCEEDED, FAILED, CANCELLED, EXPIRED = TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED
ENDS = (SUCCEEDED, FAILED, CANCELLED, EXPIRED)


@pytest.fixture
def store(redis_url: str) -> Iterator[Store]:
    """Give the shop's store over an empty Redis."""
    with store_at(redis_url) as store:
        yield store


@pytest.fixture
def states(store: Store) -> StateManager:
    """Give the records of the shop's tasks."""
    return manager_of(store)


def redis_time(store: Store) -> datetime:
    """Ask the server what time it is."""
    seconds, micros = store.command("TIME")
    return datetime.fromtimestamp(int(seconds) + int(micros) / 1e6, UTC)


class TestRead:
    def test_unknown_id_is_none(self, states: StateManager) -> None:
        """Nothing is known of an id that was never submitted, which is not the same as waiting."""
        assert states.read("7c9e") is None

    def test_many_come_in_the_order_asked_for(self, store: Store, states: StateManager) -> None:
        """Records come in the order of the ids, with a gap where nothing is known."""
        publish(store, "1", name="shop.index")
        publish(store, "3", name="shop.mail")

        first, second, third = states.read_many(["3", "2", "1"])

        assert first is not None
        assert second is None
        assert third is not None
        assert ("shop.mail", "shop.index") == (first.name, third.name)

    def test_none_asked_for_none_given(self, states: StateManager) -> None:
        """No ids, no records."""
        assert [] == states.read_many([])

    def test_submitted_record_tells_what_the_publish_knew(self, store: Store, states: StateManager) -> None:
        """A submitted task's record has its name, queue, requirement and time, and nothing of what hasn't happened."""
        publish(store, "1", name="shop.index", queue="shop:gpu+mem_gb~ge~16", suffix="gpu+mem_gb~ge~16")

        record = states.read("1")

        assert record is not None
        assert record.submitted_at is not None
        assert record == TaskRecord(
            task_id="1",
            name="shop.index",
            requires="gpu,mem_gb>=16",
            queue="shop:gpu+mem_gb~ge~16",
            state=SUBMITTED,
            attempt=1,
            submitted_at=record.submitted_at,
            history=record.history,
        )

    def test_whole_life_is_told_in_order(self, store: Store, states: StateManager) -> None:
        """The history has every state in the order it came, with time, agent, attempt and note."""
        publish(store, "1", note="not before noon")
        states.advance("1", RUNNING, agent="text@a")
        publish(store, "1", attempt=2)
        states.advance("1", RUNNING, agent="text@b", attempt=2)
        states.advance("1", SUCCEEDED, agent="text@b", attempt=2)

        record = states.read("1")

        assert record is not None
        assert [
            (SUBMITTED, None, 1, "not before noon"),
            (RUNNING, "text@a", 1, None),
            (RETRYING, None, 2, None),
            (RUNNING, "text@b", 2, None),
            (SUCCEEDED, "text@b", 2, None),
        ] == [(entry.state, entry.agent, entry.attempt, entry.note) for entry in record.history]
        times = [entry.at for entry in record.history]
        assert sorted(times) == times
        assert (times[0], times[3], times[4]) == (record.submitted_at, record.started_at, record.finished_at)
        assert ("text@b", 2) == (record.agent, record.attempt)

    def test_times_are_the_servers(self, store: Store, states: StateManager) -> None:
        """All times are by Redis's clock, in UTC."""
        before = redis_time(store)
        publish(store, "1")
        states.advance("1", RUNNING, agent="text@a")
        states.advance("1", FAILED, agent="text@a", note="ValueError: no")
        after = redis_time(store)

        record = states.read("1")

        assert record is not None
        assert record.submitted_at is not None
        assert record.started_at is not None
        assert record.finished_at is not None
        assert before <= record.submitted_at < record.started_at < record.finished_at <= after
        assert UTC is record.submitted_at.tzinfo

    @pytest.mark.parametrize(
        ("note", "until"),
        [
            ("not before 2030-01-02T03:04:05.678+00:00", datetime(2030, 1, 2, 3, 4, 5, 678_000, UTC)),
            ("not before 2030-01-02T03:04:05+02:00", datetime(2030, 1, 2, 3, 4, 5, 0, timezone(timedelta(hours=2)))),
            ("not before 2030-01-02T03:04:05", datetime(2030, 1, 2, 3, 4, 5, 0, UTC)),
            ("not before noon", None),
            ("", None),
        ],
    )
    def test_delay(self, store: Store, states: StateManager, note: str, until: datetime | None) -> None:
        """A delayed task's record tells the time that it waits for, by the publish's note; without a zone it's UTC."""
        publish(store, "1", note=note)

        record = states.read("1")

        assert record is not None
        assert until == record.not_before
        assert until is None or until.utcoffset() == (record.not_before or until).utcoffset()

    def test_delay_is_over(self, store: Store, states: StateManager) -> None:
        """A task that has started or ended waits for nothing, until it's to be tried again after a while."""
        moment = datetime(2030, 1, 2, tzinfo=UTC)
        publish(store, "1", note=f"not before {moment.isoformat()}")
        states.advance("1", RUNNING)

        running = states.read("1")
        publish(store, "1", attempt=2, note=f"not before {moment.isoformat()}")
        states.advance("1", RETRYING, attempt=1, note="TimeoutError: not before; 2040-01-01")
        retrying = states.read("1")

        assert running is not None
        assert retrying is not None
        assert (None, moment) == (running.not_before, retrying.not_before)
        states.advance("1", CANCELLED, attempt=2, note=f"not before {moment.isoformat()}")
        cancelled = states.read("1")
        assert cancelled is not None
        assert cancelled.not_before is None

    def test_is_by_the_fleet(self, store: Store, states: StateManager, redis_url: str) -> None:
        """Two apps on one Redis do not see each other's tasks."""
        publish(store, "1")

        with store_at(redis_url, fleet="bank") as other:
            assert manager_of(other).read("1") is None
        assert states.read("1") is not None


class TestAdvance:
    @pytest.mark.parametrize("state", [RUNNING, RETRYING, *ENDS])
    def test_open_task_moves(self, store: Store, states: StateManager, state: TaskState) -> None:
        """A task that isn't finished goes where the news say."""
        publish(store, "1")

        assert state is states.advance("1", state, agent="text@a")

        assert [SUBMITTED, state] == states_of(states.read("1"))

    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize("state", list(TaskState))
    def test_finished_task_stays(self, store: Store, states: StateManager, end: TaskState, state: TaskState) -> None:
        """Late or doubled news never move a finished task, and the caller learns what stands."""
        publish(store, "1")
        states.advance("1", end, agent="text@a")
        before = states.read("1")

        assert end is states.advance("1", state, agent="text@b", attempt=9, note="too late")

        assert before == states.read("1")

    def test_submitted_never_comes_back(self, store: Store, states: StateManager) -> None:
        """Only a publish makes a task submitted again."""
        publish(store, "1")
        states.advance("1", RUNNING)

        assert RUNNING is states.advance("1", SUBMITTED)

    def test_unknown_task_is_taken_up(self, states: StateManager) -> None:
        """News of a task that a stock producer sent, or whose record was lost, open a record with what is known."""
        assert RUNNING is states.advance("1", RUNNING, agent="text@a", name="shop.index")

        record = states.read("1")
        assert record is not None
        assert ("shop.index", "", "", None) == (record.name, record.queue, record.requires, record.submitted_at)

    def test_flushed_server_is_healed_by_the_next_news(self, store: Store, states: StateManager) -> None:
        """A record that was lost with the server's memory comes back with the next thing that happens."""
        publish(store, "1")
        states.advance("1", RUNNING, agent="text@a", name="shop.index")
        store.command("FLUSHALL")

        assert SUCCEEDED is states.advance("1", SUCCEEDED, agent="text@a")

        record = states.read("1")
        assert record is not None
        assert SUCCEEDED is record.state

    def test_unknown_task_may_be_written_down_as_submitted(self, states: StateManager) -> None:
        """A task that was submitted elsewhere is submitted, not finished."""
        assert SUBMITTED is states.advance("1", SUBMITTED, name="shop.index")

        record = states.read("1")
        assert record is not None
        assert record.submitted_at is not None
        assert record.finished_at is None

    def test_name_of_the_publish_stands(self, store: Store, states: StateManager) -> None:
        """A name given with news is for unknown tasks alone."""
        publish(store, "1", name="shop.index")

        states.advance("1", RUNNING, name="else")

        record = states.read("1")
        assert record is not None
        assert "shop.index" == record.name

    def test_late_attempt_never_wins(self, store: Store, states: StateManager) -> None:
        """What an earlier attempt reports after the next one was published changes nothing."""
        publish(store, "1")
        states.advance("1", RUNNING, agent="text@a")
        publish(store, "1", attempt=2)
        states.advance("1", RUNNING, agent="text@b", attempt=2)
        before = states.read("1")

        for state in (RUNNING, RETRYING, *ENDS):
            assert RUNNING is states.advance("1", state, agent="text@a", attempt=1, note="late")

        assert before == states.read("1")

    def test_attempt_zero_is_the_one_under_way(self, store: Store, states: StateManager) -> None:
        """Who doesn't know the attempt reports for the one that stands."""
        publish(store, "1")
        publish(store, "1", attempt=2)

        assert FAILED is states.advance("1", FAILED, attempt=0)

        record = states.read("1")
        assert record is not None
        assert (2, 2) == (record.attempt, record.history[-1].attempt)

    def test_attempt_zero_of_an_unknown_task_is_the_first(self, states: StateManager) -> None:
        """Attempts count from 1."""
        states.advance("1", FAILED, attempt=0)

        record = states.read("1")
        assert record is not None
        assert 1 == record.attempt

    def test_redelivery_starts_again(self, store: Store, states: StateManager) -> None:
        """A task whose agent was lost starts again elsewhere within the same attempt."""
        publish(store, "1")
        states.advance("1", RUNNING, agent="text@a")

        assert RUNNING is states.advance("1", RUNNING, agent="text@b")

        record = states.read("1")
        assert record is not None
        assert ("text@b", record.history[-1].at) == (record.agent, record.started_at)

    def test_agent_stays_when_nobody_in_particular_reports(self, store: Store, states: StateManager) -> None:
        """News without an agent leave the last one standing."""
        publish(store, "1")
        states.advance("1", RUNNING, agent="text@a")
        states.advance("1", FAILED)

        record = states.read("1")
        assert record is not None
        assert "text@a" == record.agent
        assert record.history[-1].agent is None


class TestError:
    def test_failure_says_why(self, store: Store, states: StateManager) -> None:
        """The note of a failure is the record's error."""
        publish(store, "1")
        states.advance("1", FAILED, note="ValueError: no")

        record = states.read("1")
        assert record is not None
        assert "ValueError: no" == record.error == record.history[-1].note

    def test_retry_is_explained_after_its_publish(self, store: Store, states: StateManager) -> None:
        """A retry's reason, which its agent tells after publishing it, is joined to the retry."""
        publish(store, "1")
        states.advance("1", RUNNING)
        publish(store, "1", attempt=2, note="not before noon")

        assert RETRYING is states.advance("1", RETRYING, attempt=1, note="TimeoutError: slow")

        record = states.read("1")
        assert record is not None
        assert "TimeoutError: slow" == record.error
        assert [SUBMITTED, RUNNING, RETRYING] == states_of(record)
        assert "not before noon; TimeoutError: slow" == record.history[-1].note

    def test_explanation_is_the_note_where_there_is_none(self, store: Store, states: StateManager) -> None:
        """A retry without a note of its own has its reason as the note."""
        publish(store, "1")
        publish(store, "1", attempt=2)
        states.advance("1", RETRYING, attempt=1, note="TimeoutError: slow")

        record = states.read("1")
        assert record is not None
        assert "TimeoutError: slow" == record.history[-1].note

    def test_earlier_retry_is_not_explained_again(self, store: Store, states: StateManager) -> None:
        """The reason of an attempt long past doesn't stand for the latest one."""
        for attempt in (1, 2, 3):
            publish(store, "1", attempt=attempt)
        states.advance("1", RETRYING, attempt=2, note="second")

        states.advance("1", RETRYING, attempt=1, note="first")

        record = states.read("1")
        assert record is not None
        assert "second" == record.error == record.history[-1].note

    @pytest.mark.parametrize("state", [RUNNING, SUCCEEDED, CANCELLED])
    def test_task_that_went_on_has_no_error(self, store: Store, states: StateManager, state: TaskState) -> None:
        """An error is that of a failure or of a retry to come; what went on after it has none."""
        publish(store, "1")
        publish(store, "1", attempt=2)
        states.advance("1", RETRYING, attempt=1, note="TimeoutError: slow")

        states.advance("1", state, attempt=2)

        record = states.read("1")
        assert record is not None
        assert record.error is None


class TestExpiry:
    def test_every_change_renews_it(self, store: Store, states: StateManager) -> None:
        """A record is kept for its time after its last change, and not for ever."""
        key = store.keys.task("1")
        publish(store, "1", ttl_ms=1_000)
        assert 0 < store.command("PTTL", key) <= 1_000

        states.advance("1", RUNNING)
        assert 1_000 < store.command("PTTL", key) <= 60_000

        store.command("PEXPIRE", key, 1_000)
        states.advance("1", SUBMITTED)  # refused
        assert store.command("PTTL", key) <= 1_000

        states.advance("1", SUCCEEDED)
        publish(store, "1", ttl_ms=90_000)
        assert 60_000 < store.command("PTTL", key) <= 90_000

    def test_record_of_an_unknown_task_expires_too(self, store: Store, states: StateManager) -> None:
        """No record stays for ever, however it came to be."""
        states.advance("1", RUNNING)

        assert 0 < store.command("PTTL", store.keys.task("1")) <= 60_000


class TestAdvanceArguments:
    @pytest.mark.parametrize("state", list(TaskState))
    def test_finished_states_are_never_left(self, state: TaskState) -> None:
        """No legal transition leaves a finished state."""
        assert not {one for one in LEGAL[state] if one is not None and one.finished}

    def test_are_those_of_the_script(self) -> None:
        """A store that advances a record in a script of its own passes the same arguments."""
        arguments = advance_arguments(FAILED, agent="a@h", attempt=2, note="why", name="shop.index", ttl_seconds=1.5)

        assert ["failed", " - submitted running retrying ", "a@h", 2, "why", 1500, "shop.index"] == arguments
