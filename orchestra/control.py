"""Remote control commands of ours: `celery -A APP control drain` and `resume`, with `-d AGENT` for some agents."""

import signal
from typing import Any

from celery.worker import state as worker_state
from celery.worker.control import control_command

from orchestra.logging_utils import get_logger
from orchestra.timeouts import GRACE_SECONDS

__all__ = ["drain", "end_cancelled", "resume"]

log = get_logger(__name__)


@control_command()
def drain(state: Any) -> dict[str, str]:  # what Celery hands to its commands
    """Take no more tasks, and finish those that were fetched; the agent stays up."""
    consumer = state.consumer
    left = consumer.controller.subscription.drain(consumer)
    log.info("agent drains", agent=consumer.hostname)
    return {"ok": f"left {', '.join(left)}"}


@control_command()
def resume(state: Any) -> dict[str, str]:
    """Serve again the queues that were left by `drain`."""
    consumer = state.consumer
    served = consumer.controller.subscription.resume(consumer)
    log.info("agent resumes", agent=consumer.hostname)
    return {"ok": f"serves {', '.join(served)}"}


@control_command(args=[("task_id", str)], signature="<task_id>")
def end_cancelled(state: Any, task_id: str) -> dict[str, str]:
    """
    End a task that is running and was cancelled, where the pool can: by SIGTERM, and by SIGKILL if that doesn't do.

    The task sees the first as SystemExit, so that it may tidy up.
    """
    consumer = state.consumer
    request = worker_state.requests.get(task_id)
    if request is None or request not in worker_state.active_requests:
        return {"ok": "it isn't running here"}
    if not request.end_cancelled(consumer.pool):
        log.info("cancelled task goes on", task_id=task_id, reason="this pool can't end a task")
        return {"ok": "it goes on"}
    consumer.timer.call_after(GRACE_SECONDS, consumer.pool.terminate_job, (request.worker_pid, signal.SIGKILL))
    log.info("cancelled task ended", task_id=task_id, task=request.name)
    return {"ok": "it was ended"}
