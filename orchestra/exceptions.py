"""What can go wrong, whether trying again may help, and how long to wait before it."""

import logging
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import uniform
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypedDict

from tenacity import RetryCallState, Retrying, wait_exponential

from orchestra.utils import mask_fields, mask_text

__all__ = [
    "AgentNameTakenError",
    "AgentOrchestraException",
    "Backoff",
    "BrokerUnavailableError",
    "CircuitOpenError",
    "Classification",
    "ConfigurationError",
    "ErrorContext",
    "FencedError",
    "FieldError",
    "IdempotencyError",
    "NoCapableAgentError",
    "PayloadError",
    "PermanentError",
    "PoisonError",
    "RetryDecision",
    "RetryableError",
    "SecurityError",
    "UnknownTaskError",
    "ValidationError",
    "classify",
    "handle_retry_logic",
    "log_error_with_context",
]


class AgentOrchestraException(Exception):  # noqa: N818  # the name that the development guide gives
    """
    The root of every error of ours.

    `message` says what happened, to what, and what to do. Evidence given by keyword becomes attributes. The message
    is the only positional argument, so an error can be made again from its `args`, as Celery does; evidence that a
    class names has a default then.
    """

    def __init__(self, message: str = "", /, **evidence: object) -> None:
        super().__init__(message)
        self.__dict__.update(evidence)


class RetryableError(AgentOrchestraException):
    """
    Trying again may help.

    `retry_after` is the least number of seconds to wait first; None leaves the wait to the task's backoff.
    """

    retry_after: float | None = None

    def __init__(self, message: str = "", /, *, retry_after: float | None = None, **evidence: object) -> None:
        super().__init__(message, retry_after=retry_after, **evidence)


class BrokerUnavailableError(RetryableError):
    """Redis can't be reached, or takes nothing in."""


class NoCapableAgentError(RetryableError):
    """
    No agent can run a task, which changes when one joins that can.

    `task_type` is the task's name and `requirement` the canonical text of what it requires. `missing` maps the agents
    that are known, the nearest first, to the terms that each doesn't satisfy; `unknown_to` names those that satisfy
    all of them and don't know the task.
    """

    task_type: str = ""
    requirement: str = ""
    missing: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    unknown_to: tuple[str, ...] = ()


class CircuitOpenError(RetryableError):
    """
    A task wasn't begun, since its breaker is open and it declares `on_open="fail"`.

    `breaker` names the breaker; `until` is the time when calls are tried again, None where somebody has to close it.
    """

    breaker: str = ""
    until: datetime | None = None


class PermanentError(AgentOrchestraException):
    """Trying again can't help."""


class FencedError(AgentOrchestraException):
    """A later run of the same task has taken over; this one leaves things as they are, and its message goes back."""


class FieldError(NamedTuple):
    """What is wrong with one field of an input; `given` is what stood there, shortened and without secrets."""

    field: str
    message: str
    given: str


class ValidationError(PermanentError):
    """An input isn't right; `errors` has one entry for each field, and is empty where the message says it all."""

    errors: tuple[FieldError, ...] = ()

    def __init__(self, message: str = "", /, *, errors: Sequence[FieldError] = (), **evidence: object) -> None:
        super().__init__(message, errors=tuple(errors), **evidence)


class UnknownTaskError(ValidationError):
    """No task of this name is known; `nearest` holds the names that are most like it, best first."""

    task_type: str = ""
    nearest: tuple[str, ...] = ()


class PayloadError(ValidationError):
    """The arguments can't be sent: too large, too deep, or not JSON."""


class IdempotencyError(ValidationError):
    """An idempotency key was used before, for other arguments; `task_id` is the task that has it."""

    task_id: str = ""


class SecurityError(PermanentError):
    """Somebody isn't allowed to do what they asked for, or a message isn't what it claims to be."""


class ConfigurationError(PermanentError):
    """
    A setting isn't right.

    `variable` names it, `given` is its value (masked when secret), `allowed` says what it may be; where several are
    wrong, these tell of the first, and `errors` of all.
    """

    variable: str = ""
    given: str = ""
    allowed: str = ""
    errors: tuple[FieldError, ...] = ()


class PoisonError(PermanentError):
    """
    A task isn't tried again, since too many processes or agents were lost while it ran.

    Its message is a dead letter; `letter` is the id to look it up by, `lost_processes` and `lost_agents` how many there
    were.
    """

    task_id: str = ""
    letter: str = ""
    lost_processes: int = 0
    lost_agents: int = 0


class AgentNameTakenError(PermanentError):
    """Another live agent already has the name that this one was given."""


class Classification(NamedTuple):
    """Whether an error is worth another attempt, and the least wait in seconds that it asks for (None: no wish)."""

    retryable: bool
    retry_after: float | None


