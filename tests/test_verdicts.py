"""Which ends of tasks make dead letters, and with which reason."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import Reject

from orchestra.exceptions import PermanentError, PoisonError, RetryableError
from orchestra.execution import Dead
from orchestra.leases import Lease
from orchestra.types import TaskState
from orchestra.verdicts import lease_of, verdict_of

TASKS = {
    "shop.index": SimpleNamespace(dead_letters=None, throws=()),
    "shop.unkept": SimpleNamespace(dead_letters=False, throws=()),
    "shop.expected": SimpleNamespace(dead_letters=None, throws=(KeyError,)),
    "shop.stock": SimpleNamespace(throws=()),
}
APP = SimpleNamespace(tasks=TASKS)


def request_of(task: str = "shop.index", *, tag: str | None = "a:1:shop:nlp", **attributes: Any) -> Any:
    """Give what Celery knows of a task that it runs."""
    return SimpleNamespace(task=task, properties={"delivery_tag": tag}, expires="2030-01-01", **attributes)


def verdict(error: object, request: Any, *, step: TaskState = TaskState.FAILED) -> str | None:  # a request, as above
    """Judge an end."""
    return verdict_of(APP, step, error, request)


class TestVerdict:
    @pytest.mark.parametrize(
        ("error", "outcome", "expected"),
        [
            (PermanentError("no"), Dead(PermanentError("no"), "why"), "permanent\nPermanentError: no"),
            (RetryableError("no"), Dead(RetryableError("no"), "why", exhausted=True), "exhausted\nRetryableError: no"),
            (ValueError("encoding"), None, "permanent\nValueError: encoding"),
            (ValueError("wrapped"), Dead(KeyError("x"), "why"), "permanent\nKeyError: 'x'"),
            (PoisonError("too many"), None, "poison\nPoisonError: too many"),
            (Reject("bad", requeue=False), None, "rejected\nbad"),
            (Reject(KeyError("x")), None, "rejected\nKeyError: 'x'"),
            (Reject(), None, "rejected\nNo reason was given."),
            (ValueError("\ud800"), None, "permanent\nValueError: \\ud800"),
        ],
    )
    def test_reasons(self, error: Exception, outcome: Dead | None, expected: str) -> None:
        """A failure's reason follows from what the task's policy made of it, and its words from what was raised."""
        request = request_of() if outcome is None else request_of(outcome=outcome)

        assert expected == verdict(error, request)

    def test_expired(self) -> None:
        """A task that wasn't started in time says which time that was."""
        words = "expired\nIt expired at 2030-01-01, before an agent started it."

        assert words == verdict("expired", request_of(), step=TaskState.EXPIRED)

    def test_errors_are_kept_short(self) -> None:
        """However much an error says, a letter has 2,000 characters of it."""
        assert len("permanent\n") + 2000 == len(str(verdict(ValueError("x" * 10_000), request_of())))

    @pytest.mark.parametrize("step", [set(TaskState) - {TaskState.FAILED, TaskState.EXPIRED}])
    def test_other_ends(self, step: set[TaskState]) -> None:
        """What succeeds, is tried again or was cancelled makes no letter."""
        assert [None] * len(step) == [verdict(ValueError(), request_of(), step=one) for one in step]

    @pytest.mark.parametrize("request_", [None, request_of(tag=None), request_of(tag="9d8f"), SimpleNamespace()])
    def test_without_a_lease(self, request_: Any) -> None:
        """Where there's no message in hand there's nothing to keep."""
        assert lease_of(request_) is None
        assert verdict(ValueError(), request_) is None

    def test_tasks_that_want_none(self) -> None:
        """A task says that it makes no letters, or which errors are expected; poison is kept all the same."""
        assert verdict(ValueError(), request_of("shop.unkept")) is None
        assert verdict("expired", request_of("shop.unkept"), step=TaskState.EXPIRED) is None
        assert verdict(KeyError(), request_of("shop.expected")) is None
        assert verdict(ValueError("x"), request_of("shop.expected")) == "permanent\nValueError: x"
        assert "poison\nPoisonError: x" == verdict(PoisonError("x"), request_of("shop.unkept"))

    def test_tasks_of_others(self) -> None:
        """A task that is not ours, or unknown, makes letters as well."""
        for task in ("shop.stock", "shop.unknown"):
            assert "permanent\nValueError: x" == verdict(ValueError("x"), request_of(task))


class TestLease:
    def test_of_a_request(self) -> None:
        """A request's lease is its delivery's tag."""
        assert Lease("a", 1, "shop:nlp") == lease_of(request_of())
