"""Whether a task's end makes a dead letter of its message, and with which reason."""

from typing import Any

from celery.exceptions import Reject

from orchestra.exceptions import PoisonError
from orchestra.execution import Dead
from orchestra.leases import Lease, condemnation
from orchestra.types import DeadReason, TaskState

__all__ = ["lease_of", "verdict_of"]


def lease_of(request: Any) -> Lease | None:  # Celery's Context
    """Return the lease that a request came by; None where there's no request, or no lease."""
    properties = getattr(request, "properties", None) or {}
    return Lease.from_tag(properties.get("delivery_tag"))


def verdict_of(app: Any, step: TaskState, error: Any, request: Any) -> str | None:  # OrchestraCelery, Celery's Context
    """
    Return why a request's message is to become a dead letter, as a `condemn` tells it; None when it isn't to.

    A task that declares `dead_letters=False` makes none by failing or expiring, nor does an exception that it declares
    in Celery's `throws`, since those are expected.
    """
    ended_badly = step in {TaskState.FAILED, TaskState.EXPIRED} and lease_of(request) is not None
    if not ended_badly or _is_expected(app.tasks.get(request.task), error):
        return None
    return _words(step, error, request)


def _words(step: TaskState, error: Any, request: Any) -> str:
    if isinstance(error, PoisonError):
        return condemnation(DeadReason.POISON, error)
    if step is TaskState.EXPIRED:
        return condemnation(DeadReason.EXPIRED, f"It expired at {request.expires}, before an agent started it.")
    if isinstance(error, Reject):
        return condemnation(DeadReason.REJECTED, (error.args or ("",))[0] or "No reason was given.")
    outcome = getattr(request, "outcome", None)  # what the task's retry policy came to
    if isinstance(outcome, Dead):
        return condemnation(DeadReason.EXHAUSTED if outcome.exhausted else DeadReason.PERMANENT, outcome.error)
    return condemnation(DeadReason.PERMANENT, error)


def _is_expected(task: Any, error: Any) -> bool:  # Celery's task, or None
    if isinstance(error, PoisonError):
        return False
    if getattr(task, "dead_letters", None) is False:
        return True
    throws = getattr(task, "throws", ())
    return bool(throws) and isinstance(error, throws)
