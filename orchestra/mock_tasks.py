"""Tasks as mock agents get them: checked, routed, run and settled by the code that a fleet uses, without Redis."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import update_wrapper
from typing import Any, Final, TypeAlias, cast

from celery.app.trace import build_tracer
from celery.canvas import Signature
from celery.exceptions import Retry as CeleryRetry
from kombu.exceptions import EncodeError
from kombu.serialization import dumps, loads

from orchestra.app import OrchestraCelery
from orchestra.capabilities import Requirement
from orchestra.exceptions import Backoff, UnknownTaskError, ValidationError
from orchestra.execution import Dead, Outcome, Retry, Succeeded, settle
from orchestra.private_app import PrivateApp
from orchestra.submission import Call, plain, prepare
from orchestra.task import OrchestraTask
from orchestra.types import Urgency

__all__ = ["MockTask", "Submittable", "SubmittedTask", "submit"]

_SEVERAL: Final = frozenset({"celery.chain", "celery.chord", "celery.group", "celery.chunks"})
_ROUTING: Final = ("queue", "exchange", "routing_key", "priority")  # what a task class may say in Celery's words


def _nothing(*_args: object, **_kwargs: object) -> None:
    """Stand for the code of a mock task that has none."""


@dataclass(frozen=True, slots=True)
class MockTask:
    """
    A task for tests that have no app, and one call of it.

    `run` is its code, called with `args` and `kwargs`; its type hints count. The fields behind it mean what
    the options of `OrchestraTask` mean, and are left away like those.
    """

    name: str = "mock.task"
    args: tuple[Any, ...] = field(default=(), kw_only=True)
    kwargs: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    run: Callable[..., Any] = field(default=_nothing, kw_only=True)
    requires: str | Iterable[str] | Requirement | None = field(default=None, kw_only=True)
    urgency: str | Urgency | None = field(default=None, kw_only=True)
    max_attempts: int | None = field(default=None, kw_only=True)
    backoff: Backoff | None = field(default=None, kw_only=True)
    retry_on: tuple[type[BaseException], ...] = field(default=(), kw_only=True)
    never_retry: tuple[type[BaseException], ...] = field(default=(), kw_only=True)

    def signature(self) -> "Signature[Any]":
        """
        Declare the task on an app of its own, which has no broker, and return the signature of the call.

        Raises:
            ConfigurationError: an option makes no sense; it names task, option and what is allowed.

        """
        app = PrivateApp("memory://", name="mock", backend="cache+memory://")
        options = {
            "requires": self.requires,
            "urgency": self.urgency,
            "max_attempts": self.max_attempts,
            "backoff": self.backoff,
            "retry_on": self.retry_on,
            "never_retry": self.never_retry,
        }
        code = app.task(name=self.name, **options)(_named(self.run))
        made: Signature[Any] = code.signature(self.args, dict(self.kwargs))
        return made


def _named(code: Callable[..., Any]) -> Callable[..., Any]:
    """Return `code` as a function with a name, which Celery asks for and a lambda or a partial has none of."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return code(*args, **kwargs)

    made = update_wrapper(run, code)
    made.__name__ = "run"
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedTask:
    """
    A task that was checked and routed, as a fleet's sender does it.

    `requires` is the canonical requirement of its queue, None if the project chose a queue of its own; of `priority`,
    which is Celery's, 0 comes first.
    """

    id: str
    name: str
    requires: str | None
    queue: str
    priority: int
    code: OrchestraTask[..., Any] = field(compare=False, repr=False)
    _body: str = field(compare=False, repr=False)  # the arguments, as they travel
    _headers: Mapping[str, str] = field(compare=False, repr=False)

    def perform(self, *, attempt: int, agent: str) -> "tuple[Outcome, SubmittedTask | None]":
        """
        Run the task's own code once, as the agent of this name would, and let the task settle what became of it.

        Returns:
            The outcome; and the task as it is submitted for the next attempt, None unless the outcome is a retry.

        """
        args, kwargs = _loaded(self._body)
        trace: Any = build_tracer(self.name, self.code, eager=True, app=self.code.app)
        traced = trace(self.id, args, kwargs, self._request(attempt, agent))
        if traced.info is None:
            return _succeeded(traced.retval), None
        error = traced.info.retval
        if isinstance(error, CeleryRetry):
            again: Any = error  # celery-types leaves its signature out
            return Retry(again.exc or error, _seconds(again.when)), submit(again.sig, task_id=self.id)
        return Dead(error, self._reason(error, attempt)), None

    def fail(self, error: Exception, *, attempt: int) -> "tuple[Outcome, SubmittedTask | None]":
        """Settle an error that the task's code didn't get the chance to raise; returns what `perform` does."""
        outcome = settle(error, attempt=attempt, policy=self.code.retry_policy)
        return outcome, self if isinstance(outcome, Retry) else None

    def _request(self, attempt: int, agent: str) -> dict[str, Any]:
        """Return what a worker would tell the task of its message."""
        return {
            "id": self.id,
            "root_id": self.id,
            "task": self.name,
            "retries": attempt - 1,
            "hostname": agent,
            "headers": dict(self._headers),
            "is_eager": True,  # nothing is published, stored or written down
            "delivery_info": {
                "is_eager": True,
                "exchange": "",
                "routing_key": self.queue,
                "priority": self.priority,
            },
        }

    def _reason(self, error: Exception, attempt: int) -> str:
        settled = settle(error, attempt=attempt, policy=self.code.retry_policy)
        return settled.reason if isinstance(settled, Dead) else f"{type(error).__name__} is what the task ended with"


