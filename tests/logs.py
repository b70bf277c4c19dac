"""Where tests let logs be written to, and how they leave Python's logging as they found it."""

import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from celery import signals
from celery.app.log import Logging

from orchestra.log_pipeline import EMITTING, FormatType, PipelineFormatter

__all__ = ["TRACE", "Output", "Terminal", "Written", "celery_logging_left_alone", "fail", "logging_left_alone"]

TRACE = "Traceback (most recent call last):"

_SIGNALS: tuple[Any, ...] = (
    signals.setup_logging,
    signals.task_prerun,
    signals.task_postrun,
    signals.celeryd_after_setup,
    signals.worker_shutting_down,
    signals.worker_shutdown,
)
_LOGGERS = (None, "celery", "celery.task", "celery.redirected", "multiprocessing")


class Output(io.StringIO):
    """A stream, and the JSON objects that were written to it."""

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What each line holds, but for those in which Python's event loop tells of itself."""
        lines = [json.loads(line) for line in self.getvalue().splitlines()]
        return [line for line in lines if line["logger"] != "asyncio"]

    @property
    def line(self) -> dict[str, Any]:
        """What the only line holds."""
        (line,) = self.lines
        return line

    @property
    def fields(self) -> dict[str, Any]:
        """What the only line tells, but for when, how and where."""
        return {name: value for name, value in self.line.items() if name not in {"timestamp", "level", "logger"}}


class Terminal(Output):
    """A stream that says that it's a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


class Written:
    """Two loggers of one name, structlog's and Python's, and what their records became."""

    def __init__(self, format_type: FormatType, **options: Any) -> None:
        self.stdlib = logging.Logger("shop", logging.DEBUG)  # noqa: LOG001  # one that nobody else has
        self.structlog: Any = structlog.wrap_logger(
            self.stdlib, wrapper_class=structlog.stdlib.BoundLogger, processors=EMITTING
        )
        self._output = Output()
        handler = logging.StreamHandler(self._output)
        handler.setFormatter(PipelineFormatter(format_type, **options))
        self.stdlib.addHandler(handler)

    @property
    def text(self) -> str:
        """All of it."""
        return self._output.getvalue()

    @property
    def shown(self) -> str:
        """The single record, without its time."""
        assert self.text.endswith("\n")
        return self.text[:-1].partition(" ")[2]

    @property
    def line(self) -> dict[str, Any]:
        """The single line's object."""
        return self._output.line

    @property
    def fields(self) -> dict[str, Any]:
        """What the single line tells besides its event."""
        return {name: value for name, value in self._output.fields.items() if name != "event"}


def fail(log: Callable[..., None], *arguments: Any, **fields: Any) -> None:
    """Log an error while it's being handled."""
    try:
        sys.exit("token=abc")
    except SystemExit:
        log(*arguments, **fields)


@contextmanager
def logging_left_alone() -> Iterator[None]:
    """Put handlers, levels, structlog's configuration and the standard streams back at the end."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    kept = [(logger, logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    streams: Any = sys
    standard = {name: getattr(sys, name) for name in ("stdout", "stderr", "__stdout__")}
    configured = structlog.get_config() if structlog.is_configured() else None
    structlog.reset_defaults()
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        for name, stream in standard.items():
            setattr(streams, name, stream)
        for logger, level, handlers, propagates in kept:
            for added in set(logger.handlers) - set(handlers):
                added.close()
            logger.setLevel(level)
            logger.handlers[:], logger.propagate = handlers, propagates
        if configured is None:
            structlog.reset_defaults()
        else:
            structlog.configure(**configured)


@contextmanager
def celery_logging_left_alone() -> Iterator[None]:
    """Let Celery set logging up as if it hadn't yet, and put back at the end what that changed in this process."""
    stock: Any = Logging  # celery-types leaves its inner attributes out
    was_set_up, environment = stock._setup, dict(os.environ)
    receivers = [(signal, list(signal.receivers)) for signal in _SIGNALS]
    with logging_left_alone(), warnings.catch_warnings():
        logging.getLogger("celery.task").handlers = []
        stock._setup = False
        yield
    stock._setup = was_set_up
    os.environ.clear()
    os.environ.update(environment)
    for signal, before in receivers:
        signal.receivers[:] = before
        signal.sender_receivers_cache.clear()
