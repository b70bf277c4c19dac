"""OrchestraTask: what a task declares, and how it is run here and now."""

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import pytest
from celery import Task
from celery.exceptions import Ignore, Reject
from celery.exceptions import Retry as CeleryRetry

from orchestra.exceptions import ConfigurationError, PermanentError, RetryableError, ValidationError
from orchestra.retry_budget import RetryBudget
from orchestra.task import OrchestraTask
from tests.fleets import app_at
from tests.sample_tasks import AT_ONCE, FAILURES, Document, declare_tasks

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def idle() -> Iterator[Any]:
    """Give an app whose broker is never asked."""
    with app_at(NOWHERE) as app:
        declare_tasks(app)
        yield app


class TestDeclaration:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"requires": "gpu>=>3"}, "gpu>=>3"),
            ({"urgency": "asap"}, "critical, high, normal, low"),
            ({"timeout": 0}, "0"),
            ({"timeout": "soon"}, "soon"),
            ({"max_attempts": 0}, "at least 1"),
            ({"max_attempts": True}, "at least 1"),
            ({"max_attempts": 2.5}, "at least 1"),
            ({"backoff": 3}, "Backoff"),
            ({"retry_on": ("ValueError",)}, "exception classes"),
            ({"never_retry": (3,)}, "exception classes"),
            ({"max_lost_processes": -1}, "at least 0"),
            ({"max_lost_processes": True}, "at least 0"),
            ({"max_lost_agents": 1.5}, "at least 0"),
            ({"dead_letters": 1}, "True or False"),
            ({"dead_letters": "no"}, "True or False"),
            ({"max_attempts": 3, "max_retries": 2}, "max_retries: keep one"),
            ({"max_attempts": 3, "max_retries": None}, "max_retries: keep one"),
            ({"max_attempts": 3, "autoretry_for": (OSError,)}, "autoretry_for: keep one"),
            ({"retry_on": OSError, "autoretry_for": (OSError,)}, "retry_on and Celery's autoretry_for: keep one"),
            ({"retry_budget": 3}, "RetryBudget"),
        ],
    )
    def test_nonsense_is_refused(self, idle: Any, options: dict[str, Any], words: str) -> None:
        """An option that makes no sense names the task, itself and what is allowed."""
        with pytest.raises(ConfigurationError, match=r"Task t\.bad") as caught:
            idle.task(name="t.bad", shared=False, **options)(_nothing)

        assert words in str(caught.value)

    def test_options_in_celerys_words(self, idle: Any) -> None:
        """Timeout and attempts become Celery's own limits, so that its tools show them."""
        task = idle.task(name="t.words", timeout=7.5, max_attempts=4, requires={"b", "a"}, shared=False)(_nothing)

        assert (7.5, 12.5, 3, "a,b") == (task.soft_time_limit, task.time_limit, task.max_retries, task.requires)

    @pytest.mark.parametrize("option", ["requires", "urgency", "timeout", "max_attempts", "backoff", "retry_on"])
    def test_any_option_of_ours_enforces_hints(self, idle: Any, option: str) -> None:
        """Type hints are enforced for a task that uses any option of ours, and of no other."""
        values = {"requires": "gpu", "urgency": "low", "timeout": 1, "max_attempts": 1, "backoff": AT_ONCE}
        task = idle.task(name="t.any", shared=False, **{option: values.get(option, (OSError,))})(_nothing)

        assert task.enforced
        assert not idle.tasks["t.loose"].enforced

    def test_subclasses_declare_for_themselves(self, idle: Any) -> None:
        """What a base declares holds for the tasks built on it, and each is checked by itself."""

        class OnGpu(OrchestraTask):
            abstract = True
            requires = "gpu"

        task = idle.task(name="t.on_gpu", base=OnGpu, shared=False)(_nothing)
        other = idle.task(name="t.on_cpu", base=OnGpu, requires="cpu", shared=False)(_nothing)

        assert ("gpu", "cpu") == (task.requires, other.requires)
        assert task.enforced

    @pytest.mark.parametrize(
        ("said", "option", "words"),
        [
            ({"max_attempts": 0}, {}, "at least 1"),
            ({"max_attempts": 3, "max_retries": 2}, {}, "max_retries: keep one"),
            ({"max_attempts": 3}, {"max_retries": 2}, "max_retries: keep one"),
            ({"autoretry_for": (OSError,)}, {"max_attempts": 3}, "autoretry_for: keep one"),
            ({"max_attempts": 3}, {"autoretry_for": (OSError,)}, "autoretry_for: keep one"),
        ],
    )
    def test_bases_are_checked_too(self, idle: Any, said: dict[str, Any], option: dict[str, Any], words: str) -> None:
        """What a base says in its class body is refused with the task on top of it, as is what contradicts it."""
        base = type("Base", (OrchestraTask,), {"abstract": True, **said})

        with pytest.raises(ConfigurationError, match=r"Task t\.based") as caught:
            idle.task(name="t.based", base=base, lazy=False, shared=False, **option)(_nothing)

        assert words in str(caught.value)

    def test_the_nearest_word_on_attempts_counts(self, idle: Any) -> None:
        """A task's own `max_attempts` comes before its base's, and before a base's `max_retries` as well."""

        class Patient(Task):
            abstract = True
            max_retries = 9

        class Tried(OrchestraTask):
            abstract = True
            max_attempts = 9

        for base in (Patient, Tried):
            task = idle.task(name=f"t.{base.__name__}", base=base, max_attempts=2, lazy=False, shared=False)(_nothing)
            further = idle.task(name=f"t.{base.__name__}.2", base=type(task), lazy=False, shared=False)(_nothing)

            assert (1, 1) == (task.max_retries, further.max_retries)

    def test_classes_that_are_registered(self, idle: Any) -> None:
        """A task that is a class says it in its body."""

        class Fetch(OrchestraTask):
            name = "t.fetch"
            max_attempts = 5
            backoff = AT_ONCE
            retry_on = KeyError

            def run(self) -> int:
                return FAILURES.next()

        FAILURES.set(KeyError("a"), KeyError("b"))

        assert 3 == idle.register_task(Fetch()).apply().get()

    def test_budget(self, idle: Any) -> None:
        """A task that declares how it is tried again has a budget, the default one unless it says otherwise."""
        own = RetryBudget(ratio=0.5)
        declared: list[dict[str, Any]] = [{"max_attempts": 2}, {"retry_budget": own}, {"retry_on": OSError}]
        tasks = [
            idle.task(name=f"t.budget{number}", shared=False, **options)(_nothing)
            for number, options in enumerate(declared)
        ]
        off = idle.task(name="t.budget.off", shared=False, max_attempts=2, retry_budget=False)(_nothing)

        assert [RetryBudget(), own, RetryBudget()] == [task.retry_policy.budget for task in tasks]
        assert off.retry_policy.budget is None
        assert idle.tasks["t.loose"].retry_policy.budget is None

    def test_retry_policy(self, idle: Any) -> None:
        """The options of a task are its policy; a task that declares none retries what asks for it alone."""
        assert 3 == idle.tasks["t.strict"].retry_policy.max_attempts
        assert not idle.tasks["t.strict"].retry_policy.explicit_only
        assert idle.tasks["t.loose"].retry_policy.explicit_only
        assert not idle.tasks["t.listed"].retry_policy.explicit_only
        one = idle.task(name="t.one", retry_on=KeyError, never_retry=[OSError], shared=False)(_nothing)
        assert (KeyError, OSError) == (one.retry_policy.retry_on[0], one.retry_policy.never_retry[0])
        forever = idle.task(name="t.forever", max_retries=None, shared=False)(_nothing)
        assert forever.retry_policy.max_attempts is None


