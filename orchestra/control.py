"""Remote control commands of ours: `celery -A APP control drain` and `resume`, with `-d AGENT` for some agents."""

from typing import Any

from celery.worker.control import control_command

from orchestra.logging_utils import get_logger

__all__ = ["drain", "resume"]

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
