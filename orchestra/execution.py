"""The agent's half of a task's walk: perform the user's code, and settle what became of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from orchestra.exceptions import Backoff, PermanentError, RetryableError, handle_retry_logic

__all__ = ["Dead", "Outcome", "Retry", "RetryPolicy", "Succeeded", "run", "settle"]


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The user's code returned."""

    value: Any  # whatever the task returns


@dataclass(frozen=True, slots=True)
class Retry:
    """It failed in a way that may pass; it is to be tried again after a delay."""

    error: Exception
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Dead:
    """It failed for good: permanently, or because its attempts are used up."""

    error: Exception
    reason: str


Outcome: TypeAlias = Succeeded | Retry | Dead


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """
    How a task's errors are settled.

    `max_attempts` counts the first one; None sets no bound. With `explicit_only`, which is what a task that declares
    no policy gets, only a RetryableError is tried again: whether a foreign error may be is for the task to say.
    """

    max_attempts: int | None = 4
    backoff: Backoff = field(default_factory=Backoff)
    retry_on: tuple[type[BaseException], ...] = ()
    never_retry: tuple[type[BaseException], ...] = ()
    explicit_only: bool = False


_UNBOUNDED = 1_000_000_000


def run(
    perform: Callable[[], Any],  # returns whatever the task returns
    *,
    attempt: int,
    policy: RetryPolicy,
    passing: tuple[type[BaseException], ...] = (),
) -> Outcome:
    """
    Perform a task once and settle it; `attempt` counts from 1.

    Exceptions in `passing` are the caller's own control flow, and go through.
    """
    try:
        value = perform()
    except passing:
        raise
    except Exception as error:  # noqa: BLE001  # the one place that answers for whatever a task raises
        return settle(error, attempt=attempt, policy=policy)
    return Succeeded(value)


def settle(error: Exception, *, attempt: int, policy: RetryPolicy) -> Retry | Dead:
    """Decide what a failed attempt leads to."""
    if isinstance(error, MemoryError):  # Celery would end the whole agent, and the next one that gets the message
        failure = PermanentError(f"The task ran out of memory: {error}")
        failure.__cause__ = error
        return Dead(failure, "out of memory")
    if policy.explicit_only and not isinstance(error, RetryableError):
        return Dead(error, "the task declares no max_attempts")
    decision = handle_retry_logic(
        error,
        attempt,
        _UNBOUNDED if policy.max_attempts is None else policy.max_attempts,
        backoff=policy.backoff,
        retry_on=policy.retry_on,
        never_retry=policy.never_retry,
    )
    if decision["should_retry"]:
        return Retry(error, decision["delay_seconds"])
    return Dead(error, decision["reason"])