class TestEager:
    """A task that runs here and now: no Redis is asked."""

    def test_plain_calls_are_functions(self, idle: Any) -> None:
        """A task that is called runs its code, unchecked and unsettled."""
        FAILURES.set(RetryableError("once"))

        with pytest.raises(RetryableError):
            idle.tasks["t.strict"]("anything")
        assert 1 == FAILURES.attempts

    def test_arguments_are_checked(self, idle: Any) -> None:
        """`apply` refuses what a submission would refuse."""
        with pytest.raises(ValidationError, match=r"t\.strict was not submitted: number"):
            idle.tasks["t.strict"].apply(("one",))
        with pytest.raises(ValidationError, match="gpu>"):
            idle.tasks["t.strict"].apply((1,), requires="gpu>")
        with pytest.raises(ValidationError, match="not both"):
            idle.tasks["t.strict"].apply((1,), urgency="high", priority=3)

    def test_models(self, idle: Any) -> None:
        """A model comes as an instance or as its JSON form, and what is returned is JSON."""
        expected = {"title": "aa", "pages": 3, "on": "2026-01-02"}
        given = Document(title="a", pages=3, on=date(2026, 1, 2))

        for document in (given, given.model_dump(mode="json")):
            assert expected == idle.tasks["t.model"].apply((document,), {"copies": 2}).get()

    def test_retries(self, idle: Any) -> None:
        """Errors that may pass are tried again, up to the bound."""
        FAILURES.set(RetryableError("a"), ConnectionError("b"))
        assert 3 == idle.tasks["t.strict"].apply().get()

        FAILURES.set(*(RetryableError(word) for word in "abcd"))
        with pytest.raises(RetryableError, match="c"):
            idle.tasks["t.strict"].apply().get()
        assert 3 == FAILURES.attempts

    def test_permanent_errors(self, idle: Any) -> None:
        """They end a task at once."""
        FAILURES.set(PermanentError("no"))

        with pytest.raises(PermanentError, match="no"):
            idle.tasks["t.strict"].apply().get()
        assert 1 == FAILURES.attempts

    def test_always_eager(self) -> None:
        """`task_always_eager` turns every way of sending into that, with our options."""
        with app_at(NOWHERE, changes={"task_always_eager": True}) as app:
            declare_tasks(app)
            FAILURES.set()

            assert 1 == app.tasks["t.strict"].delay(1).get()
            assert 2 == app.tasks["t.strict"].s(1).set(requires={"gpu"}, urgency="high").apply_async().get()
            with pytest.raises(ValidationError, match="number"):
                app.tasks["t.strict"].delay("one")

    def test_hand_made_retries(self, idle: Any) -> None:
        """`self.retry` works as in Celery."""
        assert [2, 2] == idle.tasks["t.hand"].apply((0,)).get()

    def test_an_id_of_ones_own(self, idle: Any) -> None:
        """Celery's options of `apply` stay."""
        assert "mine" == idle.tasks["t.model"].apply((Document(title="a"),), task_id="mine").id


