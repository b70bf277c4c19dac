"""What a task may declare about its retries, and what is refused."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from orchestra.exceptions import Backoff, ConfigurationError
from orchestra.retry_budget import RetryBudget

__all__ = ["RETRY_OPTIONS", "budget_of", "check_retry_options", "exception_kinds"]

RETRY_OPTIONS: Final = ("max_attempts", "backoff", "retry_on", "never_retry", "retry_budget")
_RIVALS: Final = {"max_retries": ("max_attempts",), "autoretry_for": RETRY_OPTIONS}  # Celery's, and what excludes each


def check_retry_options(task_name: str, options: Mapping[str, Any], stock: Mapping[str, Any]) -> None:
    """
    Refuse what a task declares wrongly about its retries; `stock` holds what it says in Celery's words.

    Raises:
        ConfigurationError: an option's value makes no sense, or two options contradict each other.

    """
    _check_values(task_name, options)
    kinds = {option: _checked_kinds(task_name, option, options.get(option)) for option in ("retry_on", "never_retry")}
    for kind in kinds["retry_on"]:
        if issubclass(kind, kinds["never_retry"]):
            message = f"Task {task_name}: retry_on holds {kind.__name__}, which never_retry rules out; remove it there."
            raise ConfigurationError(message)
    for theirs, ours in _RIVALS.items():
        given = next((name for name in ours if options.get(name) is not None and options[name] != ()), None)
        if given is not None and theirs in stock and stock[theirs] != ():
            message = f"Task {task_name} declares {given} and Celery's {theirs}: keep one of them."
            raise ConfigurationError(message)


def _check_values(task_name: str, options: Mapping[str, Any]) -> None:
    attempts, backoff, budget = (options.get(name) for name in ("max_attempts", "backoff", "retry_budget"))
    if attempts is not None and (isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1):
        message = f"Task {task_name}: max_attempts={attempts!r}; a whole number of at least 1 is allowed."
        raise ConfigurationError(message)
    if backoff is not None and not isinstance(backoff, Backoff):
        message = f"Task {task_name}: backoff={backoff!r}; an orchestra.exceptions.Backoff is allowed."
        raise ConfigurationError(message)
    if budget is not None and budget is not False and not isinstance(budget, RetryBudget):
        message = (
            f"Task {task_name}: retry_budget={budget!r}; an orchestra.retry_budget.RetryBudget is allowed, "
            "or False for none."
        )
        raise ConfigurationError(message)


def _checked_kinds(task_name: str, option: str, value: Any) -> tuple[type[Exception], ...]:  # whatever was given
    for error in exception_kinds(value):
        if not (isinstance(error, type) and issubclass(error, Exception)):
            message = (
                f"Task {task_name}: {option} holds {error!r}; exception classes are allowed, one or a tuple of them, "
                "that are built on Exception."
            )
            raise ConfigurationError(message)
    return exception_kinds(value)


def exception_kinds(value: Any) -> tuple[Any, ...]:  # classes, where the declaration was checked
    """Return one class, or a collection of them, as a tuple; None stands for none."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Collection) and not isinstance(value, (str, type)) else (value,)


def budget_of(options: Mapping[str, Any]) -> RetryBudget | None:
    """Return the budget for a task's retries; None where it has none, or has no policy by which there are any."""
    budget = options.get("retry_budget")
    if budget is False or options.get("max_attempts") == 1:
        return None
    if budget is None and any(options.get(name) for name in RETRY_OPTIONS):
        return RetryBudget()
    return budget
