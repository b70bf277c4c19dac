"""One run of a task by an agent: begun, guarded, performed, and settled."""

from asyncio import CancelledError
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from inspect import iscoroutine
from typing import Any, Final, NoReturn, assert_never

from billiard.common import terminate_handler_fired  # type: ignore[attr-defined]  # newer than the stubs
from billiard.exceptions import TimeLimitExceeded
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded, WorkerShutdown, WorkerTerminate
from celery.exceptions import Retry as CeleryRetry
from kombu.exceptions import OperationalError

from orchestra.breaker import BreakerPhase
from orchestra.cancellation import REASON
from orchestra.coroutines import run_coroutine
from orchestra.exceptions import (
    AgentOrchestraException,
    BrokerUnavailableError,
    CircuitOpenError,
    FencedError,
    PermanentError,
    ValidationError,
)
from orchestra.execution import Dead, Outcome, Retry, Succeeded, run
from orchestra.guarding import Guard, GuardedCall, Occasion, ProbeReturnedError
from orchestra.leases import Begun, Lease, Start, start
from orchestra.logging_utils import get_logger
from orchestra.state import advance_arguments
from orchestra.submission import plain
from orchestra.timeouts import under_limits
from orchestra.types import TaskState
from orchestra.utils import error_text

__all__ = ["Performance", "reason_of"]

_LIMITS: Final = (SoftTimeLimitExceeded, TimeLimitExceeded)
_CONTROL_FLOW: Final = (CeleryRetry, Ignore, Reject, FencedError)

log = get_logger(__name__)


class _RefusedError(Exception):
    """The task isn't begun, since its breaker is open: its failure, and no attempt."""

    def __init__(self, error: CircuitOpenError) -> None:
        super().__init__(error)
        self.error = error