class TestBases:
    def test_a_base_that_calls_twice(self, idle: Any) -> None:
        """A base whose `__call__` tries by itself is guarded once."""

        class Twice(Task):
            abstract = True

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                try:
                    return super().__call__(*args, **kwargs)
                except KeyError:
                    return super().__call__(*args, **kwargs)

        task = idle.task(name="t.twice", base=Twice, max_attempts=3, backoff=AT_ONCE, shared=False)(FAILURES.next)
        FAILURES.set(KeyError("x"))

        assert 2 == task.apply().get()

    def test_hooks(self, idle: Any) -> None:
        """`on_success`, `on_retry` and their like are called as ever."""
        seen = []

        class Telling(Task):
            abstract = True

            def on_success(self, *_: Any) -> None:
                seen.append("success")

            def on_retry(self, *_: Any) -> None:
                seen.append("retry")

        task = idle.task(name="t.telling", base=Telling, max_attempts=3, backoff=AT_ONCE, shared=False)(_next)
        FAILURES.set(RetryableError("x"))

        task.apply().get()

        assert ["retry", "success"] == seen


class TestRetrySignatures:
    @pytest.mark.parametrize(
        ("sent", "queue", "requires"),
        [
            ({"queue": "celery"}, None, None),
            ({"queue": "shop:gpu", "headers": {"requires": "gpu", "mine": 1}}, None, "gpu"),
            ({"queue": "mine"}, "mine", None),
        ],
    )
    def test_routed_afresh(self, idle: Any, sent: dict[str, Any], queue: str | None, requires: str | None) -> None:
        """A retry is routed from its requirement; a queue that the project chose stays chosen."""
        signature = _request_of(idle, sent, lambda task: task.signature_from_request(retries=1))

        assert queue == signature.options.get("queue")
        assert requires == signature.options.get("requires")
        assert {"mine": 1} == signature.options["headers"] or "mine" not in (sent.get("headers") or {})

    def test_a_queue_for_the_retry(self, idle: Any) -> None:
        """`self.retry(queue=…)` chooses the queue, whatever the first call required."""
        sent = {"queue": "shop:gpu", "headers": {"requires": "gpu"}}

        signature = _request_of(idle, sent, lambda task: task.signature_from_request(queue="mine"))

        assert "mine" == signature.options["queue"]
        assert "requires" not in signature.options


def _request_of(app: Any, sent: dict[str, Any], ask: Callable[[Any], Any]) -> Any:
    """Ask a task something while it handles a message that was sent so."""
    task = app.tasks["t.strict"]
    task.push_request(
        id="1",
        args=(),
        kwargs={},
        headers=sent.get("headers"),
        delivery_info={"exchange": "", "routing_key": sent["queue"], "priority": 6},
        called_directly=False,
    )
    try:
        return ask(task)
    finally:
        task.pop_request()


class TestStart:
    def test_bookkeeping_does_not_stop_work(self, idle: Any, caplog: pytest.LogCaptureFixture) -> None:
        """A task runs although its start can't be written down; the log says so."""
        FAILURES.set()

        assert 1 == _request_of(idle, {"queue": "celery"}, lambda task: task())
        assert "task state not recorded" in caplog.text

    def test_retries_that_cannot_be_published(self, idle: Any) -> None:
        """Without Redis a retry is a message that goes back to its queue."""
        FAILURES.set(RetryableError("x"))

        with pytest.raises(Reject, match="True"):  # to be put back
            _request_of(idle, {"queue": "celery"}, lambda task: task())

    def test_control_flow_passes(self, idle: Any) -> None:
        """What Celery raises to itself isn't settled."""
        for error in (Ignore(), CeleryRetry(), Reject()):
            FAILURES.set(error)
            with pytest.raises(type(error)):
                _request_of(idle, {"queue": "celery"}, lambda task: task())


def _nothing(number: int = 0) -> None: ...


def _next() -> int:
    return FAILURES.next()
