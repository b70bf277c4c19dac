"""Agents: Celery workers that say what they can do, serve the queues that asks for it, and beat."""

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib.metadata import version
from typing import Any, Final

from celery import bootsteps
from celery.exceptions import NotRegistered, WorkerShutdown
from celery.platforms import EX_FAILURE
from redis.exceptions import RedisError

import orchestra.control  # noqa: F401  # Celery learns of remote control commands when they're imported
from orchestra.capabilities import GENERAL, CapabilitySet, Requirement
from orchestra.dead_letters import DeadLetters
from orchestra.exceptions import (
    AgentNameTakenError,
    AgentOrchestraException,
    BrokerUnavailableError,
    ConfigurationError,
    ValidationError,
)
from orchestra.invariants import told_plainly
from orchestra.logging_utils import get_logger
from orchestra.membership import SWEEP_EVERY_BEATS, Membership, Profile
from orchestra.pools import InlinePool
from orchestra.registry import AgentEntry, AgentRegistry, CatalogueEntry
from orchestra.request import lease_holder_of
from orchestra.shared_breakers import SharedBreakers
from orchestra.stranded import REASON, StrandedSweep
from orchestra.subscription import Subscription, hand_back, needed_queues
from orchestra.sweep import Buried, Sweep
from orchestra.task import OrchestraTask
from orchestra.timeouts import deadlines_for

__all__ = ["Agent", "AgentManager", "AgentStep", "CapabilityStep"]

