"""OrchestraCelery: a Celery app whose tasks say what they require."""

from collections.abc import Callable, Mapping
from math import inf
from typing import Any, Concatenate, Final, Literal, ParamSpec, TypeVar, overload
from uuid import uuid4
from weakref import WeakSet

import click
from celery import Celery
from celery import Task as CeleryTask
from celery.app import backends
from celery.utils.imports import symbol_by_name
from kombu.transport.redis import Channel as RedisChannel
from kombu.utils.objects import cached_property

from orchestra.arguments import ArgumentSchema
from orchestra.backend import StopBound, recording
from orchestra.breaker import CircuitBreaker
from orchestra.breaker_policy import check_breaker
from orchestra.broker import (
    REDIS_SCHEMES,
    BrokerLink,
    bound_results,
    is_same_database,
    location_of,
    make_repeatable,
    name_results,
    named_broker,
    patience_of,
    transport_options,
)
from orchestra.capabilities import CapabilitySet, Requirement
from orchestra.claims import Claim, claim_of, refuse_other_payload
from orchestra.config import OrchestraSettings, load_settings
from orchestra.deadlines import Deadlines
from orchestra.exceptions import ConfigurationError, ValidationError
from orchestra.fleet_view import Routability
from orchestra.followers import followers_of
from orchestra.invariants import (
    INVARIANTS,
    check_invariants,
    refuse_pickle,
    refuse_serializer,
    set_defaults,
    told_plainly,
)
from orchestra.logging_utils import get_logger
from orchestra.patience import Patience
from orchestra.pools import choose_pool, pool_option
from orchestra.publishing import PublishId
from orchestra.queues import QueueNames
from orchestra.registry import AgentRegistry, CachedCatalogue, CatalogueEntry
from orchestra.retries import RetryBudgets
from orchestra.state import StateManager
from orchestra.store import Keys, Store
from orchestra.submission import Call, Declared, Limits, Prepared, complete_signatures, prepare
from orchestra.task import DECLARABLE, OrchestraTask, check_declaration
from orchestra.task_router import TaskRouter
from orchestra.types import Unique, Urgency
from orchestra.unroutable import UnroutablePolicy, parse_policy
from orchestra.unroutable_calls import apply_policy

__all__ = ["OrchestraCelery"]

_SIGNATURE_OPTIONS: Final = ("link", "link_error", "chain", "chord")

