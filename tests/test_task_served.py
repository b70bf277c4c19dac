"""OrchestraTask on an agent: arguments are brought to life, and errors settled."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, SoftTimeLimitExceeded
from redis import Redis

from orchestra.embedded import EmbeddedServer
from orchestra.exceptions import PermanentError, RetryableError, ValidationError
from orchestra.orchestra import Orchestra
from orchestra.types import TaskState
from tests.fleets import agent_of, app_at
from tests.processes import until
from tests.sample_tasks import FAILURES, Document, declare_tasks

REFUSALS: list[Exception | None] = []  # what a publish is refused with, one for each


def _route(name: str, *_: Any, **__: Any) -> None:
    """Route nothing; but raise where a publish is to be refused."""
    refusal = REFUSALS.pop(0) if REFUSALS and name in {"t.strict", "t.once"} else None
    if refusal is not None:
        raise refusal


@pytest.fixture(scope="module")
def served(redis_server: EmbeddedServer) -> Iterator[Any]:
    """Give an app with an agent that serves it; the tests that use it empty no database."""
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    with app_at(redis_server.url, changes={"task_routes": [_route]}) as app:
        declare_tasks(app)
        with agent_of(app):
            yield app


def _states(app: Any, task_id: str) -> list[str]:
    return [entry.state.value for entry in app.state.read(task_id).history]


class TestArguments:
    def test_models_travel_as_json(self, served: Any) -> None:
        """A task gets a model whether it was sent as an instance or as a dictionary, and returns its JSON form."""
        given = Document(title="a", pages=3, on=date(2026, 1, 2))
        expected = {"title": "a", "pages": 3, "on": "2026-01-02"}

        assert expected == served.tasks["t.model"].delay(given).get(timeout=10)
        assert expected == served.tasks["t.model"].delay(document=given.model_dump(mode="json")).get(timeout=10)
        assert expected == Orchestra(served).submit("t.model", {"document": given}).get(timeout=10)

    def test_models_inside_others(self, served: Any) -> None:
        """Lists and mappings of models do as well, in both directions."""
        a, b = Document(title="a"), Document(title="b")

        found = served.tasks["t.nested"].delay([a], by_name={"b": b}).get(timeout=10)

        assert ["a", "b"] == [one["title"] for one in found["all"]]
        assert ["a", 1] == [found["pair"][0]["title"], found["pair"][1]]

    def test_a_wrong_message_fails_with_every_field(self, served: Any) -> None:
        """What a stock producer sent wrongly fails on the agent, before the task's code runs."""
        FAILURES.set()
        with served.connection_for_write() as connection:
            message = served.amqp.as_task_v2("wrong-one", "t.strict", args=("one", 2))
            served.amqp.send_task_message(served.amqp.Producer(connection), "t.strict", message, queue="celery")

        with pytest.raises(ValidationError, match="number"):
            served.AsyncResult("wrong-one").get(timeout=10)
        assert 0 == FAILURES.attempts
        assert "number" in served.state.read("wrong-one").error


