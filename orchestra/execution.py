"""The agent's half of a task's walk: perform the user's code, and settle what became of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from orchestra.exceptions import Backoff, PermanentError, RetryableError, classify, handle_retry_logic
from orchestra.retry_budget import RetryBudget

__all__ = ["Dead", "Outcome", "Retry", "RetryPolicy", "Succeeded", "out_of_memory", "run", "settle"]


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
    exhausted: bool = False  # whether only the number of attempts kept it from being tried again


Outcome: TypeAlias = Succeeded | Retry | Dead


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """
    How a task's errors are settled.

    `max_attempts` counts the first one; None sets no bound. With `explicit_only`, which is what a task that declares
    no policy gets, only a RetryableError is tried again: whether a foreign error may be is for the task to say.
    `budget` bounds the retries of all such tasks together; whoever publishes a retry asks it, not `settle`.
    """

    max_attempts: int | None = 4
    backoff: Backoff = field(default_factory=Backoff)
    retry_on: tuple[type[BaseException], ...] = ()
    never_retry: tuple[type[BaseException], ...] = ()
    explicit_only: bool = False
    budget: RetryBudget | None = None


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
        return Dead(out_of_memory(error), "out of memory")
    if policy.explicit_only and not isinstance(error, RetryableError):
        return Dead(error, "the task declares no max_attempts", _is_exhausted(error, attempt, policy))
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
    return Dead(error, decision["reason"], _is_exhausted(error, attempt, policy))


def out_of_memory(error: MemoryError) -> PermanentError:
    """Return a task's failure for an error that would end the agent, were it raised there."""
    failure = PermanentError(f"The task ran out of memory{f': {error}' if str(error) else '.'}")
    failure.__cause__ = error
    return failure


def _is_exhausted(error: Exception, attempt: int, policy: RetryPolicy) -> bool:
    """Tell whether it is the last of several attempts, made by us or by the task's own `retry`, that has failed."""
    if policy.max_attempts is None or attempt < policy.max_attempts:
        return False
    if policy.explicit_only and not isinstance(error, RetryableError):
        return attempt > 1 and not isinstance(error, PermanentError)
    return classify(error, retry_on=policy.retry_on, never_retry=policy.never_retry).retryable
