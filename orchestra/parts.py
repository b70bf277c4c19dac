"""What an app of ours is made of: its names, its bounds, and its ways to the fleet's Redis."""

from functools import cached_property
from typing import Any, Final

from celery import Celery
from kombu.transport.redis import Channel as RedisChannel

from orchestra.arguments import ArgumentSchema
from orchestra.breaker import CircuitBreaker
from orchestra.broker import REDIS_SCHEMES, BrokerLink, location_of
from orchestra.capabilities import Requirement
from orchestra.config import OrchestraSettings, load_settings
from orchestra.fleet_view import Routability
from orchestra.invariants import told_plainly
from orchestra.queues import QueueNames
from orchestra.registry import AgentRegistry, CachedCatalogue, CatalogueEntry
from orchestra.retries import RetryBudgets
from orchestra.state import StateManager
from orchestra.store import Keys, Store
from orchestra.submission import Declared, Limits
from orchestra.task import OrchestraTask
from orchestra.task_router import TaskRouter
from orchestra.types import Unique, Urgency
from orchestra.unroutable import UnroutablePolicy, parse_policy
from orchestra.wires import Wires

__all__ = ["Parts"]

_NOTHING_DECLARED: Final = Declared()


class Parts(Celery):
    """A Celery app with the parts that ours add; each is made when it's first needed."""

    _given_settings: OrchestraSettings | None = None

    @cached_property
    def settings(self) -> OrchestraSettings:
        """What Orchestra reads from the environment, unless the app was given its own."""
        with told_plainly():
            return self._given_settings or load_settings()

    @cached_property
    def queue_names(self) -> QueueNames:
        """How this fleet's queues are called."""
        fleet = self.settings.namespace or self.main or "orchestra"
        return QueueNames(fleet, self.conf.task_default_queue)

    @cached_property
    def limits(self) -> Limits:
        """The bounds of a payload."""
        return Limits(max_bytes=self.settings.max_payload_bytes, max_depth=self.settings.max_payload_depth)

    @cached_property
    def task_router(self) -> TaskRouter:
        """The router that Celery asks after the project's own `task_routes`."""
        return TaskRouter(self.queue_names, lambda name: self.declared(name).requires)

    @cached_property
    def store(self) -> Store:
        """The fleet's part of the broker's Redis."""
        keys = Keys(self.settings.key_prefix, self.queue_names.fleet, self.prefix_queues)
        link = BrokerLink(self.connection_for_write, patience_seconds=self.settings.connect_timeout_seconds)
        return Store(link.client, keys, location=self.broker_location(), leave=link.leave, forget=link.forget)

    @cached_property
    def wires(self) -> Wires:
        """The connections that submissions go through, as many at a time as kombu's pools may have."""
        link = BrokerLink(self.connection_for_write, patience_seconds=self.settings.connect_timeout_seconds)
        most = int(self.conf.broker_transport_options.get("max_connections") or RedisChannel.max_connections)
        return Wires(link.client, most=min(most, self.conf.broker_pool_limit or most), forget=link.forget)

    @property
    def prefix_queues(self) -> str:
        """What the names of the lists of queues begin with in Redis, by kombu's option for it; mostly nothing."""
        return str(self.conf.broker_transport_options.get("global_keyprefix", ""))

    def broker_location(self) -> str:
        """Return where the broker is, as errors say it: `host:port` or a socket's path, without a password."""
        return location_of(self.connection_for_write())

    @cached_property
    def state(self) -> StateManager:
        """The records of the fleet's tasks."""
        return StateManager(self.store, self.queue_names, ttl_seconds=self.settings.state_ttl_seconds)

    @cached_property
    def retry_budgets(self) -> RetryBudgets:
        """How many retries the fleet's tasks may still have."""
        return RetryBudgets(self.store)

    @cached_property
    def breakers(self) -> CircuitBreaker:
        """The fleet's circuit breakers."""
        return CircuitBreaker(self.store)

    @cached_property
    def registry(self) -> AgentRegistry:
        """The fleet's agents, queues and catalogue. Celery's `tasks` is the registry of this process's own tasks."""
        lost_after = self.settings.beat_seconds * self.settings.lost_after_beats
        return AgentRegistry(self.store, lost_after_seconds=lost_after, prefix_queues=self.prefix_queues)

    @cached_property
    def catalogue(self) -> CachedCatalogue[Declared]:
        """What the fleet knows to run, as agents published it."""
        return CachedCatalogue(self.registry, _declared, ttl_seconds=self.settings.catalogue_ttl_seconds)

    @cached_property
    def routability(self) -> Routability:
        """Who can run what, for calls whose policy isn't to wait."""
        grace, ttl = self.settings.unroutable_grace_seconds, self.settings.catalogue_ttl_seconds
        return Routability(self.registry, self.queue_names, grace_seconds=grace, ttl_seconds=ttl)

    @cached_property
    def default_policy(self) -> UnroutablePolicy:
        """What becomes of a task that nobody can run, where neither it nor the call says so."""
        return parse_policy(self.settings.on_unroutable)

    @cached_property
    def priority_steps(self) -> tuple[str, ...]:
        """How the names of a queue's lists end, one list for each of kombu's priority steps."""
        options = self.conf.broker_transport_options
        parting = options.get("sep", RedisChannel.sep)
        steps = options.get("priority_steps", RedisChannel.priority_steps)
        return tuple(f"{parting}{step}" if step else "" for step in steps)

    @cached_property
    def is_on_redis(self) -> bool:
        """Whether the broker is one that holds our registry and records; others, such as `memory://`, only send."""
        return self.connection_for_read().transport_cls in REDIS_SCHEMES

    def declared(self, name: str) -> Declared:
        """Return what a task says of itself: by its own code where this process has it, else by the catalogue."""
        own: Any = self  # celery-types leaves some of Celery's attributes out
        tasks = own.tasks if own.finalized or own.autofinalize else own._tasks  # noqa: SLF001  # `tasks` would raise
        task = tasks.get(name)
        if isinstance(task, OrchestraTask):
            return task.declared
        if task is not None or name.startswith("celery."):
            return _NOTHING_DECLARED
        return (self.catalogue.find(name) if self.is_on_redis else None) or _NOTHING_DECLARED


def _declared(entry: CatalogueEntry) -> Declared:
    return Declared(
        requires=None if entry.requires is None else Requirement.parse(entry.requires),
        urgency=None if entry.urgency is None else Urgency.parse(entry.urgency),
        on_unroutable=None if entry.on_unroutable is None else parse_policy(entry.on_unroutable),
        unique=Unique.parse(entry.unique),
        max_queue_depth=entry.max_queue_depth,
        arguments=None if entry.arguments is None else ArgumentSchema.from_catalogue(dict(entry.arguments)),
        enforced=entry.enforced,
    )