class Performance:
    """
    One run of a task.

    It marks the request as it goes: as `performed` once the task's code has ended, and with the `outcome` of that.
    """

    def __init__(self, task: Any, request: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._task = task  # OrchestraTask, which is built on this
        self._request = request  # Celery's Context
        self._args = args
        self._kwargs = dict(kwargs)
        self._fleet: Any = task.app  # OrchestraCelery

    def result(self) -> Any:  # the task's own type
        """
        Run the task, and return what it returned.

        Raises:
            Exception: what its errors come to by its retry policy: themselves, or Celery's Retry.
            Ignore: it isn't to be run, or goes on elsewhere.
            Reject: its message goes back.

        """
        request, call = self._request, self._guarded_call()
        try:
            outcome = run(
                lambda: self._carried_out(call),
                attempt=request.retries + 1,
                policy=self._task.retry_policy,
                passing=(*_CONTROL_FLOW, ProbeReturnedError, _RefusedError),
            )
        except FencedError as error:  # the other run tells how the task ends
            log.info("task skipped", task_id=request.id, reason=str(error))
            raise Reject(error, requeue=True) from error
        except ProbeReturnedError as returned:
            log.info("task went back", task_id=request.id, breaker=call and call.name, error=repr(returned.__cause__))
            raise Ignore from returned
        except _RefusedError as refused:
            request.performed = True
            raise refused.error from None
        if getattr(request, "look", None) and request.look.seen:
            self._drop_cancelled()
        request.performed = True
        request.outcome = outcome
        return self._settled(outcome)

    def _guarded_call(self) -> GuardedCall | None:
        """Return what the task's guard has to do with this call; a key sees the arguments as the task's code does."""
        guard: Guard | None = None if self._request.is_eager else self._task.guard
        if guard is None:
            return None
        args, kwargs = self._args, self._kwargs
        if guard.breaker.key is not None:
            try:
                args, kwargs = self._revived()
            except ValidationError:  # which `_perform` raises in its place
                return GuardedCall(guard, "")
        return guard.call(args, kwargs)

    def _revived(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Check the arguments, and return them as the task's code has them; a ValidationError when they don't fit."""
        task = self._task
        task.arguments.check(task.name, self._args, self._kwargs, verdict="can't run")
        revived: tuple[tuple[Any, ...], dict[str, Any]] = task.arguments.revive(self._args, self._kwargs)
        return revived

    def _carried_out(self, call: GuardedCall | None) -> Any:  # the task's own types
        """Begin the task and perform it, under its limits where the pool doesn't hold them."""
        if self._request.is_eager:
            return self._perform()
        self._start(call)
        act = self._perform if call is None else partial(call.watch, self._perform)
        deadlines = self._fleet.deadlines
        return act() if deadlines is None else under_limits(deadlines, self._task, self._request, act)

    def _start(self, call: GuardedCall | None) -> None:
        """Begin the task: its lease is ours still, nobody has run it meanwhile, and its record says `running`."""
        if getattr(self._request, "has_begun", False):  # with others, on the short way
            return
        lease = Lease.from_tag((self._request.properties or {}).get("delivery_tag"))
        try:
            verdict, standing, told = self._begin_surely(lease, call)
        except AgentOrchestraException as error:
            if lease is None:  # delivered by another transport, for which our bookkeeping mustn't stop work
                log.warning("task state not recorded", task_id=self._request.id, error=str(error))
                return
            log.warning("task not begun", task_id=self._request.id, error=str(error))
            raise Reject(error, requeue=True) from error  # its result couldn't be stored either
        if verdict is Start.MOVED:
            log.info("task skipped", task_id=self._request.id, reason="another agent has it")
            raise Reject(verdict, requeue=True)  # what is left of it here
        if verdict is Start.PARKED:
            log.info("task parked", task_id=self._request.id, breaker=call and call.name)
            raise Ignore  # its lease has ended already
        if verdict is Start.REFUSED and call is not None:
            raise _RefusedError(call.refusal(told))
        if standing == TaskState.CANCELLED:
            self._drop_cancelled()
        if verdict is Start.FINISHED or standing == TaskState.EXPIRED:
            log.info("task skipped", task_id=self._request.id, reason=standing or verdict.value)
            raise Ignore
        if call is not None and lease is not None:
            occasion = Occasion(
                lease=f"{lease.holder}:{lease.number}",
                agent=self._request.hostname or "",
                task_id=self._request.id,
                attempt=self._request.retries + 1,
                record_ttl_seconds=self._fleet.settings.state_ttl_seconds,
            )
            call.began(told, occasion, self._fleet.breakers, self._tell_of_breaker)

    def _drop_cancelled(self) -> NoReturn:
        """Tell whoever waits for the task, the chord that it's a part of included, that it was cancelled."""
        request = self._request
        log.info("task dropped", task_id=request.id, reason=REASON)
        stored = not request.ignore_result
        self._task.backend.mark_as_revoked(request.id, REASON, request=request, store_result=stored)
        raise Ignore

    def _tell_of_breaker(self, name: str, phase: BreakerPhase) -> None:
        """Have Celery's event stream tell of a breaker's change."""
        with (
            suppress(OperationalError, OSError),
            self._fleet.events.default_dispatcher(hostname=self._request.hostname) as events,
        ):
            events.send("breaker-changed", breaker=name, state=phase.value)

    def _begin_surely(self, lease: Lease | None, call: GuardedCall | None) -> Begun:
        """Begin the task, on new connections where the old ones have fallen silent."""
        try:
            return self._begin(lease, call)
        except BrokerUnavailableError:
            results = getattr(self._task.backend, "client", None)  # Redis's, which may have fallen silent as well
            if lease is None or results is None:
                raise
            results.connection_pool.disconnect(inuse_connections=False)
            return self._begin(lease, call)

    def _begin(self, lease: Lease | None, call: GuardedCall | None) -> Begun:
        fleet, task, request = self._fleet, self._task, self._request
        circumstances = {"agent": request.hostname or "", "attempt": request.retries + 1, "name": task.name}
        if lease is None:
            return Begun(Start.STARTED, fleet.state.advance(request.id, TaskState.RUNNING, **circumstances) or "")
        ttl_seconds = fleet.settings.state_ttl_seconds
        record = advance_arguments(TaskState.RUNNING, ttl_seconds=ttl_seconds, **circumstances)
        followed = bool(request.chord or request.errbacks)
        budget = None if request.retries else task.retry_policy.budget
        return start(
            fleet.store,
            lease,
            request.id,
            once=not task.acks_late,
            followed=followed,
            record=record,
            counting="" if budget is None else fleet.retry_budgets.counting(task.name, budget),
            guard=() if call is None else call.arguments,
        )

    def _perform(self) -> Any:  # the task's own types
        args, kwargs = self._revived() if self._task.enforced else (self._args, self._kwargs)
        try:
            ended = self._task.run(*args, **kwargs)
            return run_coroutine(ended, interrupts=_LIMITS) if iscoroutine(ended) else ended
        except (SystemExit, KeyboardInterrupt, CancelledError) as error:
            if self._request.is_eager or _is_being_stopped(error):
                raise
            message = f"The task raised {error_text(error).removesuffix(': ')}, which ends the task and not its agent."
            raise PermanentError(message) from error

    def _settled(self, outcome: Outcome) -> Any:  # the task's own types
        match outcome:
            case Succeeded(value):
                return plain(value) if self._task.enforced else value
            case Retry(error, delay_seconds):
                raise self._sent_again(error, delay_seconds + self._put_off_seconds(delay_seconds))
            case Dead(error):
                raise error
            case _:
                assert_never(outcome)

    def _put_off_seconds(self, delay_seconds: float) -> float:
        """Return how much longer a retry is to wait, since the fleet has had many of this task."""
        budget, request = self._task.retry_policy.budget, self._request
        if budget is None or request.is_eager or not self._fleet.is_on_redis:
            return 0.0
        seconds = self._fleet.retry_budgets.put_off_seconds(self._task.name, budget, delay_seconds)
        request.put_off_seconds = seconds  # for the record
        return float(seconds)

    def _sent_again(self, error: Exception, delay_seconds: float) -> Exception:
        """
        Publish the retry; when that fails the message goes back to its queue, so that nothing is lost.

        What can't go back fails visibly instead: a task that runs at most once, whose message is gone since its start.
        So does what could never be published, which would otherwise run again and again.
        """
        try:
            again = {"countdown": delay_seconds, "max_retries": self._task.max_retries}
            retry: Exception = self._task.retry(exc=error, throw=False, **again)
        except Reject as rejected:
            reason = rejected.args[0]
            log.warning("retry not published", task_id=self._request.id, error=repr(reason))
            if isinstance(reason, ValidationError) or not self._task.acks_late:
                return error
            return Reject(reason, requeue=True)
        return retry


def _is_being_stopped(error: BaseException) -> bool:
    """Tell whether it's the agent that stops the task, rather than the task that raised what would stop an agent."""
    return isinstance(error, (WorkerShutdown, WorkerTerminate)) or bool(terminate_handler_fired())


def reason_of(error: Exception) -> Exception | None:
    """Return the error that an exception stands for: Celery's Retry for its reason, other control flow for none."""
    if not isinstance(error, _CONTROL_FLOW):
        return error
    reason = getattr(error, "exc", None)
    return reason if isinstance(reason, Exception) else None
