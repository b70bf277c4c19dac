"""Whatever is reported in whatever order, by however many at once, a record holds together."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.embedded import EmbeddedServer
from orchestra.state import LEGAL, StateManager
from orchestra.store import Store
from orchestra.types import Cancelled, TaskRecord, TaskState
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


@pytest.fixture(scope="module")
def lasting_store(redis_server: EmbeddedServer) -> Iterator[Store]:
    """Give a store for many examples, each of which has a task id of its own."""
    with store_at(redis_server.url) as store:
        yield store


class TestNotes:
    @given(note=st.text(st.characters(), max_size=600), place=st.integers(0, 600))
    def test_no_note_breaks_a_record(self, lasting_store: Store, note: str, place: int) -> None:
        """Whatever an error says, separators and broken characters too, its record can be read."""
        states, task_id = manager_of(lasting_store), uuid4().hex
        publish(lasting_store, task_id)
        states.advance(task_id, RUNNING, agent="text@a", note=f"{note[:place]}\x1f\x1e{note[place:]}")
        states.advance(task_id, FAILED, agent="text@a", note=f"\x1e{note}\ud800\x1f")

        record = states.read(task_id)

        assert [SUBMITTED, RUNNING, FAILED] == states_of(record)
        assert record is not None
        assert all(entry.note is None or not {"\x1f", "\x1e"} & set(entry.note) for entry in record.history)

    def test_note_is_kept_as_it_is(self, store: Store, states: StateManager) -> None:
        """An ordinary note in any language stays as it was written."""
        publish(store, "1")
        states.advance("1", FAILED, note="ValueError: 'für 文' isn't\na number")

        record = states.read("1")
        assert record is not None
        assert "ValueError: 'für 文' isn't\na number" == record.error

    def test_long_note_is_cut(self, store: Store, states: StateManager) -> None:
        """A record isn't the place for a novel."""
        publish(store, "1")
        states.advance("1", FAILED, note="x" * 10_000)

        record = states.read("1")
        assert record is not None
        assert "x" * 500 == record.error


class TestCancel:
    @pytest.mark.parametrize("attempt", [1, 2])
    def test_waiting_task_is_cancelled(self, store: Store, states: StateManager, attempt: int) -> None:
        """A task that waits for its first attempt or for a further one can be cancelled."""
        for number in range(1, attempt + 1):
            publish(store, "1", attempt=number)

        assert (Cancelled.WAITING, "") == states.cancel("1", note="by its submitter")

        record = states.read("1")
        assert record is not None
        assert (CANCELLED, attempt, "by its submitter") == (record.state, record.attempt, record.history[-1].note)
        assert record.finished_at is not None

    def test_running_task_is_cancelled(self, store: Store, states: StateManager) -> None:
        """A task that runs is cancelled, and the caller learns on which agent."""
        publish(store, "1")
        states.advance("1", RUNNING, agent="text@a")

        assert (Cancelled.RUNNING, "text@a") == states.cancel("1")

        assert CANCELLED is states.advance("1", SUCCEEDED, agent="text@a")

    @pytest.mark.parametrize("end", ENDS)
    def test_finished_task_stays(self, store: Store, states: StateManager, end: TaskState) -> None:
        """A finished task isn't cancelled any more."""
        publish(store, "1")
        states.advance("1", end)

        told = Cancelled.BEFORE if end is CANCELLED else Cancelled.FINISHED
        assert (told, "") == states.cancel("1")

    def test_unknown_task_is_none(self, store: Store, states: StateManager) -> None:
        """What isn't known can't be cancelled, and nothing is written down."""
        assert (Cancelled.UNKNOWN, "") == states.cancel("1")

        assert [] == store.command("KEYS", "*")

    def test_cancelled_task_does_not_start(self, store: Store, states: StateManager) -> None:
        """An agent that takes up a cancelled task learns that it was cancelled."""
        publish(store, "1")
        states.cancel("1")

        assert CANCELLED is states.advance("1", RUNNING, agent="text@a")

    def test_retry_of_a_cancelled_task(self, store: Store, states: StateManager) -> None:
        """A retry of a task that was cancelled while it ran isn't published; its first attempt may be, anew."""
        publish(store, "1")
        states.advance("1", RUNNING, agent="text@a")
        states.cancel("1")
        before = states.read("1")

        assert 2 == publish(store, "1", attempt=2)

        assert (before, 1) == (states.read("1"), store.command("LLEN", "shop:nlp"))
        assert 1 == publish(store, "1")
        assert [SUBMITTED] == states_of(states.read("1"))

    def test_new_publish_opens_it_again(self, store: Store, states: StateManager) -> None:
        """A task that is published anew after it finished begins a new life, without the old one's traces."""
        publish(store, "1")
        states.advance("1", RUNNING, agent="text@a")
        states.advance("1", FAILED, agent="text@a", note="ValueError: no")

        publish(store, "1", attempt=2)

        record = states.read("1")
        assert record is not None
        assert [SUBMITTED] == states_of(record)
        assert (None, None, None, None) == (record.agent, record.error, record.started_at, record.finished_at)
        assert RUNNING is states.advance("1", RUNNING, attempt=2)


