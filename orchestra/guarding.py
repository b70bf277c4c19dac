"""A task's calls under its breaker: asked about when they start, and watched for what they say of the service."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from orchestra.breaker import Admission, BreakerPhase, CircuitBreaker, Said
from orchestra.breaker_policy import Breaker, BreakerKey, OnOpen
from orchestra.exceptions import CircuitOpenError, PermanentError, RetryableError, classify
from orchestra.execution import RetryPolicy
from orchestra.store import Argument

__all__ = ["Guard", "GuardedCall", "Occasion", "ProbeReturnedError"]


class ProbeReturnedError(Exception):
    """A probe failed, and its task has gone back to its queue, on the attempt that it was on."""


class Occasion(NamedTuple):
    """Where and as what a call runs: under which lease, at which agent, which attempt of which task."""

    lease: str
    agent: str
    task_id: str
    attempt: int
    record_ttl_seconds: float


class Guard:
    """
    One task's breaker.

    `function` is the task's code, whose arguments a key is computed from. `once_seconds` is how long a probe keeps its
    place where the task runs at most once, and so holds no lease that would tell of its end. `reason_of` returns what
    an error that the task raised stands for, None for one that is no error of its calls.
    """

    def __init__(
        self,
        task_name: str,
        breaker: Breaker,
        on_open: OnOpen,
        function: Callable[..., Any],
        *,
        policy: RetryPolicy,
        once_seconds: float,
        reason_of: Callable[[Exception], Exception | None] = lambda error: error,
    ) -> None:
        self.task_name = task_name
        self.breaker = breaker
        self.on_open = on_open
        self.policy = policy
        self.once_seconds = once_seconds
        self.reason_of = reason_of
        self._key = BreakerKey(task_name, breaker, function)

    def to_catalogue(self) -> dict[str, Any]:  # JSON
        """Return what the catalogue says of the task's breaker."""
        return {**self.breaker.to_catalogue(), "on_open": self.on_open.value}

    def tries_again(self, error: Exception) -> bool:
        """Tell whether the task may run again after an error that may pass, were there attempts left."""
        explicit = self.policy.explicit_only and not isinstance(error, RetryableError)
        return self.reason_of(error) is error and not explicit and self.policy.max_attempts != 1

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> "GuardedCall":
        """Return the call with these arguments; one whose key can't be computed fails when it's watched."""
        try:
            return GuardedCall(self, self._key.name(args, kwargs))
        except PermanentError as error:
            return GuardedCall(self, "", error)


class GuardedCall:
    """One call; until it `began` under a lease nothing guards it, and nothing is told of it."""

    def __init__(self, guard: Guard, name: str, error: PermanentError | None = None) -> None:
        self.name = name
        self._guard = guard
        self._error = error
        self._admission: Admission | None = None
        self._tell: Callable[..., bool] | None = None

    @property
    def arguments(self) -> list[Argument]:
        """What `start.lua` is told of the breaker."""
        if not self.name:
            return []
        guard = self._guard
        return [self.name, guard.breaker.window, guard.on_open.value, guard.once_seconds]

    def began(
        self,
        told: Sequence[str],
        occasion: Occasion,
        breakers: CircuitBreaker,
        on_change: Callable[[str, BreakerPhase], object],
    ) -> None:
        """Take in what `start.lua` told at the start; `on_change` is called with each change of the breaker."""
        if not told:
            return
        kind, epoch, changed = told
        lease, agent, task_id, attempt, ttl_seconds = occasion
        call = Admission(self.name, epoch, lease, kind == "probe", task_id, attempt, ttl_seconds)
        self._admission = call

        def tell(said: Said, *, may_run_again: bool) -> bool:
            answer = breakers.report(call, said, self._guard.breaker, by=agent, may_run_again=may_run_again)
            if answer.changed is not None:
                on_change(self.name, answer.changed)
            return answer.returned

        self._tell = tell
        if changed:
            breakers.announce(self.name, changed, by=agent)
            on_change(self.name, BreakerPhase(changed))

    def refusal(self, told: Sequence[str]) -> CircuitOpenError:
        """Return the error of a task that doesn't wait for its breaker."""
        until, left = told
        when = f"calls are tried again in {float(left):.1f} s" if left else "somebody has to close it"
        return CircuitOpenError(
            f"{self._guard.task_name} was not begun: its breaker {self.name} is open; {when}.",
            retry_after=float(left) if left else None,
            breaker=self.name,
            until=datetime.fromtimestamp(float(until), UTC) if until else None,
        )

    def watch(self, perform: Callable[[], Any]) -> Any:  # what the task returns
        """
        Perform the call, and tell the breaker of a failure, or whatever becomes of a probe.

        Raises:
            ProbeReturnedError: a probe failed in a way that may pass, and its task waits in its queue again.
            Exception: what the task raised.

        """
        try:
            value = self._performed(perform)
        except Exception as error:
            if self._say(self._said_by(error), may_run_again=self._guard.tries_again(error)):
                raise ProbeReturnedError from error
            raise
        except BaseException:  # the process is to end
            self._say("nothing")
            raise
        self._say("succeeded")
        return value

    def _say(self, said: Said, *, may_run_again: bool = False) -> bool:
        if self._admission is None or self._tell is None or not (said == "failed" or self._admission.probe):
            return False
        return self._tell(said, may_run_again=may_run_again)

    def _performed(self, perform: Callable[[], Any]) -> Any:  # as above
        if self._error is not None:
            raise self._error
        return perform()

    def _said_by(self, error: Exception) -> Said:
        """Tell whether an error is one of the service's, which may pass."""
        reason, policy = self._guard.reason_of(error), self._guard.policy
        if reason is None:
            return "nothing"
        passing = classify(reason, retry_on=policy.retry_on, never_retry=policy.never_retry).retryable
        return "failed" if passing else "nothing"