class TestSettling:
    def test_retryable_errors(self, served: Any) -> None:
        """Each attempt is written down with its reason; the last one's end is the task's."""
        FAILURES.set(RetryableError("first"), ConnectionError("second"))

        result = served.tasks["t.strict"].delay()

        assert 3 == result.get(timeout=10)
        record = served.state.read(result.id)
        assert (3, "agent@test", None) == (record.attempt, record.agent, record.error)
        assert ["submitted", *["running", "retrying"] * 2, "running", "succeeded"] == _states(served, result.id)
        assert ["RetryableError: first", "ConnectionError: second"] == [
            str(entry.note).rpartition("; ")[2] for entry in record.history if entry.state is TaskState.RETRYING
        ]

    def test_attempts_are_counted(self, served: Any) -> None:
        """After `max_attempts` the error is final."""
        FAILURES.set(*(RetryableError(word) for word in "abcd"))
        result = served.tasks["t.strict"].delay()

        with pytest.raises(RetryableError, match="c"):
            result.get(timeout=10)
        assert 3 == FAILURES.attempts
        record = served.state.read(result.id)
        assert (TaskState.FAILED, "RetryableError: c") == (record.state, record.error)

    @pytest.mark.parametrize(
        ("task", "error", "attempts"),
        [
            ("t.strict", PermanentError("no"), 1),
            ("t.strict", KeyError("no"), 1),
            ("t.strict", SoftTimeLimitExceeded("late"), 2),
            ("t.strict", TimeoutError("late"), 2),
            ("t.loose", ConnectionError("foreign"), 1),
            ("t.loose", SoftTimeLimitExceeded("late"), 1),
            ("t.loose", RetryableError("ours", retry_after=0), 2),
            ("t.listed", KeyError("listed"), 2),
            ("t.listed", ConnectionError("foreign"), 2),
            ("t.never", KeyError("never"), 1),
            ("t.never", IndexError("listed"), 2),
        ],
    )
    def test_by_the_errors_class(self, served: Any, task: str, error: Exception, attempts: int) -> None:
        """A foreign error is tried again only where the task declares a policy; ours says itself what it is."""
        FAILURES.set(error)

        served.tasks[task].delay().get(timeout=10, propagate=False)

        assert attempts == FAILURES.attempts

    def test_memory_errors_are_the_tasks(self, served: Any) -> None:
        """A task that runs out of memory fails, and its agent goes on; Celery would end every worker in turn."""
        FAILURES.set(MemoryError("big"))
        result = served.tasks["t.strict"].delay()

        with pytest.raises(PermanentError, match="out of memory"):
            result.get(timeout=10)
        FAILURES.set()
        assert 1 == served.tasks["t.strict"].delay().get(timeout=10)

    def test_retry_after_is_honoured(self, served: Any) -> None:
        """An error's own wait comes before the backoff."""
        FAILURES.set(RetryableError("busy", retry_after=0.3))

        result = served.tasks["t.strict"].delay()

        assert 2 == result.get(timeout=10)
        record = served.state.read(result.id)
        times = {entry.state: entry.at for entry in record.history}
        retried = next(entry for entry in record.history if entry.state is TaskState.RETRYING)
        assert (times[TaskState.RUNNING] - retried.at).total_seconds() > 0.25
        assert str(retried.note).startswith("not before ")

    def test_hand_made_retries(self, served: Any) -> None:
        """`self.retry` works as in Celery, with new arguments and its own count."""
        result = served.tasks["t.hand"].delay(0)

        assert [2, 2] == result.get(timeout=10)
        assert 3 == served.state.read(result.id).attempt

    def test_hand_made_retries_are_bounded(self, served: Any) -> None:
        """`max_attempts` bounds them too."""
        result = served.tasks["t.hand_out"].delay()

        with pytest.raises(MaxRetriesExceededError):
            result.get(timeout=10)
        assert 2 == served.state.read(result.id).attempt

    def test_autoretry_for_stays(self, served: Any) -> None:
        """A task that retries in Celery's own way does so still."""
        FAILURES.set(ValueError("a"), ValueError("b"))

        assert 3 == served.tasks["t.auto"].delay().get(timeout=10)

    def test_a_retry_that_cannot_be_published(self, served: Any) -> None:
        """The message goes back to its queue, so that the task is neither lost nor failed."""
        FAILURES.set(RetryableError("first"), RetryableError("second"))
        REFUSALS.extend([None, ConnectionError("no publishing now")])

        result = served.tasks["t.strict"].delay()

        assert 3 == result.get(timeout=10)
        assert [] == REFUSALS
        assert ["submitted", "running", "running", "retrying", "running", "succeeded"] == _states(served, result.id)

    @pytest.mark.parametrize(
        ("task", "refusal"),
        [("t.strict", ValidationError("it can never be sent")), ("t.once", ConnectionError("no publishing now"))],
    )
    def test_a_retry_that_cannot_go_back(self, served: Any, task: str, refusal: Exception) -> None:
        """What could never be published, and what runs at most once and is gone from its queue, fails visibly."""
        FAILURES.set(RetryableError("first"))
        REFUSALS.extend([None, refusal])

        result = served.tasks[task].delay()

        with pytest.raises(RetryableError, match="first"):
            result.get(timeout=10)
        assert (1, []) == (FAILURES.attempts, REFUSALS)
        assert TaskState.FAILED is served.state.read(result.id).state

    def test_without_a_bound(self, served: Any) -> None:
        """`max_retries=None` beside our classes of errors tries for ever."""
        FAILURES.set(*(KeyError(number) for number in range(12)))

        assert 13 == served.tasks["t.endless"].delay().get(timeout=20)

    def test_ignored_results_are_recorded(self, served: Any) -> None:
        """A task without a result has a record all the same, good end or bad."""
        FAILURES.set()
        good = served.tasks["t.ignored"].delay()
        until(lambda: served.state.read(good.id).state is TaskState.SUCCEEDED, seconds=10)
        FAILURES.set(KeyError("x"))
        bad = served.tasks["t.ignored"].delay()
        until(lambda: served.state.read(bad.id).state is TaskState.FAILED, seconds=10)

        assert "KeyError: 'x'" == served.state.read(bad.id).error
        assert served.backend.client.get(served.backend.get_key_for_task(good.id)) is None

    def test_expired_tasks(self, served: Any) -> None:
        """A task that expired before it started is cancelled, with Celery's word for it."""
        FAILURES.set()
        result = served.tasks["t.strict"].apply_async(expires=datetime(2020, 1, 1, tzinfo=UTC))

        until(lambda: served.state.read(result.id).state is TaskState.EXPIRED, seconds=10)
        assert "REVOKED" == result.state
        assert 0 == FAILURES.attempts

    def test_revoked_tasks(self, served: Any) -> None:
        """`revoke` works as in Celery, and is recorded."""
        FAILURES.set()
        result = served.tasks["t.strict"].apply_async(countdown=0.6)
        served.control.revoke(result.id)

        until(lambda: served.state.read(result.id).state is TaskState.CANCELLED, seconds=10)
        assert "TaskRevokedError: revoked" == served.state.read(result.id).history[-1].note
        assert 0 == FAILURES.attempts

    @pytest.mark.parametrize(
        ("error", "state"), [(Ignore(), TaskState.RUNNING), (Reject("no", requeue=False), TaskState.FAILED)]
    )
    def test_celerys_own_control_flow(self, served: Any, error: Exception, state: TaskState) -> None:
        """`Ignore` leaves the end to whoever raised it, and `Reject` is a failure, as in Celery."""
        FAILURES.set(error)
        result = served.tasks["t.strict"].delay()
        after = served.tasks["t.hand"].delay(0)

        after.get(timeout=10)
        assert state is served.state.read(result.id).state
