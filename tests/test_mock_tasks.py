"""Tasks that are checked, routed, run and settled without Redis."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from celery import Celery, chain, chord, group, signature
from celery.exceptions import CDeprecationWarning

from orchestra.exceptions import (
    Backoff,
    ConfigurationError,
    PayloadError,
    PermanentError,
    RetryableError,
    UnknownTaskError,
    ValidationError,
)
from orchestra.execution import Dead, Outcome, Retry, Succeeded
from orchestra.mock_tasks import MockTask, SubmittedTask, submit
from orchestra.private_app import PrivateApp
from orchestra.types import Urgency
from tests.sample_tasks import FAILURES, Document, declare_tasks

NOWHERE = "redis://127.0.0.1:1/0"  # nothing here may connect


@pytest.fixture
def app() -> Iterator[Any]:
    """Give an app whose Redis nobody reaches, with the tasks that real agents run in other tests."""
    app = PrivateApp(NOWHERE, name="shop", changes={"task_routes": {"t.routed": {"queue": "mine"}}})
    declare_tasks(app)
    yield app
    app.close()


def performed(task: SubmittedTask, *, attempt: int = 1) -> Any:
    """Return what an attempt came to."""
    return task.perform(attempt=attempt, agent="text@test")[0]


class TestRouting:
    @pytest.mark.parametrize(
        ("requires", "canonical", "queue"),
        [
            (None, "general", "celery"),
            ("general", "general", "celery"),
            ({"mem_gb>=016", "gpu"}, "gpu,mem_gb>=16", "mock:gpu+mem_gb~ge~16"),
            (["!spot"], "!spot", "mock:not~spot"),
        ],
    )
    def test_requirements_choose_the_queue(self, requires: Any, canonical: str, queue: str) -> None:
        """The queue is the one that the fleet's router names."""
        submitted = submit(MockTask(requires=requires), task_id="1")

        assert (canonical, queue) == (submitted.requires, submitted.queue)

    def test_the_caller_asks_for_more(self, app: Any) -> None:
        """A call's own requirement takes the place of the task's, and of the project's routes."""

        @app.task(name="t.routed", requires="nlp")
        def routed() -> None: ...

        assert "mine" == submit(routed.s(), task_id="1").queue
        assert "shop:gpu" == submit(routed.s().set(requires="gpu"), task_id="1").queue

    def test_queues_of_the_project(self, app: Any) -> None:
        """A queue that the project chose for a call or a class of tasks stays, and asks for nothing."""

        @app.task(name="t.own", queue="own")
        def own() -> None: ...

        with pytest.warns(CDeprecationWarning, match="'queue' task attribute"):
            calls = [own.s(), app.tasks["t.loose"].s().set(queue="other")]
        submitted = [submit(call, task_id="1") for call in calls]

        assert [("own", None), ("other", None)] == [(one.queue, one.requires) for one in submitted]

    def test_inner_tasks_route_their_map(self, app: Any) -> None:
        """`map` waits where its inner task would, as on a fleet."""

        @app.task(name="t.double", requires="nlp")
        def double(number: int) -> int:
            return 2 * number

        submitted = submit(double.map([1, 2]), task_id="1")

        assert "nlp" == submitted.requires
        assert Succeeded([2, 4]) == performed(submitted)

    @pytest.mark.parametrize(
        ("options", "priority"),
        [({}, 6), ({"urgency": "high"}, 3), ({"urgency": Urgency.LOW}, 9), ({"priority": 4}, 4)],
    )
    def test_urgency(self, app: Any, options: dict[str, Any], priority: int) -> None:
        """Urgency is priority's name, and Celery's own priority is heard."""
        assert priority == submit(app.tasks["t.strict"].s().set(**options), task_id="1").priority

    def test_declared_urgency_comes_before_the_projects_priority(self) -> None:
        """The project's default priority is for tasks that say nothing."""
        app: Any = PrivateApp(NOWHERE, changes={"task_default_priority": 8})
        plain = app.task(name="t.plain")(idle)
        urgent = app.task(name="t.urgent", urgency="critical")(idle)

        assert [8, 0] == [submit(task.s(), task_id="1").priority for task in (plain, urgent)]

    def test_submitted_tasks_stay_as_they_are(self) -> None:
        """Submitting twice changes nothing, the id included."""
        submitted = submit(MockTask("shop.index"), task_id="1")

        assert submitted is submit(submitted, task_id="2")
        assert ("1", "shop.index") == (submitted.id, submitted.name)


def idle() -> None:
    """Do nothing."""


