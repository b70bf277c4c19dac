"""What becomes of a task's attempt: a value, another attempt, or an end."""

from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.exceptions import Backoff, PermanentError, RetryableError, ValidationError
from orchestra.execution import Dead, Outcome, Retry, RetryPolicy, Succeeded, run, settle

STEADY = Backoff(base_seconds=1.0, max_seconds=10.0, jitter="none")
POLICY = RetryPolicy(max_attempts=3, backoff=STEADY)


def attempt_that_raises(
    error: BaseException,
    *,
    attempt: int = 1,
    policy: RetryPolicy = POLICY,
    passing: tuple[type[BaseException], ...] = (),
) -> Outcome:
    """Run code that raises."""

    def perform() -> NoReturn:
        raise error

    return run(perform, attempt=attempt, policy=policy, passing=passing)


class ControlFlowError(Exception):
    """What a caller uses for control flow of its own."""


class TestRun:
    @pytest.mark.parametrize("value", [None, 0, "text", [1, 2]])
    def test_value_is_a_success(self, value: object) -> None:
        """Whatever the code returns is the outcome's value, nothing included."""
        assert Succeeded(value) == run(lambda: value, attempt=1, policy=POLICY)

    def test_performs_once(self) -> None:
        """One run is one attempt: another one is the caller's."""
        performed: list[int] = []

        def perform() -> NoReturn:
            performed.append(1)
            raise RetryableError

        run(perform, attempt=1, policy=POLICY)

        assert [1] == performed

    def test_error_that_may_pass_is_tried_again(self) -> None:
        """A broken connection leads to another attempt after the policy's backoff."""
        error = ConnectionError("reset")

        assert Retry(error, 1.0) == attempt_that_raises(error)
        assert Retry(error, 2.0) == attempt_that_raises(error, attempt=2)

    def test_last_attempt_is_the_end(self) -> None:
        """When the attempts are used up, the last error stands, and the reason says so."""
        error = ConnectionError("reset")

        outcome = attempt_that_raises(error, attempt=3)

        assert isinstance(outcome, Dead)
        assert error is outcome.error
        assert "attempt 3 of 3" in outcome.reason

    @pytest.mark.parametrize("error", [ValueError("no"), PermanentError("no"), ValidationError("no")])
    def test_permanent_error_is_the_end(self, error: Exception) -> None:
        """An error that can't pass isn't tried again."""
        outcome = attempt_that_raises(error)

        assert isinstance(outcome, Dead)
        assert error is outcome.error
        assert "permanent" in outcome.reason

    def test_wish_of_the_error_wins(self) -> None:
        """An error that says how long to wait is given that time."""
        error = RetryableError("busy", retry_after=42.0)

        assert Retry(error, 42.0) == attempt_that_raises(error)

    def test_callers_control_flow_passes(self) -> None:
        """What the caller names goes through untouched."""
        with pytest.raises(ControlFlowError):
            attempt_that_raises(ControlFlowError(), passing=(ControlFlowError,))

        assert isinstance(attempt_that_raises(ControlFlowError()), Dead)

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit()])
    def test_end_of_the_process_passes(self, error: BaseException) -> None:
        """Somebody who ends the process isn't a failing task."""
        with pytest.raises(type(error)):
            attempt_that_raises(error)


class TestSettle:
    def test_out_of_memory_is_the_tasks_end(self) -> None:
        """A task that needs too much memory fails alone: its agent and the next one live on."""
        outcome = attempt_that_raises(
            MemoryError("300 GiB"), policy=RetryPolicy(max_attempts=None, retry_on=(MemoryError,))
        )

        assert isinstance(outcome, Dead)
        assert isinstance(outcome.error, PermanentError)
        assert "out of memory: 300 GiB" in str(outcome.error)

    @pytest.mark.parametrize(
        ("error", "attempt", "policy", "exhausted"),
        [
            (RetryableError("x"), 3, POLICY, True),
            (RetryableError("x"), 1, RetryPolicy(max_attempts=1), True),
            (PermanentError("x"), 3, POLICY, False),
            (KeyError("x"), 3, POLICY, False),
            (KeyError("x"), 3, RetryPolicy(max_attempts=3, retry_on=(KeyError,)), True),
            (KeyError("x"), 4, RetryPolicy(explicit_only=True), True),  # by the task's own `retry`
            (KeyError("x"), 1, RetryPolicy(max_attempts=1, explicit_only=True), False),
            (PermanentError("x"), 4, RetryPolicy(explicit_only=True), False),
            (RetryableError("x"), 4, RetryPolicy(explicit_only=True), True),
            (MemoryError("x"), 3, POLICY, False),
        ],
    )
    def test_exhausted_or_permanent(self, error: Exception, attempt: int, policy: RetryPolicy, exhausted: bool) -> None:
        """An end is told apart that only the number of attempts has brought."""
        outcome = settle(error, attempt=attempt, policy=policy)

        assert isinstance(outcome, Dead)
        assert exhausted == outcome.exhausted

    def test_task_can_extend_what_is_tried_again(self) -> None:
        """A task names further errors that may pass, and errors that can't."""
        policy = RetryPolicy(backoff=STEADY, retry_on=(LookupError,), never_retry=(KeyError,))

        assert isinstance(settle(IndexError(), attempt=1, policy=policy), Retry)
        assert isinstance(settle(KeyError(), attempt=1, policy=policy), Dead)

    def test_task_without_a_policy_fails_as_in_celery(self) -> None:
        """Where a task declares nothing, a foreign error is its end, even one that might pass."""
        outcome = settle(ConnectionError("reset"), attempt=1, policy=RetryPolicy(explicit_only=True))

        assert isinstance(outcome, Dead)
        assert "declares no max_attempts" in outcome.reason

    def test_task_without_a_policy_may_ask_for_another_attempt(self) -> None:
        """Whoever raises a RetryableError has said what is wanted."""
        policy = RetryPolicy(backoff=STEADY, explicit_only=True)

        assert isinstance(settle(RetryableError("busy"), attempt=1, policy=policy), Retry)
        assert isinstance(settle(RetryableError("busy"), attempt=4, policy=policy), Dead)

    def test_attempts_may_be_unbounded(self) -> None:
        """Without a bound, an error that may pass is tried again for ever."""
        policy = RetryPolicy(max_attempts=None, backoff=STEADY)

        assert isinstance(settle(RetryableError("busy"), attempt=100_000, policy=policy), Retry)

    @given(bound=st.integers(1, 50))
    def test_a_task_gets_exactly_its_attempts(self, bound: int) -> None:
        """A task that always fails in a way that may pass is tried `max_attempts` times."""
        policy = RetryPolicy(max_attempts=bound)
        attempt = 1
        while isinstance(settle(TimeoutError(), attempt=attempt, policy=policy), Retry):
            attempt += 1

        assert bound == attempt

    @given(attempt=st.integers(1, 3), longest=st.floats(0, 100))
    def test_waits_are_the_backoffs(self, attempt: int, longest: float) -> None:
        """A wait is never negative and never above the backoff's bound."""
        policy = RetryPolicy(backoff=Backoff(base_seconds=longest / 2, max_seconds=longest))

        outcome = settle(TimeoutError(), attempt=attempt, policy=policy)

        assert isinstance(outcome, Retry)
        assert 0 <= outcome.delay_seconds <= longest
