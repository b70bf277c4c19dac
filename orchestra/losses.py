"""What an agent makes of a lost process, of memory that ran out, and of a message that has cost too much."""

from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback  # type: ignore[attr-defined]  # newer than the stubs
from billiard.exceptions import WorkerLostError

from orchestra.exceptions import PoisonError
from orchestra.execution import out_of_memory
from orchestra.leases import NOTHING_TOLD, Told
from orchestra.task import OrchestraTask

__all__ = ["as_info", "error_in", "is_process_loss", "poison_of", "survivable", "told_of"]


def told_of(message: Any) -> Told:  # kombu's Message
    """Return what Redis told of a message's former deliveries."""
    told: Told = getattr(message, "told", NOTHING_TOLD)
    return told


def error_in(exc_info: Any) -> BaseException:  # billiard's ExceptionInfo
    """Return the error that a pool reports."""
    error: BaseException = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error


def as_info(error: Exception) -> Any:  # ExceptionInfo
    """Return an error as pools report one."""
    try:
        raise error
    except type(error):
        return ExceptionInfo()


def survivable(exc_info: Any) -> Any:  # ExceptionInfo, as above
    """
    Return what Celery is to make of a failure: of a MemoryError one that ends the task alone.

    Celery would raise it again in the agent itself, and end that, and then the next one that gets the message.
    """
    error = error_in(exc_info)
    if not isinstance(error, MemoryError):
        return exc_info
    return as_info(out_of_memory(error))


def is_process_loss(error: BaseException) -> bool:
    """Tell whether a task's process is gone, rather than its code having failed."""
    return isinstance(error, (WorkerLostError, SystemExit, KeyboardInterrupt))


def poison_of(request: Any) -> PoisonError | None:  # Celery's Request
    """Return what a request's message fails with, if more was lost with it than its task allows; None if not."""
    told, task, settings = told_of(request.message), request.task, request.app.settings
    ours = isinstance(task, OrchestraTask)
    processes = task.max_lost_processes if ours and task.max_lost_processes is not None else settings.max_lost_processes
    agents = task.max_lost_agents if ours and task.max_lost_agents is not None else settings.max_lost_agents
    if told.lost_processes <= processes and told.lost_agents <= agents:
        return None
    message = (
        f"{task.name} isn't tried again: {told.lost_processes} processes and {told.lost_agents} agents were lost while "
        f"it ran, and {processes} and {agents} are allowed. Its message is kept: orchestra dead show {request.id}"
    )
    return PoisonError(
        message,
        task_id=request.id,
        letter=request.id,
        lost_processes=told.lost_processes,
        lost_agents=told.lost_agents,
    )
