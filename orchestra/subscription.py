"""Which queues a worker consumes from: those that its capabilities satisfy, or none while it drains."""

from collections.abc import Iterable
from typing import Any

from celery.worker import state as worker_state

from orchestra.capabilities import GENERAL, CapabilitySet
from orchestra.exceptions import AgentOrchestraException
from orchestra.leases import LeaseHolder, give_back
from orchestra.logging_utils import get_logger
from orchestra.membership import Doing, served_queues
from orchestra.task import OrchestraTask

__all__ = ["Subscription", "hand_back", "needed_queues", "queues_of"]

log = get_logger(__name__)


def needed_queues(app: Any) -> frozenset[str]:  # OrchestraCelery
    """Return the suffixes of the queues that an app's own tasks ask for."""
    declared = (task.declared.requires for task in app.tasks.values() if isinstance(task, OrchestraTask))
    return frozenset({GENERAL.suffix, *(requirement.suffix for requirement in declared if requirement is not None)})


def queues_of(consumer: Any) -> list[str]:  # Celery's, as below
    """Return the names of the queues that a consumer reads now; none between two connections."""
    task_consumer = consumer.task_consumer
    return [] if task_consumer is None else sorted(queue.name for queue in list(task_consumer.queues))


class Subscription:
    """
    The queues of one worker, over all its connections.

    `capabilities` of None leave the choice to `-Q` alone. Its methods that take a consumer belong into the consumer's
    own thread, but for `doing`.
    """

    def __init__(self, app: Any, capabilities: CapabilitySet | None) -> None:
        self._app = app
        self._capabilities = capabilities
        self._heard: tuple[str, ...] = ()  # suffixes of all the queues that the fleet has
        self._left: list[str] | None = None  # names of the queues that were left to drain; None while it doesn't

    @property
    def chosen(self) -> bool:
        """Whether the worker serves what -Q names and nothing else, whatever tasks require."""
        return self._capabilities is None

    @property
    def draining(self) -> bool:
        """Whether the worker takes no more tasks."""
        return self._left is not None

    def wanted(self, suffixes: Iterable[str] = ()) -> set[str]:
        """Return the names of the queues to serve, of those that the worker's own tasks ask for and `suffixes`."""
        if self._capabilities is None:
            return set()
        asked = needed_queues(self._app) | set(suffixes)
        return served_queues(asked, self._capabilities, self._app.tasks, self._app.queue_names)

    def serve(self, consumer: Any, suffixes: tuple[str, ...]) -> None:
        """Subscribe to the queues that the worker satisfies, and leave those that are gone from the fleet's table."""
        self._heard = suffixes
        if consumer.task_consumer is None or self.draining or self._capabilities is None:
            return  # between two connections, the next registration brings the queues again
        wanted, served = self.wanted(suffixes), set(queues_of(consumer))
        for name in sorted(wanted - served):
            self._add(consumer, name)
        if not self._app.amqp.queues.selected:
            names = self._app.queue_names
            gone = {name for name in served - wanted if name.startswith(f"{names.fleet}:")}  # others aren't ours
            for name in sorted(gone - {names.default}):
                consumer.cancel_task_queue(name)

    def _add(self, consumer: Any, name: str) -> None:
        self._app.amqp.queues[name]  # declares it without an exchange, before Celery would give it one
        consumer.add_task_queue(name)

    def drain(self, consumer: Any, *, ending: bool = False) -> list[str]:
        """
        Take no more tasks, and give back those that have not started; return the names of the queues that were left.

        With `ending` the worker is about to stop, and won't `resume`.
        """
        if self._left is None:
            self._left = queues_of(consumer)
            for name in self._left:
                consumer.cancel_task_queue(name)
        given = hand_back(self._app, consumer.controller.lease_holder, ending=ending)
        if consumer.task_consumer is not None:
            consumer.task_consumer.channel.qos.forget(given)
        return self._left

    def resume(self, consumer: Any) -> list[str]:
        """Serve again what was left, and what has appeared meanwhile; return the names of the queues served."""
        left, self._left = self._left or [], None
        for name in left:
            self._add(consumer, name)
        self.serve(consumer, self._heard)
        return queues_of(consumer)

    def doing(self, consumer: Any) -> Doing:
        """Return what the worker does now."""
        holder, tasks = consumer.controller.lease_holder, consumer.task_consumer
        lane = holder.lane
        running = len(worker_state.active_requests) + (0 if lane is None else lane.running)
        if self.draining and tasks is not None:  # it's done when Redis knows of the end of all that it fetched
            running = max(running, tasks.channel.qos.in_hand + holder.untold)
        return Doing(
            queues=tuple(queues_of(consumer)),
            running=running,
            draining=self.draining,
            mean_seconds=holder.pace.mean_seconds,
            ways={} if lane is None else dict(lane.counts),
        )


def hand_back(app: Any, holder: LeaseHolder, *, ending: bool = False, leaving: bool = False) -> set[int]:
    """Give back what an agent holds, as `leases.give_back` does; where Redis can't be told, the others find it so."""
    try:
        given = give_back(app.store, holder, ending=ending, leaving=leaving)
    except AgentOrchestraException as error:
        log.warning("tasks not given back", agent=holder.agent, error=str(error))
        return set()
    if given:
        log.info("tasks given back", agent=holder.agent, tasks=len(given))
    return given