class TestRefusals:
    @pytest.mark.parametrize(
        ("task", "problem"),
        [
            (MockTask(requires="gpu,,"), "nothing between two commas"),
            (MockTask(urgency="soon"), "'soon' is no urgency"),
            (MockTask(max_attempts=0), "max_attempts=0"),
            (MockTask(retry_on=(1,)), "retry_on holds 1"),  # type: ignore[arg-type]  # wrong on purpose
            (MockTask(backoff=3), "backoff=3"),  # type: ignore[arg-type]  # the same
        ],
    )
    def test_wrong_declarations(self, task: MockTask, problem: str) -> None:
        """What `@app.task` would refuse is refused, in the same words."""
        with pytest.raises(ConfigurationError, match=problem):
            submit(task, task_id="1")

    @pytest.mark.parametrize(
        ("options", "error", "problem"),
        [
            ({"kwargs": {"number": "two"}}, ValidationError, "t.strict was not submitted: number"),
            ({"kwargs": {"colour": 1}}, ValidationError, "colour"),
            ({"args": (1, 2)}, ValidationError, "t.strict was not submitted"),
            ({"requires": "gpu", "queue": "mine"}, ValidationError, "exclude each other"),
            ({"urgency": "high", "priority": 3}, ValidationError, "not both"),
        ],
    )
    def test_calls_that_no_sender_would_send(
        self, app: Any, options: dict[str, Any], error: type[Exception], problem: str
    ) -> None:
        """What a submission would refuse is refused, in the same words."""
        args, kwargs = options.pop("args", ()), options.pop("kwargs", {})

        with pytest.raises(error, match=problem):
            submit(app.tasks["t.strict"].signature(args, kwargs).set(**options), task_id="1")

    def test_payloads_that_are_not_json(self) -> None:
        """What can't travel isn't submitted."""
        with pytest.raises(PayloadError, match="which JSON can't hold"):
            submit(MockTask(args=(object(),), requires="nlp"), task_id="1")

    def test_what_is_not_one_task(self, app: Any) -> None:
        """Canvas holds several tasks, and anything else none."""
        one = app.tasks["t.loose"].s()

        for several in (
            chain(one, one),
            group(one, one),
            chord([one, one], one),
            app.tasks["t.loose"].chunks([[1]], 2),
        ):
            with pytest.raises(ValidationError, match="several tasks"):
                submit(several, task_id="1")
        with pytest.raises(ValidationError, match=r"'t\.loose' is no task"):
            submit("t.loose", task_id="1")  # type: ignore[arg-type]  # wrong on purpose

    def test_tasks_of_other_apps(self, app: Any) -> None:
        """A task of a plain app has none of our options, and one without code can't run."""
        with Celery("stock", set_as_current=False) as stock, pytest.raises(ValidationError, match="OrchestraCelery"):
            submit(stock.task(name="t.stock", shared=False)(idle).s(), task_id="1")
        with pytest.raises(UnknownTaskError, match=r"code of t\.gone") as caught:
            submit(signature("t.gone", app=app), task_id="1")
        assert "t.gone" == caught.value.task_type


class TestPerform:
    def test_real_code_runs_in_its_request(self, app: Any) -> None:
        """A bound task sees its id, its agent and its attempt."""

        @app.task(name="t.who", bind=True)
        def who(self: Any) -> list[Any]:
            return [self.request.id, self.request.hostname, self.request.retries]

        assert Succeeded(["7", "text@test", 1]) == performed(submit(who.s(), task_id="7"), attempt=2)

    def test_arguments_and_results_travel(self, app: Any) -> None:
        """Models arrive as models and leave in their JSON form, as on a fleet."""
        call = app.tasks["t.model"].s(Document(title="a"), copies=2)

        assert Succeeded({"title": "aa", "pages": 1, "on": None}) == performed(submit(call, task_id="1"))

    def test_attempts_share_nothing(self) -> None:
        """What one attempt does to its arguments, the next one doesn't see."""
        submitted = submit(MockTask(args=([1],), run=lambda numbers: (numbers.append(2), numbers)[1]), task_id="1")

        assert [Succeeded([1, 2])] * 2 == [performed(submitted, attempt=attempt) for attempt in (1, 2)]

    def test_results_that_are_not_json(self) -> None:
        """A result that can't be stored is a failure."""
        outcome = performed(submit(MockTask(run=object), task_id="1"))

        assert isinstance(outcome, Dead)
        assert "what the task returned isn't JSON" == outcome.reason

    def test_mock_code_may_be_any_callable(self) -> None:
        """A lambda and a partial will do; type hints count wherever there are some."""
        assert Succeeded(5) == performed(submit(MockTask(args=(2,), run=partial(max, 5)), task_id="1"))
        with pytest.raises(ValidationError, match="number"):
            submit(MockTask(args=("x",), run=typed, requires="nlp"), task_id="1")

    def test_messages_of_others_fail_as_on_an_agent(self) -> None:
        """Where a call isn't enforced, wrong arguments fail in the task's code, and are final."""
        outcome = performed(submit(MockTask(args=(1, 2), run=idle), task_id="1"))

        assert isinstance(outcome, Dead)
        assert isinstance(outcome.error, TypeError)