log = get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class OrchestraCelery(Celery):
    """
    A drop-in for `Celery`, whose tasks declare requirements and whose workers declare capabilities.

    Where Celery's configuration names no broker, `settings` (the environment's `ORCHESTRA_*`) does; results go to the
    broker's Redis unless a backend is named. What correctness rests on is set after the project's own configuration:
    JSON only, our consumer, and the message of a worker that is lost goes back to its queue.
    """

    amqp_cls = "orchestra.amqp:OrchestraAMQP"
    log_cls = "orchestra.celery_logging:OrchestraLogging"

    def __init__(
        self, main: str | None = None, *args: Any, settings: OrchestraSettings | None = None, **kwargs: Any
    ) -> None:
        self._given_settings = settings
        self._backends: WeakSet[Any] = WeakSet()  # Celery makes one for each thread
        super().__init__(main, *args, **kwargs)
        self.steps["worker"].add("orchestra.agent:CapabilityStep")
        self.steps["consumer"].add("orchestra.agent:AgentStep")
        self.user_options["worker"].update((_capabilities_option(), pool_option()))

    deadlines: Deadlines | None = None  # what interrupts tasks, on an agent whose pool can't stop them

    # ── what the app is made of ──

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
        return Store(link.client, keys, location=self.broker_location(), forget=link.forget)

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

    def close(self) -> None:
        """Close the app's connections to Redis as well; it may be used again, and connects anew then."""
        if "store" in vars(self):
            self.store.close()
        own: Any = self  # celery-types leaves some of Celery's attributes out
        if own._pool is not None:  # noqa: SLF001  # asking for `pool` would make one
            own.pool.disconnect()
        for backend in list(self._backends):
            if hasattr(backend, "disconnect"):
                backend.disconnect()
        super().close()

    # ── configuration ──

    def _load_config(self) -> Any:
        """Configure the app as Celery does, and set what must hold; a signal's receiver couldn't refuse anything."""
        configured: Any = super()
        conf = configured._load_config()  # noqa: SLF001  # the one place where a setting can be refused
        with told_plainly():
            self._apply_invariants(conf)
        return conf

    def _apply_invariants(self, conf: Any) -> None:
        refuse_pickle(conf)
        if not (conf.broker_url or conf.broker_read_url or conf.broker_write_url):
            conf.broker_url = self.settings.broker_url.get_secret_value()
        if not conf.result_backend:
            name_results(conf, self.settings.result_backend)
        set_defaults(conf)
        choose_pool(conf, self.settings.pool)
        bound_results(conf, self.settings.connect_timeout_seconds)
        conf.update(INVARIANTS)

    def check_invariants(self) -> None:
        """
        Refuse to work with settings that correctness rests on and that were changed after configuration.

        Raises:
            ConfigurationError: it names the setting.

        """
        check_invariants(self.conf)
        if not self.is_on_redis:
            scheme = self.connection_for_read().transport_cls
            message = f"The broker's scheme is {scheme!r}; agents need Redis: {', '.join(REDIS_SCHEMES)}."
            raise ConfigurationError(message)

    @cached_property
    def is_on_redis(self) -> bool:
        """Whether the broker is one that holds our registry and records; others, such as `memory://`, only send."""
        return self.connection_for_read().transport_cls in REDIS_SCHEMES

    @property
    def transport_options(self) -> dict[str, Any]:
        """What our transport is told, behind what the project's `broker_transport_options` say."""
        return transport_options(self.conf, self.settings, self.queue_names)

    def _get_backend(self) -> Any:
        by_url: Any = backends.by_url  # celery-types has it return the class alone
        backend, url = by_url(self.backend_cls or self.conf.result_backend, self.loader)
        made = recording(backend)(app=self, url=url)
        self._backends.add(made)
        return made

    def is_broker(self, parameters: Mapping[str, Any]) -> bool:
        """Tell whether a result backend's connection parameters lead to the broker's own database."""
        return is_same_database(self.connection_for_write(), parameters)

    # ── declaring tasks ──

    @overload  # type: ignore[override]  # celery-types can't know our class
    def task(self, fun: Callable[P, R], /) -> OrchestraTask[P, R]: ...
    @overload
    def task(
        self, *, bind: Literal[True], **options: Any
    ) -> Callable[[Callable[Concatenate[Any, P], R]], OrchestraTask[P, R]]: ...
    @overload
    def task(
        self, *, bind: Literal[False] = ..., **options: Any
    ) -> Callable[[Callable[P, R]], OrchestraTask[P, R]]: ...
    def task(self, *args: Any, **options: Any) -> Any:
        """
        Make a task, as Celery does; `requires=` and the other options of `OrchestraTask` are checked right here.

        Raises:
            ConfigurationError: an option makes no sense; it names task, option and what is allowed.

        """
        decorate = super().task(*args, **options)
        if args or not any(name in options for name in (*DECLARABLE, "priority")):
            return decorate

        def declare(fun: Callable[..., Any]) -> Any:
            name = options.get("name") or self.gen_task_name(fun.__name__, fun.__module__)
            check_declaration(name, options)
            check_breaker(name, options, fun, bound=bool(options.get("bind")))
            return decorate(fun)

        return declare

    def create_task_cls(self) -> type[OrchestraTask[..., Any]]:
        """Mix our task class into whichever base the app has: Celery's, Django's, or the project's own."""
        base: Any = self.task_cls  # a class, or the name of one
        made: type[OrchestraTask[..., Any]] = self.subclass_with_self(
            _mixed(symbol_by_name(base)), name="Task", attribute="_app", keep_reduce=True, abstract=True
        )
        return made

    def _task_from_fun(  # type: ignore[override]  # celery-types spells out every option, and can't know ours
        self,
        fun: Callable[..., Any],
        name: str | None = None,
        base: type[CeleryTask[..., Any]] | None = None,
        **options: Any,
    ) -> Any:
        return super()._task_from_fun(fun, name=name, base=None if base is None else _mixed(base), **options)

    def register_task(self, task: Any, **options: Any) -> Any:
        """Register a class-based task; one that isn't built on ours is put on top of it."""
        made = task() if isinstance(task, type) else task
        made.__class__ = _mixed(type(made))
        return super().register_task(made, **options)

    # ── sending ──

    def send_task(
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: Any = None,
        eta: Any = None,
        task_id: Any = None,
        *more: Any,
        requires: Any = None,
        urgency: Any = None,
        on_unroutable: Any = None,
        unique: Any = None,
        idempotency_key: Any = None,
        **options: Any,
    ) -> Any:  # Celery's signature
        """
        Send a task by its name; every way of sending passes here.

        Raises:
            ValidationError: the call doesn't fit what the task declares, by its code or the fleet's catalogue.
            NoCapableAgentError: no agent can run it, and its policy for that is `raise`.
            IdempotencyError: the key stands for a task with other arguments.
            SubmissionError: Redis can't be reached in time; it tells host, port, and if the task may be enqueued.

        """
        refuse_serializer(name, options)
        follows_up = self._follows_up()
        if follows_up and urgency is not None:
            options["priority"] = None  # Celery hands a parent's priority to its followers
        call = Call(
            task=name,
            args=tuple(args or ()),
            kwargs=kwargs or {},
            requires=requires,
            urgency=urgency,
            on_unroutable=on_unroutable,
            priority=options.get("priority"),
            queue=options.get("queue"),
        )
        patience = self._patience_of(options, follows_up=follows_up)
        publish_id, given_id, task_id = PublishId.new(), task_id, task_id or str(uuid4())
        if not (follows_up or options.get("retries")):  # whose task's own message is acknowledged later, so that a
            publish_id.replicas = self.settings.confirm_replicas  # replica has either that message or these
        with named_broker(name, self.broker_location, task_id=task_id, publish_id=publish_id):
            declared = self._declared_in_time(name, patience)
            prepared = prepare(call, declared, self.limits, enforce=declared.enforced and not follows_up)
            self._remark(name, prepared.remarks)
            self._apply(prepared, options, inherits=urgency is None and declared.urgency is None)
            apply_policy(self, call, prepared, options, patience, again=follows_up or bool(options.get("retries")))
            if unique is not None or idempotency_key is not None or declared.unique is not None:
                first = not options.get("retries")  # a further attempt of a task has what that claimed
                publish_id.claim = self._claim(call, declared, options, unique, idempotency_key) if first else None
            make_repeatable(options, publish_id, patience, self.conf)
            publish_id.was_noted = follows_up
            if options.get("chain") or options.get("chord"):
                publish_id.followers = followers_of(
                    task_id, options.get("chain"), options.get("chord"), next_only=follows_up
                )
            carried = [args, kwargs, *(options.get(option) for option in _SIGNATURE_OPTIONS)]
            complete_signatures(carried, lambda task: self._declared_in_time(task, patience).requires)
            result = super().send_task(name, args, kwargs, countdown, eta, task_id, *more, **options)
        if publish_id.claim is not None:
            publish_id.hand_over(result)
            refuse_other_payload(name, publish_id.standing)
            if publish_id.standing is not None and given_id not in {None, publish_id.standing.task_id}:
                self.backend.mark_as_revoked(given_id, f"a duplicate of {publish_id.standing.task_id}")
        return result

    def _claim(self, call: Call, declared: Declared, options: Mapping[str, Any], unique: Any, key: Any) -> Claim | None:
        """Return what a call claims, which somebody has to be able to keep."""
        claim = claim_of(
            call.task,
            call.args,
            call.kwargs,
            declared,
            idempotency_key=key,
            unique=unique,
            keys=self.store.keys,
            key_seconds=self.settings.idempotency_seconds,
        )
        if claim is not None and options.get("chord") is not None:
            message = (
                f"{call.task} was not submitted: a chord would wait for ever for a part that is another call's task. "
                "Leave idempotency_key= out, and give unique=False where the task declares it."
            )
            raise ValidationError(message)
        return claim if self.is_on_redis else None

    def _apply(self, prepared: Prepared, options: dict[str, Any], *, inherits: bool) -> None:
        """Say what was prepared in Celery's words; `inherits` where a parent's priority may come before ours."""
        if prepared.requires is not None:
            options["queue"] = self.queue_names.name_for(prepared.requires)
            options["headers"] = {**(options.get("headers") or {}), "requires": prepared.requires.text}
        inherits = inherits and self.conf.task_inherit_parent_priority and self.current_worker_task is not None
        if prepared.priority is not None and not inherits:
            options["priority"] = prepared.priority

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

    def _patience_of(self, options: Mapping[str, Any], *, follows_up: bool) -> Patience:
        """Return how long to try; what follows a task is tried until Redis is back, or the agent has to stop."""
        seconds = self.settings.connect_timeout_seconds
        if follows_up:
            return Patience(inf, told=StopBound(seconds), until_taken=True)
        return patience_of(options, seconds)

    def _declared_in_time(self, name: str, patience: Patience) -> Declared:
        declared = patience.insist(lambda: self.declared(name))
        if patience.was_tried:
            pool: Any = self.pool
            pool.disconnect()  # its idle connections are as old as the one that was lost
        return declared

    def _follows_up(self) -> bool:
        """
        Tell whether Celery itself is sending what follows a task: the rest of a chain, a callback, a chord's body.

        A mismatch there isn't the sender's error: the follower fails on its agent, where its errbacks see it.
        """
        task = self.current_worker_task
        return task is not None and getattr(task.request, "performed", False)

    def _remark(self, name: str, remarks: ValidationError | None) -> None:
        if remarks is not None and name not in self._remarked:
            self._remarked.add(name)
            log.warning("arguments don't fit type hints", task=name, error=str(remarks))

    @cached_property
    def _remarked(self) -> set[str]:
        return set()

    def queue_of(self, name: str) -> str:
        """Return the name of the queue that a task goes to, by the project's own routes or by what it requires."""
        own: Any = self  # celery-types leaves the form of a route out
        queue = own.amqp.router.route({}, name, (), {})["queue"]
        return str(getattr(queue, "name", queue))

    def serves_by_requirement(self, queue: Any) -> bool:  # a queue or its name
        """Tell whether a queue is one that requirements choose, rather than one that a project routes to itself."""
        return self.queue_names.suffix(getattr(queue, "name", None) or str(queue)) is not None


