"""Cancelling: what a task was doing, what is told of it, and how a task asks whether that has happened."""

import json
from collections.abc import Iterator

import pytest
from celery.exceptions import TaskRevokedError
from redis import Redis

from orchestra.cancellation import LOOK_SECONDS, Look, StoredResult, cancel_task
from orchestra.leases import Lease
from orchestra.orchestra import Orchestra
from orchestra.store import Store, text_of
from orchestra.types import Cancelled, TaskState
from tests.fleets import app_at, commands_at
from tests.processes import until
from tests.stores import manager_of, publish, store_at
from tests.transit import QUEUE, Transit, holder_named, transit_at


@pytest.fixture
def transit(redis_url: str) -> Iterator[Transit]:
    """Give the shop's messages."""
    with transit_at(redis_url) as transit:
        yield transit


def message_of(task_id: str, *, padding: int = 0) -> str:
    """Write a message as kombu does."""
    return json.dumps({"body": "x" * padding, "headers": {"root_id": "0", "id": task_id, "parent_id": "2"}})


def cancelled(store: Store, task_id: str, result: StoredResult | None = None) -> Cancelled:
    """Cancel a task; return what it was doing."""
    return cancel_task(store, task_id, note="why", ttl_seconds=60, result=result).what


class TestWhatItWasDoing:
    def test_waiting(self, transit: Transit) -> None:
        """A message that nobody has fetched stays where it is; the record says that its task is cancelled."""
        publish(transit.store, "1", message=message_of("1"), queue=QUEUE)

        assert Cancelled.WAITING is cancelled(transit.store, "1")

        assert [message_of("1")] == transit.waiting()
        record = manager_of(transit.store).read("1")
        assert record is not None
        assert (TaskState.CANCELLED, "why") == (record.state, record.history[-1].note)

    def test_delayed(self, transit: Transit) -> None:
        """A task that waits for its time is delayed; once that is past, it waits in its queue or is leased."""
        note = "not before 2100-01-01T00:00:00+00:00"
        publish(transit.store, "1", queue=QUEUE, due=f"{transit.now() + 3600:.6f}", note=note)
        publish(transit.store, "2", queue=QUEUE, due=f"{transit.now() - 1:.6f}", note=note)

        assert Cancelled.DELAYED is cancelled(transit.store, "1")
        assert Cancelled.WAITING is cancelled(transit.store, "2")

    @pytest.mark.parametrize("ended", [False, True])
    def test_a_retry(self, transit: Transit, ended: bool) -> None:
        """A retry is delayed while it waits, and no longer once its next publish has come without a delay."""
        publish(transit.store, "1", queue=QUEUE)
        manager_of(transit.store).advance("1", TaskState.RUNNING)
        publish(transit.store, "1", queue=QUEUE, attempt=2, due=f"{transit.now() + 3600:.6f}")
        if ended:
            publish(transit.store, "1", queue=QUEUE, attempt=3)

        assert (Cancelled.WAITING if ended else Cancelled.DELAYED) is cancelled(transit.store, "1")

    @pytest.mark.parametrize("task_id", ["1", 'ä "quoted" id'])
    def test_leased(self, transit: Transit, task_id: str) -> None:
        """A task that an agent has fetched and not begun is leased, and isn't begun any more."""
        for number in ("9", task_id, "8"):
            publish(transit.store, number, message=message_of(number), queue=QUEUE)
        holder = holder_named("a")
        transit.messages(holder)

        assert Cancelled.LEASED is cancelled(transit.store, task_id)

        transit.start(Lease("a", 2, QUEUE), task_id)
        assert "cancelled" == text_of(transit.client.hget(transit.keys.task(task_id), "state"))

    def test_leased_by_many(self, transit: Transit) -> None:
        """What is looked through for that is bounded: beyond it, a leased task counts as waiting."""
        holder = holder_named("a")
        for number in range(10):
            publish(transit.store, str(number), message=message_of(str(number), padding=200_000), queue=QUEUE)
        transit.messages(holder)

        assert [Cancelled.LEASED, Cancelled.WAITING] == [cancelled(transit.store, one) for one in ("0", "8")]

    def test_running(self, transit: Transit) -> None:
        """A running task is cancelled as well, and its agent named."""
        publish(transit.store, "1")
        manager_of(transit.store).advance("1", TaskState.RUNNING, agent="text@a")

        found = cancel_task(transit.store, "1", note="", ttl_seconds=60, result=None)

        assert (Cancelled.RUNNING, "text@a") == found

    @pytest.mark.parametrize("end", [TaskState.SUCCEEDED, TaskState.FAILED, TaskState.EXPIRED])
    def test_finished(self, transit: Transit, end: TaskState) -> None:
        """A task that has ended stays as it is, result included."""
        publish(transit.store, "1")
        manager_of(transit.store).advance("1", end)

        assert Cancelled.FINISHED is cancelled(transit.store, "1", StoredResult("result-1", "{}", 0))

        assert not transit.client.exists("result-1")
        assert text_of(transit.client.hget(transit.keys.task("1"), "state")) == end

    def test_truth(self) -> None:
        """An answer is true where the task is cancelled now."""
        assert {Cancelled.FINISHED, Cancelled.UNKNOWN} == {one for one in Cancelled if not one}