def together(*steps: Callable[[], object]) -> Sequence[object]:
    """Do all steps at once, each in a thread."""
    barrier = Barrier(len(steps))

    def at_once(step: Callable[[], object]) -> object:
        barrier.wait(timeout=30)
        return step()

    with ThreadPoolExecutor(len(steps)) as pool:
        return list(pool.map(at_once, steps))


class TestConcurrency:
    def test_one_of_many_ends_wins(self, lasting_store: Store) -> None:
        """Of ends reported at the same moment one stands, and all who reported learn which."""
        states = manager_of(lasting_store)
        for _ in range(20):
            task_id = uuid4().hex
            publish(lasting_store, task_id)

            told = together(*(partial(states.advance, task_id, end, agent=f"a{end}") for end in (*ENDS, *ENDS)))

            record = states.read(task_id)
            assert record is not None
            assert [SUBMITTED, record.state] == states_of(record)
            assert {record.state} == set(told)
            assert record.agent == record.history[-1].agent

    def test_cancel_and_start_know_of_each_other(self, lasting_store: Store) -> None:
        """Of a task that is cancelled while an agent takes it up, either the agent hears of it, or who cancels does."""
        states = manager_of(lasting_store)
        for _ in range(40):
            task_id = uuid4().hex
            publish(lasting_store, task_id)

            started, cancelled = together(
                partial(states.advance, task_id, RUNNING, agent="text@a"), partial(states.cancel, task_id)
            )

            record = states.read(task_id)
            assert record is not None
            assert CANCELLED is record.state
            assert (started, cancelled) in {
                (RUNNING, (Cancelled.RUNNING, "text@a")),
                (CANCELLED, (Cancelled.WAITING, "")),
            }


attempts = st.integers(1, 3)
publishes = st.tuples(st.just("publish"), st.just(SUBMITTED), attempts)
advances = st.tuples(st.just("advance"), st.sampled_from(TaskState), st.integers(0, 3))
cancels = st.tuples(st.just("cancel"), st.just(CANCELLED), st.just(0))


class TestEveryLife:
    @given(st.lists(st.one_of(publishes, advances, cancels), max_size=15))
    def test_moves_forward_only(self, lasting_store: Store, steps: list[tuple[str, TaskState, int]]) -> None:
        """
        Whatever is reported in whatever order, no finished task moves but by a new publish, and no late attempt wins.

        A step is compared with what DESIGN promises of it: the state that stands is the one returned, a refused step
        leaves no trace, and the history only grows.
        """
        states, task_id = manager_of(lasting_store), uuid4().hex
        for step, state, attempt in steps:
            before = states.read(task_id)
            if step == "publish":
                publish(lasting_store, task_id, attempt=attempt)
                check_publish(before, states.read(task_id), attempt)
                continue
            if step == "cancel":
                what, _ = states.cancel(task_id)
                check_cancel(before, states.read(task_id), what)
                continue
            told = states.advance(task_id, state, agent="text@a", attempt=attempt, note="why")
            check_advance(before, states.read(task_id), told, state, attempt)


def check_publish(before: TaskRecord | None, after: TaskRecord | None, attempt: int) -> None:
    """Hold a publish against its rules."""
    assert after is not None
    if before is not None and before.state is CANCELLED and attempt > 1:
        assert before == after
        return
    assert attempt == after.attempt
    if before is None or before.state.finished:
        assert [SUBMITTED] == states_of(after)
    else:
        assert before.history == after.history[:-1]
        assert (RETRYING if attempt > 1 else SUBMITTED) is after.state


def check_cancel(before: TaskRecord | None, after: TaskRecord | None, what: Cancelled) -> None:
    """Hold a cancellation against its rules."""
    assert bool(what) == (after is not None and after.state is CANCELLED)
    if before is None or before.state.finished:
        assert before == after
        return
    assert after is not None
    assert (before.history, before.attempt) == (after.history[:-1], after.attempt)
    assert (what is Cancelled.RUNNING) == (before.state is RUNNING)
    assert after.finished_at is not None


def check_advance(
    before: TaskRecord | None, after: TaskRecord | None, told: TaskState | None, state: TaskState, attempt: int
) -> None:
    """Hold a change against its rules."""
    assert told == (None if after is None else after.state)
    standing = None if before is None else before.state
    late = before is not None and 0 < attempt < before.attempt
    legal = standing in LEGAL[state]
    if legal and not late:
        assert after is not None
        assert (state, attempt or (before.attempt if before else 1)) == (after.state, after.attempt)
        assert (before.history if before else ()) == after.history[:-1]
        assert after.state.finished == (after.finished_at is not None)
    elif late and before is not None and (state, standing, attempt) == (RETRYING, RETRYING, before.attempt - 1):
        assert after is not None
        assert ("why", states_of(before)) == (after.error, states_of(after))
    else:
        assert before == after
