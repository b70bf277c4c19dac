"""What becomes of a task that takes too long: which pool can stop it how, and what the retry policy makes of it."""

import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from billiard import active_children
from billiard.einfo import ExceptionInfo
from billiard.exceptions import TimeLimitExceeded
from celery import signals
from celery.exceptions import Retry as CeleryRetry
from celery.exceptions import SoftTimeLimitExceeded
from celery.worker import state as worker_state

from orchestra.deadlines import Deadlines, Limits
from orchestra.execution import Retry, settle
from orchestra.logging_utils import get_logger
from orchestra.types import TaskState

__all__ = ["GRACE_SECONDS", "deadlines_for", "end_process", "had_ended", "sent_again", "under_limits"]

GRACE_SECONDS: Final = 5.0  # between the soft limit, which the task may answer, and the hard one
_KILLS: Final = "prefork"
_INTERRUPTS: Final = frozenset({"solo", "thread", "inline"})

log = get_logger(__name__)


def deadlines_for(pool: str, tasks: Iterable[Any]) -> Deadlines | None:
    """
    Return what interrupts tasks on a pool; None where the pool itself stops them, or nobody can.

    Where a timeout doesn't end in a killed process, the log says so once, with the tasks that declare one.
    """
    limited = sorted(task.name for task in tasks if task.soft_time_limit or task.time_limit)
    if pool == _KILLS:
        return None
    held = pool in _INTERRUPTS
    if limited:
        then = "interrupted between steps of Python code, never killed" if held else "not stopped at all"
        log.warning("timeouts don't hold by force", pool=pool, tasks=", ".join(limited), then=then)
    return Deadlines() if held else None


def under_limits(deadlines: Deadlines, task: Any, request: Any, act: Callable[[], Any]) -> Any:  # the task's own types
    """Call `act` under the limits of a task, or of this call of it, where it has any."""
    hard, soft = getattr(request, "timelimit", None) or (None, None)
    hard, soft = hard or task.time_limit, soft or task.soft_time_limit
    if not hard and not soft:
        return act()
    steps = [(float(at), error) for at, error in ((soft, SoftTimeLimitExceeded), (hard, TimeLimitExceeded)) if at]
    limits = Limits(tuple(sorted(steps, key=lambda step: step[0])), max(at for at, _ in steps) + GRACE_SECONDS)
    return deadlines.keep(limits, f"{task.name} {request.id}", act)


def end_process(pid: int | None) -> None:
    """Kill a pool process, so that its attempt is over before there's another; any other number is left alone."""
    if any(child.pid == pid for child in active_children()):
        with suppress(ProcessLookupError):
            os.kill(int(pid or 0), signal.SIGKILL)


def had_ended(request: Any) -> bool:  # OrchestraRequest
    """
    Tell whether an attempt had come to its end when its process was killed; then it's done with.

    A part of a chord isn't, since nobody knows whether it was counted.
    """
    context = request._context
    record = request._app.state.read(request.id)
    was_sent_again = record is not None and record.attempt > (context.retries or 0) + 1
    was_told = record is not None and record.state is TaskState.SUCCEEDED
    succeeded = not request.chord and (was_told or bool(request._success_was_stored()))
    if was_sent_again or succeeded:
        worker_state.task_ready(request, successful=succeeded)
        request.acknowledge()
    return was_sent_again or succeeded


def sent_again(request: Any, error: Exception) -> bool:  # OrchestraRequest
    """Publish another attempt of a task that was ended, where its retry policy allows one; return whether it did."""
    task, context = request.task, request._context
    attempt = (context.retries or 0) + 1
    outcome = context.outcome = settle(error, attempt=attempt, policy=task.retry_policy)
    if not isinstance(outcome, Retry):
        return False
    delay_seconds = outcome.delay_seconds + _put_off_seconds(request, outcome.delay_seconds)
    again = {"countdown": delay_seconds, "retries": attempt}
    task.signature_from_request(context, request.args, request.kwargs, **again).apply_async()
    worker_state.task_ready(request)
    task.backend.mark_as_retry(request.id, error, request=context, store_result=request.store_errors)
    request.acknowledge()
    _tell_of_retry(request, error, delay_seconds)
    return True


def _put_off_seconds(request: Any, delay_seconds: float) -> float:
    """Return how much longer a retry is to wait for its task's budget, and mark that for the record."""
    budget, context = request.task.retry_policy.budget, request._context
    if budget is None:
        return 0.0
    seconds = float(request._app.retry_budgets.put_off_seconds(request.task.name, budget, delay_seconds))
    context.put_off_seconds = seconds
    return seconds


def _tell_of_retry(request: Any, error: Exception, delay_seconds: float) -> None:
    """Tell whoever wants to know, as Celery does after a retry was published."""
    task, einfo = request.task, _described(error)
    request.send_event("task-retried", exception=repr(error), traceback=None)
    task.on_retry(error, request.id, request.args, request.kwargs, einfo)
    reason: Any = CeleryRetry(exc=error, when=delay_seconds)  # type: ignore[arg-type]  # a number
    signals.task_retry.send(sender=task, request=request._context, reason=reason, einfo=einfo)
    log.info("task timed out", task=task.name, task_id=request.id, error=repr(error), then="tried again")


def _described(error: Exception) -> ExceptionInfo:
    """Return an error as Celery's hooks take it, which is with a traceback."""
    try:
        raise error
    except type(error):
        return ExceptionInfo()