def typed(number: int) -> int:
    """Return a number."""
    return number


class TestSettling:
    @pytest.mark.parametrize(
        ("task", "error", "attempts"),
        [
            ("t.strict", RetryableError("ours"), 3),
            ("t.strict", ConnectionError("foreign"), 3),
            ("t.strict", PermanentError("no"), 1),
            ("t.loose", ConnectionError("foreign"), 1),
            ("t.listed", KeyError("listed"), 4),
            ("t.never", KeyError("never"), 1),
            ("t.auto", ValueError("celery's"), 4),
            ("t.loose", MemoryError("big"), 1),
        ],
    )
    def test_is_the_tasks_own(self, app: Any, task: str, error: Exception, attempts: int) -> None:
        """Each task's policy decides, whether it's ours or Celery's, until the error is final."""
        FAILURES.set(*[error] * 9)
        waiting: SubmittedTask | None = submit(app.tasks[task].s(), task_id="1")

        outcomes: list[Outcome] = []
        while waiting is not None:
            outcome, waiting = waiting.perform(attempt=len(outcomes) + 1, agent="text@test")
            outcomes.append(outcome)

        assert attempts == len(outcomes) == FAILURES.attempts
        assert [Retry(error, 0.0)] * (attempts - 1) == outcomes[:-1]
        assert isinstance(outcomes[-1], Dead)

    def test_errors_from_without_are_settled_alike(self, app: Any) -> None:
        """An error that comes before the task's code goes by the same policy."""
        submitted = submit(app.tasks["t.strict"].s(), task_id="1")
        error = RetryableError("away", retry_after=7)

        assert (Retry(error, 7), submitted) == submitted.fail(error, attempt=2)
        assert (
            Dead(error, "RetryableError on attempt 3 of 3: no attempt is left", exhausted=True),
            None,
        ) == submitted.fail(error, attempt=3)

    def test_hand_made_retries(self, app: Any) -> None:
        """`self.retry` brings its own wait and arguments; a new requirement is routed anew, and then stays."""

        @app.task(name="t.moving", bind=True, max_attempts=3)
        def moving(self: Any, step: int = 0) -> int:
            match step:
                case 0:
                    self.retry(args=(1,), countdown=5, requires="gpu")
                case 1:
                    self.retry(args=(2,), eta=datetime.now(UTC) + timedelta(hours=1))
            return step

        first, again = submit(moving.s(), task_id="1").perform(attempt=1, agent="text@test")
        assert again is not None
        second, last = again.perform(attempt=2, agent="text@test")
        assert last is not None

        assert isinstance(first, Retry)
        assert isinstance(second, Retry)
        assert (5.0, "gpu", "1") == (first.delay_seconds, again.requires, again.id)
        assert 3500 < second.delay_seconds <= 3600
        assert ("gpu", Succeeded(2)) == (last.requires, performed(last, attempt=3))

    def test_what_the_task_ends_with_itself(self, app: Any) -> None:
        """A task that gives up by hand is dead, though its error might pass."""

        @app.task(name="t.tired", bind=True, max_attempts=1)
        def tired(self: Any) -> None:
            self.retry(exc=RetryableError("tired"))

        outcome = performed(submit(tired.s(), task_id="1"))

        assert isinstance(outcome, Dead)
        assert "tired" == str(outcome.error)

    def test_declared_backoff(self) -> None:
        """A mock task's options are those of a real one."""
        task = MockTask(
            run=fail, max_attempts=2, backoff=Backoff(base_seconds=4, jitter="none"), never_retry=(OSError,)
        )

        assert isinstance(outcome := performed(submit(task, task_id="1")), Retry)
        assert 4.0 == outcome.delay_seconds


def fail() -> None:
    """Fail in a way that may pass."""
    raise RetryableError


class TestPrivateApp:
    def test_keeps_its_tasks(self) -> None:
        """Its tasks are no other app's, and it never is the current one."""
        one, other = PrivateApp(NOWHERE), PrivateApp(NOWHERE)

        @one.task
        def bare() -> None: ...

        @one.task(name="t.named")
        def named() -> None: ...

        assert {bare.name, "t.named"} <= set(one.tasks)
        assert not {bare.name, "t.named"} & set(other.tasks)

    def test_knows_nothing_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a developer's shell says doesn't reach a test."""
        monkeypatch.setenv("ORCHESTRA_NAMESPACE", "production")

        assert "tests" == PrivateApp(NOWHERE).queue_names.fleet
