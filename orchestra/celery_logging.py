"""How a worker logs: Celery's own set-up, with our pipeline as its formatter and the task bound to what it logs."""

import sys
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import click
import structlog
from celery import signals
from celery.app.log import Logging, TaskFormatter
from celery.utils.log import ColorFormatter, LoggingProxy
from click.core import ParameterSource
from kombu.utils.encoding import safe_str
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars
from structlog.typing import EventDict, WrappedLogger

from orchestra.invariants import told_plainly
from orchestra.log_pipeline import PipelineFormatter
from orchestra.logging_utils import configure_structlog, get_logger, wants_colours

__all__ = ["OrchestraLogging"]

_FORMATS_OF_CELERY: Final = (
    "worker_log_format",
    "worker_log_datefmt",
    "worker_task_log_format",
    "worker_task_log_datefmt",
)

log = get_logger(__name__)


class OrchestraLogging(Logging):
    """
    Celery's logging, written by our pipeline.

    Handlers, files, signals and the redirected standard output stay Celery's. A project that sets one of Celery's log
    formats, or takes logging over by the signal `setup_logging`, gets what it asked for.
    """

    def __init__(self, app: Any) -> None:  # OrchestraCelery, which names this class
        super().__init__(app)
        self._orchestra = app
        self._agent: str | None = None

    @property
    def _is_ours(self) -> bool:
        return not any(self._orchestra.conf.value_set_for(name) for name in _FORMATS_OF_CELERY)

    @property
    def _is_json(self) -> bool:
        return self._is_ours and self._orchestra.settings.log_format == "json"

    def setup(self, loglevel: int | str | None = None, *more: Any, **options: Any) -> Any:  # Celery's signature
        """Set this process's logging up; a level that the command line names wins over `ORCHESTRA_LOG_LEVEL`."""
        self._agent = options.get("hostname")
        with told_plainly():
            level: Any = self._level(loglevel)
        signals.task_prerun.connect(_bind_task)
        signals.task_postrun.connect(_release_task)
        handled = super().setup(level, *more, **options)
        if not handled and self._is_ours and not structlog.is_configured():
            configure_structlog()
        if not handled and self._is_json:
            signals.celeryd_after_setup.connect(_leave_out_banner)
            signals.worker_shutting_down.connect(_tell_stop)
        return handled

    def _level(self, given: int | str | None) -> int | str:
        command = click.get_current_context(silent=True)
        source = None if command is None else command.get_parameter_source("loglevel")
        if given is None or source is ParameterSource.DEFAULT:
            level: str = self._orchestra.settings.log_level
            return level
        return given

    def setup_handlers(self, logger: Any, logfile: Any, *more: Any, **options: Any) -> Any:  # Celery's signature
        """Give a logger its handler as Celery does, with our formatter in place of Celery's two."""
        if self._is_ours and options.get("formatter", ColorFormatter) in {ColorFormatter, TaskFormatter}:
            options["formatter"] = partial(self._formatter, dates=logfile is not None)
        return super().setup_handlers(logger, logfile, *more, **options)

    def _formatter(self, _: str, *, dates: bool, use_color: bool, **__: Any) -> PipelineFormatter:  # called by Celery
        return PipelineFormatter(
            self._orchestra.settings.log_format,
            colours=use_color,
            dates=dates,
            fields={"agent": self._agent} if self._agent else {},
            foreign=[_name_task],
        )

    def supports_color(self, *colorize_and_logfile: Any, **options: Any) -> bool:
        """Tell whether to use colours, as Celery does; NO_COLOR in the environment is heard too."""
        return bool(super().supports_color(*colorize_and_logfile, **options)) and wants_colours(sys.stderr)

    def redirect_stdouts(self, *level_and_name: Any, **options: Any) -> None:
        """
        Make records of what is printed; in JSON also of what Celery prints past the redirection.

        That is what it says to people from its signal handlers, "worker: Warm shutdown", which is logged in our words.
        """
        super().redirect_stdouts(*level_and_name, **options)
        if self._is_json:
            signals.worker_shutdown.connect(_give_stdout_back)
            _set_stdout(sys.stdout)  # it has no fileno, and so Celery's handlers leave it alone

    def redirect_stdouts_to_logger(self, logger: Any, *level: Any, **options: Any) -> Any:  # Celery's signature
        """Let `print` write to a logger, as Celery does, but one record a call instead of one for each argument."""
        proxy = super().redirect_stdouts_to_logger(logger, *level, **options)
        if self._is_ours:
            for name in ("stdout", "stderr"):
                if getattr(sys, name) is proxy:
                    setattr(sys, name, _Printed(proxy.logger, proxy.loglevel))
        return proxy


class _Printed(LoggingProxy):
    """A file whose lines become records, each once it has its end."""

    def __init__(self, logger: Any, loglevel: Any) -> None:
        super().__init__(logger, loglevel)
        self._pieces = threading.local()

    def write(self, data: Any) -> int:  # type: ignore[override]  # text or bytes; Celery's types forget the number
        text = safe_str(data)
        begun = getattr(self._pieces, "text", "")
        self._pieces.text = begun + text
        if text.endswith("\n"):
            self.flush()
        return len(text)

    def flush(self) -> None:
        if begun := getattr(self._pieces, "text", ""):
            self._pieces.text = ""
            super().write(begun)


_STDOUT: Final = sys.__stdout__


def _set_stdout(file: Any) -> None:  # a text file, or what stands in for one
    sys.__stdout__ = file  # type: ignore[misc]  # final for Python, which doesn't use it while it runs


def _give_stdout_back(**_: Any) -> None:
    """Restore what a worker that starts itself anew, on SIGHUP, hands to its successor."""
    _set_stdout(_STDOUT)


def _leave_out_banner(instance: Any, **_: Any) -> None:
    instance.quiet = True


def _tell_stop(how: str, sig: str, **_: Any) -> None:
    log.info("agent stops", how=how.lower(), signal=sig)


def _name_task(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Name the task that a record of Celery's is about as our own records do."""
    data = event.get("data")
    if event["_record"].name.startswith("celery.") and isinstance(data, Mapping) and {"id", "name"} <= data.keys():
        del event["data"]  # arguments and results, which needn't be in a log
        event.update(task_id=data["id"], task=data["name"])
        if "runtime" in data:
            event["duration_seconds"] = data["runtime"]
    return event


# ── the task that is running ──


def _bind_task(task: Any, **_: Any) -> None:
    """Bind the task to the records of its thread until it has run; one that it runs within itself takes over."""
    request = task.request
    request.bound_before = get_contextvars()
    bind_contextvars(task_id=request.id, task=task.name, attempt=request.retries + 1)
    if not request.is_eager:
        bind_contextvars(agent=request.hostname)


def _release_task(task: Any, **_: Any) -> None:
    """Bind what was bound before the task, and nothing else: pools use their threads for one task after the other."""
    if isinstance(sys.stdout, _Printed):
        sys.stdout.flush()  # a line without its end is this task's
    before = getattr(task.request, "bound_before", None)
    if before is not None:
        clear_contextvars()
        bind_contextvars(**before)