class TestCost:
    def test_does_not_depend_on_the_backlog(self, redis_url: str) -> None:
        """A cancellation is one command, and carries out as many of them in front of a long queue as of a short one."""
        counts = []
        with app_at(redis_url) as app:
            app.task(name="shop.index", shared=False)(_index)
            orchestra = Orchestra(app)
            for backlog in (1, 2000):
                handles = orchestra.submit_many("shop.index", [{}] * backlog)
                handles[0].cancel()  # which connects
                with commands_at(redis_url) as commands:
                    assert Cancelled.WAITING is orchestra.submit("shop.index", {}).cancel()
                counts.append([command.split()[0] for command in commands])

        assert [["EVALSHA", "EVALSHA"]] * 2 == counts


def _index() -> None: ...


class TestResult:
    @pytest.mark.parametrize(("seconds", "ttl"), [(60, 60), (0, -1)])
    def test_is_stored_in_the_same_step(self, transit: Transit, seconds: int, ttl: int) -> None:
        """Whoever waits hears of the cancellation, which doesn't depend on the canceller living on."""
        publish(transit.store, "1")

        with transit.client.pubsub(ignore_subscribe_messages=True) as heard:
            heard.subscribe("result-1")
            heard.get_message(timeout=5)
            cancelled(transit.store, "1", StoredResult("result-1", '{"status": "REVOKED"}', seconds))
            told = heard.get_message(timeout=5)

        assert told is not None
        assert told["data"] == transit.client.get("result-1") == b'{"status": "REVOKED"}'
        assert ttl == transit.client.ttl("result-1")

    @pytest.mark.parametrize("end", ["mark_as_done", "mark_as_failure", "mark_as_retry"])
    def test_stands(self, redis_url: str, end: str) -> None:
        """What a task returns or raises after it was cancelled is not its result."""
        with app_at(redis_url) as app:
            app.task(name="shop.index", shared=False)(_index)
            handle = Orchestra(app).submit("shop.index", {})
            app.state.advance(handle.id, TaskState.RUNNING)
            handle.cancel()
            getattr(app.backend, end)(handle.id, ValueError("late") if end != "mark_as_done" else 7)

            assert TaskState.CANCELLED is handle.state
            with pytest.raises(TaskRevokedError):
                handle.get(timeout=5)

    def test_elsewhere(self, redis_url: str) -> None:
        """Where results are kept elsewhere, the waiter's answer follows the record."""
        with app_at(redis_url, backend="cache+memory://") as app:
            app.task(name="shop.index", shared=False)(_index)
            handle = Orchestra(app).submit("shop.index", {})

            assert Cancelled.WAITING is handle.cancel()

            with pytest.raises(TaskRevokedError):
                handle.get(timeout=5)


class TestLook:
    @pytest.fixture
    def store(self, redis_url: str) -> Iterator[Store]:
        """Give the shop's store."""
        with store_at(redis_url) as store:
            yield store

    def test_sees_it(self, store: Store) -> None:
        """It's seen within a second, and stays so."""
        publish(store, "1")
        look = Look(store, "1")
        assert not look()
        cancelled(store, "1")

        until(look, seconds=20)
        store.command("FLUSHALL")
        assert look()

    def test_asks_once_a_second(self, store: Store, redis_url: str) -> None:
        """A task may look as often as it likes: Redis is asked once a second at most."""
        look = Look(store, "1")
        look()
        asked_at = look.looked_at
        assert asked_at is not None
        with commands_at(redis_url) as commands:
            looks = [look() for _ in range(1000)]
            again = look.looked_at != asked_at

        assert 1000 == len(looks)
        assert again or [] == commands
        assert 0 < LOOK_SECONDS

    def test_without_redis(self, caplog: pytest.LogCaptureFixture) -> None:
        """A Redis that is away tells of nothing, and ends no task."""
        with store_at("redis://127.0.0.1:1/0") as store:
            assert not Look(store, "1")()

        assert "cancellation not looked up" in caplog.text


class TestNothingToCancel:
    def test_eager(self, redis_url: str) -> None:
        """An eager task is done already, so there is nothing to cancel."""
        with app_at(redis_url, changes={"task_always_eager": True}) as app:
            app.task(name="shop.index", shared=False)(_index)

            assert Cancelled.FINISHED is Orchestra(app).submit("shop.index", {}).cancel()

    def test_other_fleets(self, redis_url: str) -> None:
        """Two apps on one Redis don't cancel each other's tasks."""
        with app_at(redis_url) as app, app_at(redis_url, main="bank") as other, Redis.from_url(redis_url) as client:
            app.task(name="shop.index", shared=False)(_index)
            handle = Orchestra(app).submit("shop.index", {})

            assert Cancelled.UNKNOWN is Orchestra(other).cancel(handle.id)
            assert not client.exists(f"celery-task-meta-{handle.id}")
