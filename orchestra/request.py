"""From a message to a request: what an agent does with a task that it doesn't know."""

from typing import Any

from celery.worker.consumer import Consumer

from orchestra.exceptions import ValidationError
from orchestra.logging_utils import get_logger
from orchestra.queues import CapabilityQueue

__all__ = ["OrchestraConsumer"]

log = get_logger(__name__)


class OrchestraConsumer(Consumer):
    """
    Celery's consumer, which hands a message that it can't run on to an agent that can.

    Stock Celery drops a task that isn't registered. Here the message moves to a queue for its requirement *and* its
    task, which only agents that know the task serve: in a rolling deploy nothing is lost, and nothing goes round.
    """

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # Celery's signature
        """Hand the message on, or leave it to Celery where the queue isn't one of the fleet's."""
        queue = self._source(message)
        task = message.headers.get("task")
        if queue is None or queue.task is not None or not task:
            super().on_unknown_task(body, message, exc)
            return
        target = CapabilityQueue(queue.requirement, task)
        if message.channel.hand_on(message, target):
            log.warning("task handed on", task=task, task_id=message.headers.get("id"), queue=target.suffix)
        connection: Any = self.connection  # there is one while messages arrive
        message.ack_log_error(log, connection.connection_errors)

    def _source(self, message: Any) -> CapabilityQueue | None:
        """Return the capability queue that a message came from."""
        app: Any = self.app  # OrchestraCelery
        if not hasattr(message.channel, "hand_on"):
            return None
        suffix = app.queue_names.suffix(message.delivery_info.get("routing_key") or "")
        try:
            return None if suffix is None else CapabilityQueue.from_suffix(suffix)
        except ValidationError:
            return None
