"""What Celery's message layer gets from us: our connection, our router behind the project's own, anonymous queues."""

from collections.abc import Callable, Iterable, KeysView, Mapping
from functools import partial
from typing import Any

from celery.app.amqp import AMQP, Queues
from kombu import Connection, Exchange, Queue

from orchestra.queues import CapabilityQueue
from orchestra.transport import FleetConnection

__all__ = ["OrchestraAMQP", "OrchestraQueues"]

_Queues: Any = Queues  # celery-types has its methods return None, and Celery uses what they return
_AMQP: Any = AMQP  # celery-types has its parts as plain attributes, and Celery calls them


class OrchestraQueues(_Queues):  # type: ignore[misc]
    """
    Celery's queues, where those of a fleet have no exchange of their own.

    A message goes through the default exchange straight to its queue: a named one would make kombu read its binding
    table once per publish, and leave an entry there for every queue.
    """

    selected = False  # whether -Q chose the queues

    def __init__(self, fleet_prefix: str, registered: Callable[[], Iterable[str]], *args: Any, **kwargs: Any) -> None:
        self._fleet_prefix = fleet_prefix  # `<fleet>:`; Celery's constructor adds queues already
        self._registered = registered
        super().__init__(*args, **kwargs)

    def keys(self) -> KeysView[str]:
        """
        Return the names of all queues, those included that exist in the fleet alone.

        `celery purge` asks for these, and would else leave behind what was sent for requirements that no task declares.
        """
        return dict.fromkeys([*self, *self._registered()]).keys()

    def __missing__(self, name: str) -> Queue:
        """Declare a queue that is used for the first time."""
        if name.startswith(self._fleet_prefix):
            return self.add(Queue(name, Exchange(""), routing_key=name))
        missing: Queue = super().__missing__(name)
        return missing

    def add(self, queue: Queue | str, **kwargs: Any) -> Queue:
        """Add a queue; Celery would put one without an exchange on the default queue's."""
        if isinstance(queue, Queue) and queue.name.startswith(self._fleet_prefix) and not queue.exchange.name:
            self[queue.name] = queue
            return queue
        added: Queue = super().add(queue, **kwargs)
        return added

    def select(self, include: list[str] | str | None) -> None:
        """Consume from these queues only; Celery calls it with None where -Q isn't given."""
        self.selected = bool(include)
        super().select(include)


class OrchestraAMQP(_AMQP):  # type: ignore[misc]
    """Celery's message layer with our transport and router."""

    def Connection(self, *args: Any, transport_options: Mapping[str, Any] | None = None, **kwargs: Any) -> Connection:  # noqa: N802  # Celery's name for the class that it calls here
        """Make a connection that knows which fleet it serves."""
        options = {**self.app.transport_options, **(transport_options or {})}
        connection: Any = FleetConnection  # Celery gives some arguments by place
        made: Connection = connection(*args, transport_options=options, **kwargs)
        return made

    def as_task_v2(self, task_id: str, *args: Any, **kwargs: Any) -> Any:  # Celery's signature, and its message
        """Make a message; the retry of a task without a parent has none either, where Celery makes it its own child."""
        message = super().as_task_v2(task_id, *args, **kwargs)
        if message.headers["parent_id"] == task_id:
            message.headers["parent_id"] = None
            if message.sent_event:
                message.sent_event["parent_id"] = None
        return message

    @property
    def queues_cls(self) -> Callable[..., OrchestraQueues]:
        """What Celery makes the mapping of queues with."""
        return partial(OrchestraQueues, f"{self.app.queue_names.fleet}:", self._registered)

    def _registered(self) -> list[str]:
        if not self.app.is_on_redis:
            return []
        names = self.app.queue_names
        return [names.name(CapabilityQueue.from_suffix(suffix)) for suffix in self.app.registry.queues()]

    def flush_routes(self) -> None:
        """Put our router behind the routes that the project has, which win."""
        super().flush_routes()
        self._rtable: list[Any] = [*self._rtable, self.app.task_router]
