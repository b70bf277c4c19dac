"""Structured logging: an event is a past fact with fields, sent through Python's own logging."""

import functools
import inspect
import logging
import math
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TextIO, TypedDict, TypeVar, cast

import structlog
from structlog.stdlib import BoundLogger

from orchestra.exceptions import ConfigurationError
from orchestra.log_pipeline import EMITTING, FORMATS, FormatType, PipelineFormatter

__all__ = [
    "AuditLogger",
    "PerformanceLogger",
    "SpecializedLoggers",
    "configure_structlog",
    "create_specialized_loggers",
    "get_logger",
    "performance_logger",
    "performance_logging",
    "setup_logging",
    "wants_colours",
]

_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_THRESHOLD_SECONDS: Final = 1.0

P = ParamSpec("P")
R = TypeVar("R")


def get_logger(name: str) -> BoundLogger:
    """
    Return a logger whose events become records of `logging.getLogger(name)`.

    Handlers and levels are the application's, so that an app that uses Orchestra as a library stays in charge.
    """
    logger = structlog.wrap_logger(
        logging.getLogger(name),
        wrapper_class=BoundLogger,
        processors=EMITTING,
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return cast("BoundLogger", logger)


# ── the one pipeline ──


def setup_logging(
    level: str | int = "INFO", format_type: str = "console", *, stream: TextIO | None = None
) -> BoundLogger:
    """
    Write every record of this process through one pipeline to `stream`, and return a logger.

    That holds for our own loggers, `structlog.get_logger()`, `logging.getLogger()` and whatever libraries log. A
    second call takes the place of the first; of the handlers that others have set, those that write to the same
    terminal go. `stream` is standard error unless it's given.

    Args:
        level: the least level that is written: DEBUG, INFO, WARNING, ERROR or CRITICAL.
        format_type: `json`, one object a line, or `console`, lines for people.
        stream: where the lines go.

    Raises:
        ConfigurationError: the level or the format isn't one of these.

    """
    number = _level(level)
    out = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(out)
    handler.setFormatter(PipelineFormatter(_format(format_type), colours=wants_colours(out)))
    root = logging.getLogger()
    for other in [other for other in root.handlers if _writes_the_same(other, out)]:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(number)
    logging.captureWarnings(capture=True)
    configure_structlog()
    return get_logger("orchestra")


def _level(given: str | int) -> int:
    name = logging.getLevelName(given) if isinstance(given, int) else str(given).upper()
    if name not in _LEVELS:
        raise _not_allowed("level", given, _LEVELS)
    return logging.getLevelNamesMapping()[name]


def _format(given: str) -> FormatType:
    if given not in FORMATS:
        raise _not_allowed("format_type", given, FORMATS)
    return cast("FormatType", given)


def _not_allowed(variable: str, given: object, names: tuple[str, ...]) -> ConfigurationError:
    allowed = f"one of: {', '.join(names)}"
    message = f"{variable} is {given!r}; it must be {allowed}."
    return ConfigurationError(message, variable=variable, given=repr(given), allowed=allowed)


def _writes_the_same(handler: logging.Handler, stream: TextIO) -> bool:
    """Tell whether a handler's lines would stand beside those of ours: one of ours, or one for the same terminal."""
    if isinstance(handler.formatter, PipelineFormatter):
        return True
    streams = {id(each) for each in (stream, sys.stderr, sys.__stderr__, sys.stdout, sys.__stdout__)}
    return type(handler) is logging.StreamHandler and id(handler.stream) in streams


def wants_colours(stream: Any) -> bool:  # a file, or what stands in for one
    """Tell whether `stream` is a terminal whose user hasn't asked for plain text by NO_COLOR."""
    return bool(getattr(stream, "isatty", bool)()) and not os.environ.get("NO_COLOR")


def configure_structlog() -> None:
    """Send what `structlog.get_logger()` logs through Python's logging, as our own loggers do."""
    structlog.configure(
        processors=EMITTING,
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )


# ── loggers for one purpose ──


class PerformanceLogger:
    """
    Tells how long things take, in seconds; what takes longer than a threshold is told as a warning.

    `clock` returns seconds that never run backwards.
    """

    def __init__(
        self,
        logger: BoundLogger,
        *,
        threshold_seconds: float = _THRESHOLD_SECONDS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._log = logger
        self._threshold_seconds = _threshold(threshold_seconds)
        self._clock = clock

    def log_operation_time(self, operation: str, duration: float, **fields: object) -> None:
        """Log how many seconds an operation took: at level info, or as a warning where that was too long."""
        if duration > self._threshold_seconds:
            self._log.warning("operation slow", **_told(operation, duration, fields))
        else:
            self._log.info("operation finished", **_told(operation, duration, fields))

    def time_operation(
        self, operation: str, *, threshold_seconds: float | None = None, **fields: object
    ) -> "_TimedOperation":
        """
        Return a context manager, for `with` and `async with`, that times its block.

        A block that takes longer than the threshold is logged as a warning, and so is one that fails, with the kind of
        its error, which goes on its way; any other is logged at level debug.

        Raises:
            ConfigurationError: the threshold isn't a number of seconds.

        """
        threshold = self._threshold_seconds if threshold_seconds is None else _threshold(threshold_seconds)
        return _TimedOperation(self._log, self._clock, operation, threshold, fields)

    def watch(self, operation: str, *, threshold_seconds: float) -> "_TimedOperation":
        """Return what `time_operation` does, but silent about what is neither slow nor fails."""
        return _TimedOperation(self._log, self._clock, operation, threshold_seconds, {}, silent_when_fast=True)


class _TimedOperation:
    """One run of an operation."""

    def __init__(
        self,
        logger: BoundLogger,
        clock: Callable[[], float],
        operation: str,
        threshold_seconds: float,
        fields: Mapping[str, object],
        *,
        silent_when_fast: bool = False,
    ) -> None:
        self._log = logger
        self._clock = clock
        self._operation = operation
        self._threshold_seconds = threshold_seconds
        self._fields = fields
        self._silent_when_fast = silent_when_fast
        self._started = 0.0

    def __enter__(self) -> Self:
        self._started = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        duration = self._clock() - self._started
        if kind is not None:
            self._log.warning(
                "operation failed", **_told(self._operation, duration, self._fields), error_type=kind.__name__
            )
        elif duration > self._threshold_seconds:
            self._log.warning("operation slow", **_told(self._operation, duration, self._fields))
        elif not self._silent_when_fast:
            self._log.debug("operation finished", **_told(self._operation, duration, self._fields))

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


def _told(operation: str, duration: float, fields: Mapping[str, object]) -> dict[str, Any]:
    return {"operation": operation, "duration_seconds": round(duration, 6), **fields}


def _threshold(given: object) -> float:
    """Return a threshold that makes sense; the one that doesn't is often a function, decorated without brackets."""
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < math.inf:
        allowed = "a number of seconds, 0 or more, as in @performance_logging(threshold_seconds=1.0)"
        message = f"threshold_seconds is {given!r}; it must be {allowed}."
        raise ConfigurationError(message, variable="threshold_seconds", given=repr(given), allowed=allowed)
    return float(given)


class AuditLogger:
    """Tells who asked for what, and whether they got it: at level info when they did, as a warning when not."""

    def __init__(self, logger: BoundLogger) -> None:
        self._log = logger

    def log_authentication(
        self,
        principal: str | None,
        granted: bool,  # noqa: FBT001  # as for authorization, whose form the development guide gives
        *,
        source_ip: str | None = None,
        reason: str | None = None,
        **fields: object,
    ) -> None:
        """Log whether somebody proved who they are; a principal of None is somebody unknown."""
        known = {name: value for name, value in {"source_ip": source_ip, "reason": reason}.items() if value is not None}
        self._decided("authentication", granted, principal=principal, **known, **fields)

    def log_authorization(
        self,
        principal: str | None,
        resource: str,
        action: str,
        granted: bool,  # noqa: FBT001  # the development guide's form
        **fields: object,
    ) -> None:
        """Log whether somebody was allowed to do something to a resource."""
        self._decided("authorization", granted, principal=principal, resource=resource, action=action, **fields)

    def _decided(self, what: str, granted: bool, **fields: object) -> None:  # noqa: FBT001  # as above
        if granted:
            self._log.info(f"{what} granted", **fields, granted=True)
        else:
            self._log.warning(f"{what} denied", **fields, granted=False)


class SpecializedLoggers(TypedDict):
    """Loggers for one purpose each, by the name of the purpose."""

    performance: PerformanceLogger
    audit: AuditLogger


def create_specialized_loggers(logger: BoundLogger) -> SpecializedLoggers:
    """
    Return the loggers `performance` and `audit`, named below `logger` and with what is bound to it.

    So `logging.getLogger("orchestra.audit")` has a level and handlers of its own, where an application sets them.
    """

    def below(purpose: str) -> BoundLogger:
        made: BoundLogger = get_logger(f"{logger.name}.{purpose}").bind(**structlog.get_context(logger))
        return made

    return SpecializedLoggers(performance=PerformanceLogger(below("performance")), audit=AuditLogger(below("audit")))


performance_logger: Final = PerformanceLogger(get_logger("orchestra.performance"))


def performance_logging(
    threshold_seconds: float = _THRESHOLD_SECONDS, *, logger: PerformanceLogger = performance_logger
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """
    Decorate a function, a method or a coroutine function, so that calls longer than a threshold are logged.

    A call that fails is logged too, with the kind of its error, which goes on its way.

    Raises:
        ConfigurationError: the threshold isn't a number of seconds, or the function is a generator, which does its
            work when somebody iterates over it.

    """
    threshold = _threshold(threshold_seconds)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        operation = f"{function.__module__}.{function.__qualname__}"
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            message = f"{operation} is a generator: time the loop over it, by performance_logger.time_operation()."
            raise ConfigurationError(message)
        if inspect.iscoroutinefunction(function):
            awaited: Callable[P, Awaitable[Any]] = function

            @functools.wraps(function)
            async def timed_coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:  # whatever the coroutine returns
                with logger.watch(operation, threshold_seconds=threshold):
                    return await awaited(*args, **kwargs)

            return cast("Callable[P, R]", timed_coroutine)

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with logger.watch(operation, threshold_seconds=threshold):
                return function(*args, **kwargs)

        return timed

    return decorate
