"""OrchestraTask: the base class of every task, where calls are guarded and errors settled."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar, Final, ParamSpec, TypeVar, assert_never

from celery import Task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.exceptions import Retry as CeleryRetry
from celery.result import AsyncResult, EagerResult

from orchestra.arguments import ArgumentSchema
from orchestra.capabilities import Requirement
from orchestra.exceptions import AgentOrchestraException, Backoff, ConfigurationError, ValidationError
from orchestra.execution import Dead, Outcome, Retry, RetryPolicy, Succeeded, run
from orchestra.logging_utils import get_logger
from orchestra.submission import Call, Declared, plain, prepare
from orchestra.types import TaskState, Urgency
from orchestra.validation import validate_timeout

__all__ = ["DECLARABLE", "GRACE_SECONDS", "OrchestraTask", "check_declaration"]

DECLARABLE: Final = ("requires", "urgency", "timeout", "max_attempts", "backoff", "retry_on", "never_retry")
GRACE_SECONDS: Final = 5.0  # between the soft limit, which the task may answer, and the hard one
_CONTROL_FLOW: Final = (CeleryRetry, Ignore, Reject)

log = get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class OrchestraTask(Task[P, R]):
    """
    A Celery task that says what it requires and how its errors are settled.

    A task that declares any of `DECLARABLE` has its type hints enforced: a call that doesn't fit is refused where it
    is made, with every field that is wrong. In other tasks a mismatch warns once.

    Attributes:
        requires: what an agent must be able to do: `{"nlp", "mem_gb>=16"}`. None: `general`, any agent.
        urgency: `critical`, `high`, `normal` or `low`. None: `normal`.
        timeout: seconds that one attempt may take. Needs a pool that can stop a task: prefork.
        max_attempts: attempts in all, the first included. Errors that may pass are then tried again.
        backoff: how the waits between attempts grow. None: from at most 0.5 s on, doubling, up to 60 s, with jitter.
        retry_on: further exceptions to try again.
        never_retry: exceptions that are final whatever their class says.

    """

    abstract = True

    requires: ClassVar[str | Iterable[str] | None] = None
    urgency: ClassVar[str | None] = None
    timeout: ClassVar[float | None] = None
    max_attempts: ClassVar[int | None] = None
    backoff: ClassVar[Backoff | None] = None
    retry_on: ClassVar[tuple[type[BaseException], ...]] = ()
    never_retry: ClassVar[tuple[type[BaseException], ...]] = ()

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Check what the task declares, and tell Celery of it in Celery's words."""
        super().on_bound(app)
        if "enforced" in vars(cls):  # Celery binds a class more than once
            return
        given = {name: getattr(cls, name) for name in DECLARABLE}
        declared = {name: value for name, value in given.items() if value is not None and value != ()}
        check_declaration(str(cls.name), declared, vars(cls))
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
        if cls.timeout is not None:
            limits: Any = cls  # celery-types takes whole seconds only
            limits.soft_time_limit = cls.timeout
            limits.time_limit = cls.timeout + GRACE_SECONDS
        if cls.max_attempts is not None:
            cls.max_retries = cls.max_attempts - 1

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
            arguments=self.arguments,
            enforced=self.enforced,
        )

    @cached_property
    def retry_policy(self) -> RetryPolicy:
        """How errors of this task are settled."""
        attempts = None if self.max_retries is None else self.max_retries + 1
        return RetryPolicy(
            max_attempts=attempts,
            backoff=self.backoff or Backoff(),
            retry_on=(*self.retry_on, SoftTimeLimitExceeded),
            never_retry=tuple(self.never_retry),
            explicit_only=self.max_attempts is None and not self.retry_on,
        )

    # ── the sender's side ──

    def apply_async(  # type: ignore[override]  # celery-types spells out every option, and can't know ours
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        **options: Any,  # Celery's own, besides `requires` and `urgency`
    ) -> AsyncResult[Any]:
        """
        Send the task; Celery's options, and `requires=` and `urgency=` for this call.

        Raises:
            ValidationError: the arguments don't fit the task's type hints, or an option makes no sense.
            SubmissionError: Redis can't be reached; it is a kombu OperationalError as well.

        """
        positional, named = tuple(args or ()), dict(kwargs or {})
        if self.enforced and self.arguments.revives:
            positional, named = plain(positional), plain(named)
        if self.urgency is not None or options.get("urgency") is not None:
            options.setdefault("priority", None)  # Celery would add the project's task_default_priority
        return super().apply_async(positional, named, task_id=task_id, **options)

    def apply(  # type: ignore[override]  # celery-types spells out every option, and can't know ours
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,  # Celery's own, besides `requires` and `urgency`
    ) -> EagerResult[Any]:
        """Run the task here and now, as Celery does, behind the same checks as a real submission."""
        call = Call(
            task=self.name,
            args=tuple(args or ()),
            kwargs=kwargs or {},
            requires=options.pop("requires", None),
            urgency=options.pop("urgency", None),
            priority=options.get("priority"),
        )
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
        requires = headers.pop("requires", None)
        signature.options["headers"] = headers
        if requires is not None and queue is None:
            signature.options["requires"] = requires
        if queue is None and self._fleet.serves_by_requirement(signature.options.get("queue")):
            del signature.options["queue"]
        return signature

    # ── the agent's side ──

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the task: guarded and settled when an agent performs it, plainly when it is called as a function."""
        request: Any = self.request  # marked as guarded, and as performed
        if request.called_directly or getattr(request, "guarded", False):
            return super().__call__(*args, **kwargs)
        request.guarded = True
        if not request.is_eager:
            self._start(request)
        outcome = run(
            lambda: self._perform(args, kwargs),
            attempt=request.retries + 1,
            policy=self.retry_policy,
            passing=_CONTROL_FLOW,
        )
        request.performed = True
        result: R = self._settled(outcome)
        return result

    def _start(self, request: Any) -> None:
        """Write the task down as running; a task that was cancelled while it waited isn't run."""
        try:
            standing = self._fleet.state.advance(
                request.id,
                TaskState.RUNNING,
                agent=request.hostname or "",
                attempt=request.retries + 1,
                name=self.name,
            )
        except AgentOrchestraException as error:  # bookkeeping doesn't stop work
            log.warning("task state not recorded", task_id=request.id, error=str(error))
            return
        if standing is TaskState.CANCELLED:
            log.info("task skipped", task_id=request.id, reason="cancelled")
            raise Ignore

    def _perform(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # the task's own types
        if self.enforced:
            self.arguments.check(self.name, args, kwargs, verdict="can't run")
            args, kwargs = self.arguments.revive(args, kwargs)
        return self.run(*args, **kwargs)

    def _settled(self, outcome: Outcome) -> Any:  # the task's own types
        match outcome:
            case Succeeded(value):
                return plain(value) if self.enforced else value
            case Retry(error, delay_seconds):
                raise self._sent_again(error, delay_seconds)
            case Dead(error):
                raise error
            case _:
                assert_never(outcome)

    def _sent_again(self, error: Exception, delay_seconds: float) -> Exception:
        """Publish the retry; when that fails the message goes back to its queue, so that nothing is lost."""
        try:
            retry: Exception = self.retry(exc=error, countdown=delay_seconds, max_retries=self.max_retries, throw=False)
        except Reject as rejected:
            reason = rejected.args[0]
            log.warning("retry not published", task_id=self.request.id, error=repr(reason))
            return Reject(reason, requeue=True)
        return retry


def _takes_self(task: OrchestraTask[..., Any], function: Any) -> bool:  # any callable
    """Tell whether the task itself is the first argument of the code that it was made from."""
    decorated = getattr(task, "_decorated_fun", None)
    return decorated is not None and function is decorated and not isinstance(vars(type(task)).get("run"), staticmethod)


def check_declaration(task_name: str, options: Mapping[str, Any], others: Mapping[str, Any] | None = None) -> None:
    """
    Refuse what a task declares wrongly, naming task, option and what is allowed.

    Raises:
        ConfigurationError: an option's value makes no sense, or two options contradict each other.
        ValidationError: the requirement can't be read.

    """
    try:
        if options.get("requires") is not None:
            Requirement.parse(options["requires"])
        if options.get("urgency") is not None:
            Urgency.parse(options["urgency"])
        validate_timeout(options.get("timeout"))
    except ValidationError as error:
        message = f"Task {task_name}: {error}"
        raise ConfigurationError(message) from error
    _check_attempts(task_name, options)
    _check_exceptions(task_name, options)
    stock = [name for name in ("max_retries", "autoretry_for") if (others or options).get(name)]
    if options.get("max_attempts") is not None and stock:
        message = f"Task {task_name} declares max_attempts and Celery's {stock[0]}: keep one of them."
        raise ConfigurationError(message)


def _check_attempts(task_name: str, options: Mapping[str, Any]) -> None:
    attempts = options.get("max_attempts")
    if attempts is not None and (isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1):
        message = f"Task {task_name}: max_attempts={attempts!r}; a whole number of at least 1 is allowed."
        raise ConfigurationError(message)
    backoff = options.get("backoff")
    if backoff is not None and not isinstance(backoff, Backoff):
        message = f"Task {task_name}: backoff={backoff!r}; an orchestra.exceptions.Backoff is allowed."
        raise ConfigurationError(message)


def _check_exceptions(task_name: str, options: Mapping[str, Any]) -> None:
    for option in ("retry_on", "never_retry"):
        for error in options.get(option) or ():
            if not (isinstance(error, type) and issubclass(error, BaseException)):
                message = f"Task {task_name}: {option} holds {error!r}; exception classes are allowed."
                raise ConfigurationError(message)