_POLL_SECONDS: Final = 0.1
_RUN: Final = 0x1  # celery.bootsteps.RUN, which celery-types leaves out
_ASK_AGAIN_SECONDS: Final = 2.0  # a broadcast passes an agent by that is just connecting

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """
    One agent, as the registry knows it; times are Redis's.

    `queues` are those that it serves now, `running` the tasks in its hands, `tasks` the names that it can run,
    `mean_seconds` how long its tasks took lately, None until one has ended; `ways` counts the messages that took the
    short way (`express`) of an inline pool, and the others by what kept them off it. One that is `draining` takes no
    more. An agent that has been silent for five beats isn't `alive`, but is remembered for a day.
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
    draining: bool
    version: str
    started_at: datetime
    last_beat_at: datetime
    alive: bool
    mean_seconds: float | None = None
    ways: Mapping[str, int] = field(default_factory=dict, hash=False)

    def satisfies(self, requirement: Requirement) -> bool:
        """Tell whether the agent can do what `requirement` asks for."""
        return requirement.satisfied_by(_capability_set(self.capabilities))


class AgentManager:
    """The agents of one app's fleet."""

    def __init__(self, app: Any) -> None:  # OrchestraCelery, which is built on this
        self._app = app
        self._registry: AgentRegistry = app.registry

    def agents(self) -> list[Agent]:
        """Return every agent that is known, by name; those that were lost within a day are not `alive`."""
        return [_agent(entry) for entry in self._registry.agents()]

    def former(self) -> list[Agent]:
        """Return the agents that stopped within a day, by name; their last beat is when they did."""
        return [_agent(entry) for entry in self._registry.former()]

    def capable_of(self, requirement: str | Iterable[str] | Requirement) -> list[Agent]:
        """Return the live agents that satisfy a requirement."""
        wanted = Requirement.parse(requirement)
        return [agent for agent in self.agents() if agent.alive and agent.satisfies(wanted)]

    def named(self, names: Iterable[str]) -> list[Agent]:
        """
        Return the live agents of these names.

        A name is `text@host`, or `text` alone for every `text@…`; `*` and `?` stand for any text and any character.

        Raises:
            ValidationError: no live agent has one of the names; it tells the nearest.

        """
        alive = [agent for agent in self.agents() if agent.alive]
        found = {name: [agent for agent in alive if _is_named(agent, name)] for name in names}
        for name, agents in found.items():
            if not agents:
                raise _no_agent(name, alive)
        chosen = {agent.name for agents in found.values() for agent in agents}
        return [agent for agent in alive if agent.name in chosen]

    def drain(
        self,
        names: Iterable[str],
        *,
        timeout_seconds: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> dict[str, int]:
        """
        Let agents take no more tasks, and wait until they have finished those that they fetched; they stay up.

        Returns:
            For each agent how many tasks it still has in hand: 0, unless `timeout_seconds` came first. One that has
            left or died meanwhile isn't waited for.

        Raises:
            ValidationError: as for `named`.

        """
        chosen = [agent.name for agent in self.named(names)]
        started, asked_at = clock(), -math.inf
        while True:
            if clock() - asked_at >= _ASK_AGAIN_SECONDS:
                self._app.control.broadcast("drain", destination=chosen)
                asked_at = clock()
            now = {agent.name: agent for agent in self.agents() if agent.alive}
            held = {name: _held(now[name]) if name in now else 0 for name in chosen}
            if not any(held.values()) or (timeout_seconds is not None and clock() - started >= timeout_seconds):
                return held
            sleep(_POLL_SECONDS)

    def resume(self, names: Iterable[str]) -> list[str]:
        """
        Let drained agents take tasks again; return their names.

        Raises:
            ValidationError: as for `named`.

        """
        chosen = [agent.name for agent in self.named(names)]
        self._app.control.broadcast("resume", destination=chosen)
        return chosen


def _is_named(agent: Agent, name: str) -> bool:
    return fnmatchcase(agent.name, name) or fnmatchcase(agent.name.partition("@")[0], name)


def _no_agent(name: str, alive: Iterable[Agent]) -> ValidationError:
    known = [agent.name for agent in alive]
    nearest = get_close_matches(name, known) or known
    hint = f"there are {', '.join(nearest)}" if nearest else "none is running"
    return ValidationError(f"No live agent is named {name!r}: {hint}.")


def _held(agent: Agent) -> int:
    """Count what an agent still has to finish; one that hasn't heard yet that it's to drain has something at least."""
    return agent.running if agent.draining else max(agent.running, 1)


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
        draining=entry.draining,
        version=about["version"],
        started_at=entry.started_at,
        last_beat_at=entry.last_beat_at,
        alive=entry.alive,
        mean_seconds=entry.mean_seconds,
        ways=entry.ways,
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
        if text and not queues.selected:
            queues.deselect(list(queues.consume_from))
        worker.capabilities = _capability_set(text or ("" if queues.selected else GENERAL.text))
        worker.subscription = Subscription(worker.app, worker.capabilities if text or not queues.selected else None)
        for name in sorted(worker.subscription.wanted()):
            queues.select_add(queues[name])
        worker.lease_holder = lease_holder_of(worker)
        worker.app.deadlines = deadlines_for(_pool_of(worker), worker.app.tasks.values())


class AgentStep(bootsteps.StartStopStep):
    """A consumer's last step: register the agent, serve queues as they appear, leave at the end."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **_: Any) -> None:
        super().__init__(consumer)
        self._membership: Membership | None = None

    def start(self, consumer: Any) -> None:
        """Join the fleet; a worker whose name is taken, or whose Redis is too old, stops with a word of why."""
        settings = consumer.app.settings
        lost_after = settings.beat_seconds * settings.lost_after_beats
        subscription, profile = consumer.controller.subscription, self._profile(consumer)
        tidy_up = _tidying(consumer, profile)
        self._membership = Membership(
            consumer.app.registry,
            profile,
            every_seconds=settings.beat_seconds,
            patience_seconds=lost_after + settings.beat_seconds,
            doing=lambda: subscription.doing(consumer),
            on_queues=lambda suffixes: consumer.call_soon(subscription.serve, consumer, suffixes),
            sweep=tidy_up,
        )
        try:
            consumer.app.store.check_version()
            self._membership.start()
            _learn_breakers(consumer, profile)
        except (AgentNameTakenError, ConfigurationError) as error:
            log.critical(str(error))
            raise WorkerShutdown(EX_FAILURE) from None
        except BrokerUnavailableError as error:  # lost this very moment: Celery answers it by connecting anew
            raise ConnectionError(str(error)) from error
        log.info("agent joined", agent=consumer.hostname, capabilities=str(consumer.controller.capabilities) or "-")

    def stop(self, consumer: Any) -> None:
        """
        Take no more, and give back what has not started; the agent is a member until its last task has ended.

        Celery calls this on a lost connection too, and `start` again after it.
        """
        if consumer.blueprint.state == _RUN:
            self._leave()
            return
        consumer.controller.lease_holder.began()  # no loop shows from here on that the agent lives
        consumer.controller.subscription.drain(consumer, ending=True)
        if consumer.controller.semaphore:  # what waits here for a free process was given back; begin none of it
            consumer.controller.semaphore.clear()

    def shutdown(self, consumer: Any) -> None:
        """Leave the fleet at the agent's end, and give back whatever it hasn't come to the end of."""
        worker = consumer.controller
        for callback in worker.hub._pop_ready() if worker.hub else ():  # noqa: SLF001  # as Celery's prefork pool does: acknowledgements
            callback()
        if worker.lease_holder.lane is not None:
            worker.lease_holder.lane.stop()
        worker.lease_holder.rest()  # first, or a last beat would have it live on
        hand_back(consumer.app, worker.lease_holder, leaving=True)
        self._leave()

    def _leave(self) -> None:
        if self._membership is not None:
            self._membership.stop()
            self._membership = None

    def _profile(self, consumer: Any) -> Profile:
        tasks = {name: _entry(task) for name, task in consumer.app.tasks.items()}
        return Profile(
            name=consumer.hostname,
            instance=consumer.controller.lease_holder.name,
            about=_about(consumer),
            tasks=tasks,
            needs=needed_queues(consumer.app),
        )


def _pool_of(worker: Any) -> str:
    return "inline" if issubclass(worker.pool_cls, InlinePool) else str(worker.pool_cls.__module__.rpartition(".")[2])


def _about(consumer: Any) -> Mapping[str, Any]:
    worker = consumer.controller
    return {
        "capabilities": str(worker.capabilities),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pool": _pool_of(worker),
        "concurrency": worker.concurrency,
        "chosen_queues": worker.subscription.chosen,
        "version": version("agent-orchestra"),
    }


def _entry(task: Any) -> CatalogueEntry:
    """Return what a sender without the task's code needs to know of it."""
    if not isinstance(task, OrchestraTask) or task.name.startswith("celery."):
        return CatalogueEntry()
    return CatalogueEntry(
        requires=None if task.declared.requires is None else task.declared.requires.text,
        urgency=task.urgency,
        on_unroutable=task.on_unroutable,
        unique=task.unique,
        enforced=task.enforced,
        arguments=task.arguments.to_catalogue(),
        breaker=None if task.guard is None else task.guard.to_catalogue(),
        max_queue_depth=task.max_queue_depth,
    )


def _learn_breakers(consumer: Any, profile: Profile) -> None:
    """Have nothing fetched from queues whose tasks would all wait for an open breaker."""
    known = SharedBreakers(consumer.app.registry, consumer.app.queue_names, profile.tasks)
    consumer.controller.lease_holder.shared_breakers = known.read()


def _tidying(consumer: Any, profile: Profile) -> Callable[[], None]:
    """Return what an agent does for its fleet, and for itself, every now and then."""
    sweep = _sweep_of(consumer.app)

    def tidy_up() -> None:
        sweep()
        _learn_breakers(consumer, profile)

    return tidy_up


def _sweep_of(app: Any) -> Callable[[], None]:
    """Return what an agent does every so often to tidy up."""
    stranded, unused, settings = _stranded_sweep_of(app), _unused_sweep_of(app), app.settings
    letters = DeadLetters(app.store, app.queue_names, record_ttl_seconds=settings.state_ttl_seconds)

    def sweep() -> None:
        stranded.run()
        unused.run()
        dropped = letters.trim(most=settings.dead_letters_max, ttl_seconds=settings.dead_letter_ttl_seconds)
        if dropped:
            log.warning("dead letters dropped", letters=dropped, kept_at_most=settings.dead_letters_max)

    return sweep


def _stranded_sweep_of(app: Any) -> StrandedSweep:
    return StrandedSweep(
        app.store,
        app.registry,
        app.queue_names,
        steps=app.priority_steps,
        queue_prefix=app.store.keys.global_prefix,
        pause_seconds=SWEEP_EVERY_BEATS * app.settings.beat_seconds / 2,
        on_stranded=lambda stranded: _fail_one(app, stranded.task, stranded.task_id, REASON, stranded.error),
    )


def _unused_sweep_of(app: Any) -> Sweep:
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
        _fail_one(app, buried.task, task_id, "unregistered", NotRegistered(buried.task))


def _fail_one(app: Any, task: str, task_id: str, reason: str, error: Exception) -> None:
    log.error("task dead", task=task, task_id=task_id, reason=reason)
    try:
        app.backend.mark_as_failure(task_id, error)
    except (AgentOrchestraException, RedisError, OSError) as lost:  # the others' waiters are told all the same
        log.warning("result not stored", task_id=task_id, error=str(lost))
