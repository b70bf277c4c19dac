"""Agents: Celery workers that say what they can do, serve the queues that asks for it, and beat."""

import json
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any
from uuid import uuid4

from celery import bootsteps
from celery.exceptions import NotRegistered, WorkerShutdown
from celery.platforms import EX_FAILURE
from celery.worker import state as worker_state
from redis.exceptions import RedisError

from orchestra.capabilities import GENERAL, CapabilitySet, Requirement
from orchestra.exceptions import AgentNameTakenError, AgentOrchestraException, BrokerUnavailableError
from orchestra.invariants import told_plainly
from orchestra.logging_utils import get_logger
from orchestra.membership import Membership, Profile, served_queues
from orchestra.registry import AgentEntry, AgentRegistry, CatalogueEntry
from orchestra.sweep import Buried, Sweep
from orchestra.task import OrchestraTask

__all__ = ["Agent", "AgentManager", "AgentStep", "CapabilityStep"]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """
    One agent, as the registry knows it; times are Redis's.

    `queues` are those that it serves now, `running` the tasks in its hands, `tasks` the names that it can run. An
    agent that has been silent for three beats isn't `alive`, but is remembered for a day.
    """

    name: str
    capabilities: str
    host: str
    pid: int
    pool: str
    concurrency: int
    queues: tuple[str, ...]
    tasks: frozenset[str]
    running: int
    version: str
    started_at: datetime
    last_beat_at: datetime
    alive: bool

    def satisfies(self, requirement: Requirement) -> bool:
        """Tell whether the agent can do what `requirement` asks for."""
        return requirement.satisfied_by(_capability_set(self.capabilities))


class AgentManager:
    """The agents of one app's fleet."""

    def __init__(self, app: Any) -> None:  # OrchestraCelery, which is built on this
        self._registry: AgentRegistry = app.registry

    def agents(self) -> list[Agent]:
        """Return every agent that is known, by name; those that were lost within a day are not `alive`."""
        return [_agent(entry) for entry in self._registry.agents()]

    def capable_of(self, requirement: str | Iterable[str] | Requirement) -> list[Agent]:
        """Return the live agents that satisfy a requirement."""
        wanted = Requirement.parse(requirement)
        return [agent for agent in self.agents() if agent.alive and agent.satisfies(wanted)]


def _agent(entry: AgentEntry) -> Agent:
    about = entry.about
    return Agent(
        name=entry.name,
        capabilities=about["capabilities"],
        host=about["host"],
        pid=about["pid"],
        pool=about["pool"],
        concurrency=about["concurrency"],
        queues=entry.queues,
        tasks=entry.tasks,
        running=entry.running,
        version=about["version"],
        started_at=entry.started_at,
        last_beat_at=entry.last_beat_at,
        alive=entry.alive,
    )


def _capability_set(text: str) -> CapabilitySet:
    return CapabilitySet.parse(text) if text else CapabilitySet.parse(())


class CapabilityStep(bootsteps.Step):
    """A worker's first step: what it can do, and so which of the queues that its own tasks ask for it serves."""

    def __init__(self, worker: Any, capabilities: str | None = None, **_: Any) -> None:
        with told_plainly():
            worker.app.check_invariants()
        queues = worker.app.amqp.queues
        text = capabilities or worker.app.settings.capabilities
        if text:
            worker.capabilities = CapabilitySet.parse(text)
            if not queues.selected:
                queues.deselect(list(queues.consume_from))
        else:
            worker.capabilities = _capability_set("" if queues.selected else GENERAL.text)
        if not queues.selected or text:
            names = served_queues(
                needed_queues(worker.app), worker.capabilities, worker.app.tasks, worker.app.queue_names
            )
            for name in sorted(names):
                queues.select_add(queues[name])


def needed_queues(app: Any) -> frozenset[str]:  # OrchestraCelery
    """Return the suffixes of the queues that an app's own tasks ask for."""
    declared = (task.declared.requires for task in app.tasks.values() if isinstance(task, OrchestraTask))
    return frozenset({GENERAL.suffix, *(requirement.suffix for requirement in declared if requirement is not None)})