_NOTHING_DECLARED: Final = Declared()


def _declared(entry: CatalogueEntry) -> Declared:
    return Declared(
        requires=None if entry.requires is None else Requirement.parse(entry.requires),
        urgency=None if entry.urgency is None else Urgency.parse(entry.urgency),
        on_unroutable=None if entry.on_unroutable is None else parse_policy(entry.on_unroutable),
        unique=Unique.parse(entry.unique),
        arguments=None if entry.arguments is None else ArgumentSchema.from_catalogue(dict(entry.arguments)),
        enforced=entry.enforced,
    )


def _mixed(base: type[CeleryTask[..., Any]]) -> type[OrchestraTask[..., Any]]:
    """Return `base` with our task class underneath, so that its own methods come first and reach ours by super()."""
    if issubclass(base, OrchestraTask):
        return base
    if base is CeleryTask:
        return OrchestraTask
    return type(str(base.__name__), (base, OrchestraTask), {"__module__": base.__module__, "abstract": True})


def _capabilities_option() -> click.Option:
    return click.Option(
        ("--capabilities",),
        envvar="ORCHESTRA_CAPABILITIES",
        callback=_checked_capabilities,
        help="What this agent can do, such as 'nlp,mem_gb=64'; it serves every queue whose requirement that satisfies.",
    )


def _checked_capabilities(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Refuse bad capability text before anything is started."""
    try:
        return None if value is None else str(CapabilitySet.parse(value))
    except ValidationError as error:
        raise click.BadParameter(str(error)) from error
