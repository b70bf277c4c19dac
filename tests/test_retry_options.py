"""What a task may declare about its retries."""

from typing import Any

import pytest

from orchestra.exceptions import Backoff, ConfigurationError
from orchestra.retry_budget import RetryBudget
from orchestra.retry_options import budget_of, check_retry_options, exception_kinds


class TestCheckRetryOptions:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"max_attempts": 0}, "max_attempts=0; a whole number of at least 1 is allowed"),
            ({"max_attempts": True}, "at least 1"),
            ({"max_attempts": 2.5}, "at least 1"),
            ({"backoff": 3}, "backoff=3; an orchestra.exceptions.Backoff is allowed"),
            ({"retry_on": ("ValueError",)}, "retry_on holds 'ValueError'; exception classes are allowed"),
            ({"retry_on": "ValueError"}, "retry_on holds 'ValueError'"),
            ({"retry_on": ValueError("no class")}, "exception classes are allowed"),
            ({"retry_on": KeyboardInterrupt}, "built on Exception"),
            ({"never_retry": (3,)}, "never_retry holds 3"),
            ({"never_retry": 3}, "never_retry holds 3"),
            ({"retry_on": (KeyError,), "never_retry": LookupError}, "KeyError, which never_retry rules out"),
            ({"retry_budget": 0.2}, "retry_budget=0.2; an orchestra.retry_budget.RetryBudget is allowed, or False"),
            ({"retry_budget": True}, "retry_budget=True"),
        ],
    )
    def test_nonsense_is_refused(self, options: dict[str, Any], words: str) -> None:
        """An error names the task, the option and what is allowed."""
        with pytest.raises(ConfigurationError) as caught:
            check_retry_options("shop.bill", options, {})

        assert str(caught.value).startswith("Task shop.bill: ")
        assert words in str(caught.value)

    @pytest.mark.parametrize(
        ("options", "stock", "pair"),
        [
            ({"max_attempts": 3}, {"max_retries": 2}, "max_attempts and Celery's max_retries"),
            ({"max_attempts": 3}, {"max_retries": 0}, "max_attempts and Celery's max_retries"),
            ({"max_attempts": 3}, {"max_retries": None}, "max_attempts and Celery's max_retries"),
            ({"max_attempts": 3}, {"autoretry_for": (OSError,)}, "max_attempts and Celery's autoretry_for"),
            ({"backoff": Backoff()}, {"autoretry_for": (OSError,)}, "backoff and Celery's autoretry_for"),
            ({"retry_on": OSError}, {"autoretry_for": [OSError]}, "retry_on and Celery's autoretry_for"),
            ({"never_retry": (OSError,)}, {"autoretry_for": (OSError,)}, "never_retry and Celery's autoretry_for"),
            ({"retry_budget": False}, {"autoretry_for": (OSError,)}, "retry_budget and Celery's autoretry_for"),
        ],
    )
    def test_one_policy_alone(self, options: dict[str, Any], stock: dict[str, Any], pair: str) -> None:
        """A policy in our words and one in Celery's are refused together, also where Celery's is 0 or None."""
        with pytest.raises(ConfigurationError) as caught:
            check_retry_options("shop.bill", options, stock)

        assert f"Task shop.bill declares {pair}: keep one of them." == str(caught.value)

    @pytest.mark.parametrize(
        ("options", "stock"),
        [
            ({}, {"max_retries": 5, "autoretry_for": (OSError,)}),
            ({"retry_on": (OSError,), "backoff": Backoff()}, {"max_retries": None}),
            ({"max_attempts": 3, "retry_on": ()}, {"autoretry_for": ()}),
            ({"retry_on": LookupError, "never_retry": [KeyError]}, {}),
            ({"retry_on": {OSError, KeyError}, "retry_budget": RetryBudget(ratio=0.5)}, {}),
            ({"max_attempts": 1, "retry_budget": False}, {}),
        ],
    )
    def test_what_goes_together(self, options: dict[str, Any], stock: dict[str, Any]) -> None:
        """Celery's own bound goes with our classes of errors, and a class needn't stand in a tuple."""
        check_retry_options("shop.bill", options, stock)


class TestExceptionKinds:
    @pytest.mark.parametrize("given", [OSError, (OSError,), [OSError], {OSError}])
    def test_one_or_several(self, given: Any) -> None:
        """A class alone stands for itself, as behind `except`."""
        assert (OSError,) == exception_kinds(given)

    def test_none(self) -> None:
        """Nothing is nothing."""
        assert () == exception_kinds(None) == exception_kinds(())


class TestBudgetOf:
    @pytest.mark.parametrize("options", [{"max_attempts": 2}, {"backoff": Backoff()}, {"retry_on": OSError}])
    def test_a_policy_has_one(self, options: dict[str, Any]) -> None:
        """Who says how to try again gets the default budget."""
        assert RetryBudget() == budget_of(options)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"retry_on": ()},
            {"max_attempts": 3, "retry_budget": False},
            {"max_attempts": 1},
            {"retry_budget": False},
        ],
    )
    def test_others_have_none(self, options: dict[str, Any]) -> None:
        """Without a policy, without a second attempt, or where it was turned off, nothing is counted."""
        assert budget_of(options) is None

    def test_ones_own(self) -> None:
        """A task's own budget counts, with a policy or without."""
        own = RetryBudget(ratio=0.5)

        assert own is budget_of({"retry_budget": own}) is budget_of({"retry_budget": own, "max_attempts": 9})