class AgentStep(bootsteps.StartStopStep):
    """A consumer's last step: register the agent, serve queues as they appear, leave at the end."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **_: Any) -> None:
        super().__init__(consumer)
        self._instance = uuid4().hex
        self._membership: Membership | None = None

    def start(self, consumer: Any) -> None:
        """Join the fleet; a worker whose name another live one holds stops with a word of why."""
        settings = consumer.app.settings
        lost_after = settings.beat_seconds * settings.lost_after_beats
        self._membership = Membership(
            consumer.app.registry,
            self._profile(consumer),
            every_seconds=settings.beat_seconds,
            patience_seconds=lost_after + settings.beat_seconds,
            doing=lambda: (_queues_of(consumer), len(worker_state.active_requests)),
            on_queues=lambda suffixes: consumer.call_soon(_serve, consumer, suffixes),
            sweep=_sweep_of(consumer.app).run,
        )
        try:
            self._membership.start()
        except AgentNameTakenError as error:
            log.critical(str(error))
            raise WorkerShutdown(EX_FAILURE) from None
        except BrokerUnavailableError as error:  # lost this very moment: Celery answers it by connecting anew
            raise ConnectionError(str(error)) from error
        log.info("agent joined", agent=consumer.hostname, capabilities=str(consumer.controller.capabilities) or "-")

    def stop(self, _consumer: Any) -> None:
        """Leave the fleet; Celery calls this on a lost connection too, and `start` again after it."""
        if self._membership is not None:
            self._membership.stop()
            self._membership = None

    shutdown = stop

    def _profile(self, consumer: Any) -> Profile:
        tasks = {name: _entry(task) for name, task in consumer.app.tasks.items()}
        return Profile(
            name=consumer.hostname,
            instance=self._instance,
            about=_about(consumer),
            tasks=tasks,
            needs=needed_queues(consumer.app),
        )


def _about(consumer: Any) -> Mapping[str, Any]:
    worker = consumer.controller
    return {
        "capabilities": str(worker.capabilities),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pool": worker.pool_cls.__module__.rpartition(".")[2],
        "concurrency": worker.concurrency,
        "version": version("agent-orchestra"),
    }


def _entry(task: Any) -> CatalogueEntry:
    """Return what a sender without the task's code needs to know of it."""
    if not isinstance(task, OrchestraTask) or task.name.startswith("celery."):
        return CatalogueEntry()
    return CatalogueEntry(
        requires=None if task.declared.requires is None else task.declared.requires.text,
        urgency=task.urgency,
        enforced=task.enforced,
        arguments=task.arguments.to_catalogue(),
    )


def _queues_of(consumer: Any) -> list[str]:
    task_consumer = consumer.task_consumer
    return [] if task_consumer is None else sorted(queue.name for queue in list(task_consumer.queues))


def _serve(consumer: Any, suffixes: tuple[str, ...]) -> None:
    """Subscribe to the queues that this agent satisfies, and leave those that are gone from the table."""
    if consumer.task_consumer is None:  # between two connections; the next registration brings the queues again
        return
    app, worker = consumer.app, consumer.controller
    if app.amqp.queues.selected and not str(worker.capabilities):
        return
    own = served_queues(needed_queues(app), worker.capabilities, app.tasks, app.queue_names)
    wanted = own | served_queues(suffixes, worker.capabilities, app.tasks, app.queue_names)
    served = set(_queues_of(consumer))
    for name in sorted(wanted - served):
        app.amqp.queues[name]  # declares it without an exchange, before Celery would give it one
        consumer.add_task_queue(name)
    gone = {name for name in served - wanted if name.startswith(f"{app.queue_names.fleet}:")}  # others aren't ours
    if not app.amqp.queues.selected:
        for name in sorted(gone - {app.queue_names.default}):
            consumer.cancel_task_queue(name)


def _sweep_of(app: Any) -> Sweep:
    return Sweep(
        app.registry,
        app.queue_names,
        steps=app.priority_steps,
        unregistered_after_seconds=app.settings.unregistered_after_seconds,
        on_buried=lambda buried: _fail(app, buried),
    )


def _fail(app: Any, buried: Buried) -> None:
    """Tell whoever waits for them that tasks went to the dead letters."""
    for raw in buried.messages:
        task_id = json.loads(raw)["headers"]["id"]
        log.error("task dead", task=buried.task, task_id=task_id, reason="unregistered")
        try:
            app.backend.mark_as_failure(task_id, NotRegistered(buried.task))
        except (AgentOrchestraException, RedisError, OSError) as error:  # the others' waiters are told all the same
            log.warning("result not stored", task_id=task_id, error=str(error))