# Errors of the clients that people use, by class name: a library needn't be installed for its errors to be known.
# Where a class has several of these among its bases, the nearest one decides.
_FOREIGN: Final[Mapping[str, bool]] = {
    "ConnectionError": True,
    "ClientConnectionError": True,
    "NetworkError": True,
    "Timeout": True,
    "TimeoutError": True,
    "TimeoutException": True,
    "URLError": True,
    "gaierror": True,
    "HTTPError": False,
    "AuthenticationError": False,
    "SSLError": False,
}
_PASSING_STATUS: Final = frozenset({429, 503})
_LONGEST_HEADER_WAIT_SECONDS: Final = 86_400.0  # a server that asks for more is asked again tomorrow


def classify(
    error: BaseException,
    *,
    retry_on: Sequence[type[BaseException]] = (),
    never_retry: Sequence[type[BaseException]] = (),
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Classification:
    """
    Say whether `error` is worth another attempt.

    In this order: `never_retry` is final; a PermanentError is one unless `retry_on` names its very kind (a broad
    class such as Exception doesn't); then `retry_on`, RetryableError, failed connections, timeouts, and answers
    over HTTP with status 429 or 503 are retryable. Everything else is permanent.
    """
    if isinstance(error, tuple(never_retry)) or not _is_retryable(error, retry_on):
        return Classification(retryable=False, retry_after=None)
    return Classification(retryable=True, retry_after=_retry_after(error, now))


def _is_retryable(error: BaseException, retry_on: Sequence[type[BaseException]]) -> bool:
    wanted = [kind for kind in retry_on if isinstance(error, kind)]
    if isinstance(error, PermanentError):
        return any(issubclass(kind, PermanentError) for kind in wanted)
    return bool(wanted) or isinstance(error, RetryableError) or _is_passing(error)


def _is_passing(error: BaseException) -> bool:
    if not isinstance(error, Exception):
        return False
    verdicts = (_FOREIGN[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _FOREIGN)
    return next(verdicts, False) or _status(error) in _PASSING_STATUS


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error carries, as the usual clients have it."""
    response = _attribute(error, "response")
    found = (_attribute(holder, name) for holder in (response, error) for name in ("status_code", "status", "code"))
    return next((int(status) for status in found if isinstance(status, int)), None)


def _attribute(holder: object, name: str) -> object:
    try:
        return getattr(holder, name, None)
    except Exception:  # noqa: BLE001  # a foreign property may raise anything; then there is nothing to read
        return None


def _retry_after(error: BaseException, now: Callable[[], datetime]) -> float | None:
    if isinstance(error, RetryableError):
        return _seconds(error.retry_after)
    holders = (_attribute(error, "response"), error)
    texts = (_header(_attribute(holder, "headers")) for holder in holders)
    text = next((text for text in texts if text), None)
    seconds = None if text is None else _header_seconds(text, now)
    return None if seconds is None else min(seconds, _LONGEST_HEADER_WAIT_SECONDS)


def _header(headers: object) -> str | None:
    if not isinstance(headers, Mapping):
        get = _attribute(headers, "get")  # such as the message objects of http.client
        return str(found) if callable(get) and (found := get("Retry-After")) is not None else None
    return next((str(value) for name, value in headers.items() if str(name).lower() == "retry-after"), None)


def _header_seconds(text: str, now: Callable[[], datetime]) -> float | None:
    if text.strip().isdecimal():
        return _seconds(float(text))
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - now()).total_seconds())


def _seconds(value: object) -> float | None:
    """Return `value` as a wait that makes sense: None for what is no finite number, 0 for what is negative."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return max(0.0, float(value))


@dataclass(frozen=True, slots=True)
class Backoff:
    """
    How the waits between attempts grow: they double from `base_seconds` up to `max_seconds`.

    With jitter "full", a wait is drawn evenly from 0 to that figure, so that tasks which failed together don't come
    back together; with "none" it is the figure. The default draws from 0 to 0.5, 1, 2, 4, … 60 seconds.
    """

    base_seconds: float = 0.5
    max_seconds: float = 60.0
    jitter: Literal["full", "none"] = "full"

    def __post_init__(self) -> None:
        for name in ("base_seconds", "max_seconds"):
            if _seconds(value := getattr(self, name)) != value:
                message = f"Backoff({name}={value!r}) makes no sense: give a number of seconds, 0 or more."
                raise ValidationError(message)
        if self.jitter not in {"full", "none"}:
            message = f"Backoff(jitter={self.jitter!r}) makes no sense: give 'full' or 'none'."
            raise ValidationError(message)

    def delay_seconds(self, attempt: int, *, random: Callable[[float, float], float] = uniform) -> float:
        """
        Return how long to wait after attempt number `attempt`, which counts from 1.

        `random` draws a number between its two arguments, as `random.uniform` does.
        """
        state = RetryCallState(Retrying(), None, (), {})
        state.attempt_number = attempt
        longest = float(wait_exponential(multiplier=self.base_seconds, max=self.max_seconds)(state))
        return random(0.0, longest) if self.jitter == "full" else longest


class RetryDecision(TypedDict):
    """What to do after a failed attempt; `delay_seconds` is 0 when there is no other, `reason` says why in words."""

    should_retry: bool
    delay_seconds: float
    reason: str


_DEFAULT_BACKOFF: Final = Backoff()


def handle_retry_logic(
    error: BaseException,
    attempt: int,
    max_attempts: int,
    *,
    backoff: Backoff = _DEFAULT_BACKOFF,
    retry_on: Sequence[type[BaseException]] = (),
    never_retry: Sequence[type[BaseException]] = (),
) -> RetryDecision:
    """
    Decide whether to try again after `error`, and when.

    `attempt` is the number of the attempt that failed and counts from 1; `max_attempts` counts the first one too.
    See `classify` for `retry_on` and `never_retry`. An error's own `retry_after` wins over the backoff.

    Raises:
        ValidationError: `attempt` or `max_attempts` is below 1.

    """
    if attempt < 1 or max_attempts < 1:
        message = f"attempt={attempt!r} and max_attempts={max_attempts!r} count from 1: the first attempt is number 1."
        raise ValidationError(message)
    retryable, retry_after = classify(error, retry_on=retry_on, never_retry=never_retry)
    kind = type(error).__name__
    if not retryable:
        return _no_retry(f"{kind} is permanent: trying again can't help")
    if attempt >= max_attempts:
        return _no_retry(f"{kind} on attempt {attempt} of {max_attempts}: no attempt is left")
    delay = backoff.delay_seconds(attempt) if retry_after is None else retry_after
    return RetryDecision(
        should_retry=True, delay_seconds=delay, reason=f"{kind} on attempt {attempt} of {max_attempts} may pass"
    )


def _no_retry(reason: str) -> RetryDecision:
    return RetryDecision(should_retry=False, delay_seconds=0.0, reason=reason)


class ErrorContext:
    """What was going on when an error came up: the operation, the component, the task, and whatever else helps."""

    __slots__ = ("component", "extra", "operation", "task_id")

    def __init__(self, operation: str, component: str, task_id: str | None = None, **extra: object) -> None:
        self.operation = operation
        self.component = component
        self.task_id = task_id
        self.extra = extra

    def __repr__(self) -> str:
        """Show the fields, secrets masked."""
        fields = ", ".join(f"{name}={value!r}" for name, value in self.fields().items())
        return f"{type(self).__name__}({fields})"

    def fields(self) -> dict[str, object]:
        """Return what is known as log fields, secrets masked; `task_id` is left out when there is no task."""
        known = {"operation": self.operation, "component": self.component, "task_id": self.task_id, **self.extra}
        return mask_fields({name: value for name, value in known.items() if name != "task_id" or value is not None})


_RECORD_FIELDS: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "stack_info", "extra"})