Submittable: TypeAlias = "MockTask | Signature[Any] | SubmittedTask"


def submit(task: Submittable, *, task_id: str) -> SubmittedTask:
    """
    Check and route a task as a sender does, without sending it; one that was submitted before stays as it is.

    What a signature links to, and when it may start or expires, is left aside.

    Raises:
        ValidationError: it isn't one task of an OrchestraCelery app, or the call doesn't fit what the task declares.
        UnknownTaskError: the app doesn't have the task's code.

    """
    if isinstance(task, SubmittedTask):
        return task
    signature = task.signature() if isinstance(task, MockTask) else task
    code = _code_of(signature)
    app: Any = code.app  # OrchestraCelery, as _code_of has made sure
    options = _options(code, signature)
    args, kwargs = tuple(signature.args), dict(signature.kwargs)
    if code.enforced:
        args, kwargs = plain(args), plain(kwargs)
    call = Call(
        task=code.name,
        args=args,
        kwargs=kwargs,
        requires=options.get("requires"),
        urgency=options.get("urgency"),
        on_unroutable=options.get("on_unroutable"),
        priority=options.get("priority"),
        queue=options.get("queue"),
    )
    prepared = prepare(call, code.declared, app.limits, enforce=code.enforced)
    asked = {} if prepared.requires is None else {"queue": app.queue_names.name_for(prepared.requires)}
    queue = _queue(app, call, {**options, **asked})
    return SubmittedTask(
        id=task_id,
        name=code.name,
        requires=app.queue_names.requires(queue) or None,
        queue=queue,
        priority=int(options["priority"] if prepared.priority is None else prepared.priority),
        code=code,
        _body=dumps((args, kwargs), "json")[2],
        _headers={} if prepared.requires is None else {"requires": prepared.requires.text},
    )


def _code_of(signature: "Signature[Any]") -> OrchestraTask[..., Any]:
    if not isinstance(signature, Signature):
        message = f"{signature!r} is no task: give a signature, such as task.s(…), or a MockTask."
        raise ValidationError(message)
    name = str(signature.task)
    if name in _SEVERAL:
        message = f"{signature!r} holds several tasks: give them one by one."
        raise ValidationError(message)
    app: Any = signature.app
    if not isinstance(app, OrchestraCelery):
        message = f"{name} is a task of {app!r}; its app must be an OrchestraCelery."
        raise ValidationError(message)
    if name not in app.tasks:
        message = f"{app!r} doesn't have the code of {name}: import the module that declares it."
        raise UnknownTaskError(message, task_type=name)
    code: Any = app.tasks[name]
    return cast("OrchestraTask[..., Any]", code)


def _options(code: OrchestraTask[..., Any], signature: "Signature[Any]") -> dict[str, Any]:
    """Return the options of the call, with those that the task class has in Celery's words."""
    given = dict(signature.options)
    own = {name: value for name in _ROUTING if (value := getattr(code, name, None)) is not None}
    if code.urgency is not None or given.get("urgency") is not None:
        own.pop("priority", None)
    return {**own, **given}


def _queue(app: Any, call: Call, options: Mapping[str, Any]) -> str:  # OrchestraCelery
    """Let Celery's router choose, which asks the project's routes and ours."""
    routing = {name: options[name] for name in _ROUTING if name in options}
    route = app.amqp.router.route(routing, call.task, call.args, call.kwargs)
    queue = route.get("queue")
    return str(queue.name if queue is not None else route.get("routing_key"))


def _loaded(body: str) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs = loads(body, "application/json", "utf-8", accept={"application/json"})
    return args, kwargs


def _succeeded(value: Any) -> Succeeded | Dead:  # whatever the task returns
    """Return what whoever waits for the result gets, which travels as JSON too."""
    try:
        return Succeeded(loads(dumps(value, "json")[2], "application/json", "utf-8"))
    except EncodeError as error:
        return Dead(error, "what the task returned isn't JSON")


def _seconds(when: float | datetime | None) -> float:
    """Return how long a retry waits, of Celery's word for it: seconds, or a moment."""
    if isinstance(when, datetime):
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    return float(when or 0)
