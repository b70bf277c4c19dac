"""OrchestraTask: the base class of every task, where calls are guarded and errors settled."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Final, Literal, ParamSpec, TypeVar

from billiard.exceptions import TimeLimitExceeded
from celery import Task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.exceptions import Retry as CeleryRetry
from celery.result import AsyncResult, EagerResult

from orchestra.arguments import ArgumentSchema
from orchestra.breaker_policy import Breaker, OnOpen, check_breaker
from orchestra.capabilities import Requirement
from orchestra.exceptions import (
    Backoff,
    CircuitOpenError,
    ConfigurationError,
    FencedError,
    ValidationError,
)
from orchestra.execution import RetryPolicy
from orchestra.guarding import Guard
from orchestra.logging_utils import get_logger
from orchestra.loss_options import LOSS_OPTIONS, check_loss_options
from orchestra.performing import Performance, reason_of
from orchestra.retry_budget import RetryBudget
from orchestra.retry_options import RETRY_OPTIONS, budget_of, check_retry_options, exception_kinds
from orchestra.submission import Call, Declared, plain, prepare
from orchestra.timeouts import GRACE_SECONDS
from orchestra.types import Unique, Urgency
from orchestra.unroutable import FALLBACK_HEADER, POLICY_HEADER, parse_policy, text_of_policy
from orchestra.validation import validate_priority, validate_queue_depth, validate_timeout
from orchestra.while_running import WhileRunning

__all__ = ["DECLARABLE", "OrchestraTask", "check_declaration"]

DECLARABLE: Final = (
    *("requires", "urgency", "on_unroutable", "timeout"),
    *RETRY_OPTIONS,
    *("breaker", "on_open", "unique", "max_queue_depth"),
    *LOSS_OPTIONS,
)
_CONTROL_FLOW: Final = (CeleryRetry, Ignore, Reject, FencedError)
_TIMED_OUT: Final = (SoftTimeLimitExceeded, TimeLimitExceeded)

log = get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class OrchestraTask(WhileRunning, Task[P, R]):
    """
    A Celery task that says what it requires and how its errors are settled.

    A task that declares any of `DECLARABLE` has its type hints enforced: a call that doesn't fit is refused where it
    is made, with every field that is wrong. In other tasks a mismatch warns once.

    Attributes:
        requires: what an agent must be able to do: `{"nlp", "mem_gb>=16"}`. None: `general`, any agent.
        urgency: `critical`, `high`, `normal` or `low`. None: `normal`.
        on_unroutable: what becomes of it when no agent can run it: `wait`, `raise`, `fallback:<requirement>` or
            `dead_letter_after:<seconds>`. None: as the setting `ORCHESTRA_ON_UNROUTABLE` says.
        timeout: seconds that one attempt may take; the prefork pool ends it then, others interrupt it as far as they
            can.
        max_attempts: attempts in all, the first included. Errors that may pass are then tried again.
        backoff: how the waits between attempts grow. None: from at most 0.5 s on, doubling, up to 60 s, with jitter.
        retry_on: further exceptions to try again: a class, or several.
        never_retry: exceptions that are final whatever their class says: a class, or several.
        retry_budget: how many retries all tasks of this name may have together; those above it wait longer. None:
            `RetryBudget()` for a task that declares any of the four before. False: as many as there are.
        unique: `until_started` or `until_done`: a call while another one with the same arguments waits, or is under
            way, is that one. None: every call is a task.
        max_queue_depth: how many tasks may wait in its queue before a submission of it is refused; 0 for any number.
            None: as the setting `ORCHESTRA_MAX_QUEUE_DEPTH` says.
        breaker: the circuit breaker that guards it, or the name of one with the usual values. None: nothing does.
        on_open: what it does while the breaker is open: `wait` or `fail`. None: it waits.
        max_lost_processes: how many pool processes its message may cost and be tried again. None: the setting's.
        max_lost_agents: the same for agents that were lost while they ran it.
        dead_letters: whether the message of one that fails for good or expires is kept. None: it is.

    """

    abstract = True
    Request = "orchestra.request:OrchestraRequest"

    requires: ClassVar[str | Iterable[str] | None] = None
    urgency: ClassVar[str | None] = None
    on_unroutable: ClassVar[str | None] = None
    timeout: ClassVar[float | None] = None
    max_attempts: ClassVar[int | None] = None
    backoff: ClassVar[Backoff | None] = None
    retry_on: ClassVar[type[Exception] | Collection[type[Exception]]] = ()
    never_retry: ClassVar[type[Exception] | Collection[type[Exception]]] = ()
    retry_budget: ClassVar[RetryBudget | Literal[False] | None] = None
    unique: ClassVar[str | None] = None
    max_queue_depth: ClassVar[int | None] = None
    breaker: ClassVar[str | Breaker | None] = None
    on_open: ClassVar[str | None] = None
    max_lost_processes: ClassVar[int | None] = None
    max_lost_agents: ClassVar[int | None] = None
    dead_letters: ClassVar[bool | None] = None

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Check what the task declares, and tell Celery of it in Celery's words."""
        super().on_bound(app)
        if "enforced" in vars(cls):  # Celery binds a class more than once
            return
        given = {name: getattr(cls, name) for name in DECLARABLE}
        declared = {name: value for name, value in given.items() if value is not None and value != ()}
        check_declaration(str(cls.name), {**declared, "priority": cls.priority}, _said_in_celerys_words(cls))
        check_breaker(str(cls.name), declared, cls.run)
        if cls.serializer not in {None, "json"}:
            message = (
                f"Task {cls.name}: serializer={cls.serializer!r}; agents take JSON only and would discard it. "
                "Remove the option."
            )
            raise ConfigurationError(message)
        cls.enforced = bool(declared)
        if cls.enforced:
            cls.typing = False  # Celery's own check stops at the first argument that doesn't fit
        if cls.requires is not None:
            cls.requires = Requirement.parse(cls.requires).text
        if cls.on_unroutable is not None:
            cls.on_unroutable = text_of_policy(parse_policy(cls.on_unroutable))
        if cls.timeout is not None:
            limits: Any = cls  # celery-types takes whole seconds only
            limits.soft_time_limit = cls.timeout
            limits.time_limit = cls.timeout + GRACE_SECONDS
        if cls.max_attempts is not None:
            cls.max_retries = cls.max_attempts - 1
        if cls.on_open == OnOpen.FAIL:
            cls.throws = (*cls.throws, CircuitOpenError)  # an expected end, which Celery logs as such

    enforced: ClassVar[bool] = False

    @cached_property
    def arguments(self) -> ArgumentSchema:
        """What the type hints of the task's code ask of its arguments."""
        function = getattr(self, "_decorated_fun", None) or self.run
        return ArgumentSchema.from_callable(function, bound=_takes_self(self, function))

    @cached_property
    def declared(self) -> Declared:
        """What the task says of itself to a sender."""
        return Declared(
            requires=None if self.requires is None else Requirement.parse(self.requires),
            urgency=None if self.urgency is None else Urgency.parse(self.urgency),
            on_unroutable=None if self.on_unroutable is None else parse_policy(self.on_unroutable),
            unique=Unique.parse(self.unique),
            max_queue_depth=self.max_queue_depth,
            arguments=self.arguments,
            enforced=self.enforced,
        )

    @cached_property
    def retry_policy(self) -> RetryPolicy:
        """How errors of this task are settled."""
        attempts = None if self.max_retries is None else self.max_retries + 1
        final = exception_kinds(self.never_retry)
        return RetryPolicy(
            max_attempts=attempts,
            backoff=self.backoff or Backoff(),
            retry_on=(*exception_kinds(self.retry_on), *_TIMED_OUT),
            never_retry=(*final, *(_TIMED_OUT if SoftTimeLimitExceeded in final else ())),
            explicit_only=self.max_attempts is None and not self.retry_on,
            budget=budget_of({name: getattr(self, name) for name in RETRY_OPTIONS}),
        )

    @cached_property
    def guard(self) -> Guard | None:
        """What guards its calls; None without a breaker."""
        if self.breaker is None:
            return None
        policy, breaker = self.retry_policy, Breaker.of(self.breaker)
        stock = tuple(getattr(self, "autoretry_for", ()))
        return Guard(
            str(self.name),
            breaker,
            OnOpen(self.on_open or OnOpen.WAIT),
            self.run,
            policy=replace(policy, retry_on=(*policy.retry_on, *stock)),
            once_seconds=self.time_limit or breaker.cooldown,
            reason_of=reason_of,
        )

    # ── the sender's side ──

    def apply_async(  # type: ignore[override]  # celery-types spells out every option, and can't know ours
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        **options: Any,  # Celery's own, besides `requires`, `urgency` and `on_unroutable`
    ) -> AsyncResult[Any]:
        """
        Send the task; besides Celery's options a call may have some of ours.

        These are `requires=`, `urgency=`, `on_unroutable=`, `unique=` and `idempotency_key=`. Where the call was made
        before, by its key or its arguments, the result is that task's.

        Raises:
            ValidationError: the arguments don't fit the task's type hints, or an option makes no sense.
            IdempotencyError: the key stands for a task with other arguments.
            NoCapableAgentError: no agent can run it, and its policy for that is `raise`.
            QueueFullError: too many tasks wait in its queue already.
            SubmissionError: Redis can't be reached; it is a kombu OperationalError as well.

        """
        positional, named = tuple(args or ()), dict(kwargs or {})
        if self.enforced and self.arguments.revives:
            positional, named = plain(positional), plain(named)
        if self.urgency is not None or options.get("urgency") is not None:
            options.setdefault("priority", None)  # Celery would add the project's task_default_priority
        given = self.sent_with(options)
        if given is None:
            return super().apply_async(positional, named, task_id=task_id, **options)
        if self.typing:
            self.__header__(*positional, **named)  # type: ignore[attr-defined]  # celery-types leaves it out
        sent: AsyncResult[Any] = self._fleet.send_task(self.name, positional, named, task_id=task_id, **given)
        return sent

    def sent_with(self, options: Mapping[str, Any]) -> dict[str, Any] | None:
        """
        Return what Celery's `apply_async` gives `send_task` for a call with these options.

        None where it does more than that: run the task at once, refuse its limits, or name or rewrite its arguments.
        """
        soft, hard = self.soft_time_limit, self.time_limit
        if not self._is_stock or self._fleet.short_way.outlook.is_eager or (soft and hard and soft > hard):
            return None
        own = self._get_exec_options()  # type: ignore[attr-defined]  # celery-types leaves it out
        given = {"task_type": self, "result_cls": self.AsyncResult, **own, **options}
        given.setdefault("ignore_result", self.ignore_result)
        return given

    @cached_property
    def _is_stock(self) -> bool:
        """Whether Celery's `apply_async` does with this task's calls what it does with most."""
        return (
            self._dump_pydantic_arguments is None  # type: ignore[attr-defined]  # celery-types leaves these out
            and not self.__v2_compat__
            and type(self).shadow_name is Task.shadow_name
            and hasattr(self, "__header__")
        )

    @property
    def is_sent_plainly(self) -> bool:
        """Whether no class of the project's own has a part in how calls are sent."""
        return type(self).apply_async is OrchestraTask.apply_async and type(self).delay is Task.delay

    def apply(  # type: ignore[override]  # celery-types spells out every option, and can't know ours
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,  # Celery's own, besides `requires`, `urgency` and `on_unroutable`
    ) -> EagerResult[Any]:
        """Run the task here and now, as Celery does, behind the same checks as a real submission."""
        call = Call(
            task=self.name,
            args=tuple(args or ()),
            kwargs=kwargs or {},
            requires=options.pop("requires", None),
            urgency=options.pop("urgency", None),
            on_unroutable=options.pop("on_unroutable", None),
            priority=options.get("priority"),
        )
        for option in ("idempotency_key", "unique"):  # here nothing else is under way
            options.pop(option, None)
        prepare(call, self.declared, self._fleet.limits, enforce=self.enforced)
        return super().apply(tuple(args or ()), dict(kwargs or {}), **options)

    @property
    def _fleet(self) -> Any:  # the app as OrchestraCelery, which is built on this
        return self.app

    def signature_from_request(
        self,
        request: Any = None,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        queue: str | None = None,
        **extra: Any,
    ) -> Any:  # Signature, whose options celery-types doesn't know
        """Return the signature of a retry, which is routed from its requirement and may land on another agent."""
        request = self.request if request is None else request
        signature = super().signature_from_request(request, args, kwargs, queue=queue, **extra)
        headers = dict(signature.options.get("headers") or {})
        requires, policy = headers.pop("requires", None), headers.pop(POLICY_HEADER, None)
        headers.pop(FALLBACK_HEADER, None)  # whether anybody can run it is seen afresh
        signature.options["headers"] = headers
        if policy is not None:
            signature.options["on_unroutable"] = policy
        if type(signature.options.get("priority")) not in {int, float}:
            signature.options.pop("priority", None)  # whoever sent that isn't here to be told
        if requires is not None and queue is None:
            signature.options["requires"] = requires
        if queue is None and self._fleet.serves_by_requirement(signature.options.get("queue")):
            del signature.options["queue"]
        return signature

    # ── the agent's side ──

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the task: guarded and settled when an agent performs it, plainly when it is called as a function."""
        request: Any = self.request  # marked as guarded
        if request.called_directly or getattr(request, "guarded", False):
            return super().__call__(*args, **kwargs)
        request.guarded = True
        result: R = Performance(self, request, args, kwargs).result()
        return result


def _takes_self(task: OrchestraTask[..., Any], function: Any) -> bool:  # any callable
    """Tell whether the task itself is the first argument of the code that it was made from."""
    decorated = getattr(task, "_decorated_fun", None)
    return decorated is not None and function is decorated and not isinstance(vars(type(task)).get("run"), staticmethod)


def check_declaration(task_name: str, options: Mapping[str, Any], stock: Mapping[str, Any] | None = None) -> None:
    """
    Refuse what a task declares wrongly, naming task, option and what is allowed.

    `stock` holds what it says of its retries in Celery's words; None where `options` has that as well.

    Raises:
        ConfigurationError: an option's value makes no sense, or two options contradict each other.
        ValidationError: the requirement can't be read.

    """
    try:
        if options.get("requires") is not None:
            Requirement.parse(options["requires"])
        if options.get("urgency") is not None:
            Urgency.parse(options["urgency"])
        if options.get("on_unroutable") is not None:
            parse_policy(options["on_unroutable"])
        validate_priority(options.get("priority"))
        Unique.parse(options.get("unique"))
        validate_timeout(options.get("timeout"))
        validate_queue_depth(options.get("max_queue_depth"))
    except ValidationError as error:
        message = f"Task {task_name}: {error}"
        raise ConfigurationError(message) from error
    check_retry_options(task_name, options, options if stock is None else stock)
    check_loss_options(task_name, options)
    check_breaker(task_name, options)


def _said_in_celerys_words(cls: type[OrchestraTask[..., Any]]) -> dict[str, Any]:
    """
    Return what a task's class says of its retries in Celery's words.

    A base's `max_retries` doesn't count where a class nearer says `max_attempts`, nor does what `on_bound` has set.
    """
    said = {"autoretry_for": getattr(cls, "autoretry_for", ())}
    for base in cls.__mro__[: cls.__mro__.index(Task)]:
        own = vars(base)
        if "max_retries" in own and "enforced" not in own:
            return {**said, "max_retries": own["max_retries"]}
        if own.get("max_attempts") is not None:
            break
    return said