def log_error_with_context(
    logger: Any,  # a logging.Logger, a LoggerAdapter, or anything that has structlog's methods
    error: BaseException,
    context: ErrorContext,
) -> None:
    """
    Log `error` once at level error, with its context, its evidence and its traceback, and without secrets.

    A logger of the standard library gets the fields as `extra` and the traceback in the message; one of structlog's
    kind gets both as fields. Names that a log record has itself get a trailing underscore.
    """
    fields = context.fields() | {"error_type": type(error).__name__, "error": mask_text(str(error))}
    fields |= {"retryable": classify(error).retryable}
    if isinstance(error, AgentOrchestraException):
        fields = mask_fields(vars(error)) | fields
    trace = mask_text("".join(traceback.format_exception(error))).rstrip()
    if isinstance(logger, (logging.Logger, logging.LoggerAdapter)):
        extra = {f"{name}_" if name in _RECORD_FIELDS else name: value for name, value in fields.items()}
        logger.error("%s\n%s", _headline(fields), trace, extra=extra)
    else:
        fields = {f"{name}_" if name in {"event", "exception", "exc_info"} else name: v for name, v in fields.items()}
        logger.error("operation failed", **fields, exception=trace)


def _headline(fields: Mapping[str, object]) -> str:
    task = f" for task {fields['task_id']}" if "task_id" in fields else ""
    return f"{fields['operation']} failed in {fields['component']}{task}: {fields['error_type']}: {fields['error']}"
