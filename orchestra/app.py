"""OrchestraCelery: a Celery app whose tasks say what they require."""

from collections.abc import Callable, Mapping
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, overload
from weakref import WeakSet

import click
from celery import Task as CeleryTask
from celery.app import backends
from celery.utils.imports import symbol_by_name

from orchestra.backend import recording
from orchestra.breaker_policy import check_breaker
from orchestra.broker import REDIS_SCHEMES, bound_results, is_same_database, name_results, transport_options
from orchestra.capabilities import CapabilitySet
from orchestra.config import OrchestraSettings
from orchestra.deadlines import Deadlines
from orchestra.exceptions import ConfigurationError, ValidationError
from orchestra.invariants import INVARIANTS, check_invariants, refuse_pickle, set_defaults, told_plainly
from orchestra.pools import choose_pool, pool_option
from orchestra.sending import Sending
from orchestra.task import DECLARABLE, OrchestraTask, check_declaration

__all__ = ["OrchestraCelery"]

P = ParamSpec("P")
R = TypeVar("R")


class OrchestraCelery(Sending):
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

    def close(self) -> None:
        """Close the app's connections to Redis as well; it may be used again, and connects anew then."""
        for part in ("store", "wires"):
            if part in vars(self):
                getattr(self, part).close()
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

    # ── routes ──

    def queue_of(self, name: str) -> str:
        """Return the name of the queue that a task goes to, by the project's own routes or by what it requires."""
        own: Any = self  # celery-types leaves the form of a route out
        queue = own.amqp.router.route({}, name, (), {})["queue"]
        return str(getattr(queue, "name", queue))

    def serves_by_requirement(self, queue: Any) -> bool:  # a queue or its name
        """Tell whether a queue is one that requirements choose, rather than one that a project routes to itself."""
        return self.queue_names.suffix(getattr(queue, "name", None) or str(queue)) is not None


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
