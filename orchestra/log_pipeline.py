"""
What every log record passes, whoever made it: its fields are gathered, secrets masked, and one renderer writes it.

A logger of structlog's kind hands its event to Python's logging as an `Event`, so that any other handler finds an
ordinary record with readable text, while the pipeline finds the fields.
"""

import json
import logging
import math
import re
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias

import structlog
from structlog.contextvars import get_contextvars
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from orchestra.utils import MASK, is_secret_name, mask_fields, mask_text

__all__ = ["EMITTING", "FORMATS", "Event", "FormatType", "PipelineFormatter"]

FormatType: TypeAlias = Literal["console", "json"]

FORMATS: Final = ("console", "json")

_RECORD_FIELDS: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime"})
_DEEPEST: Final = 8  # values within values of a field; what lies deeper is left out
_LARGEST: Final = 2**63  # what readers of JSON hold in an integer

_positional: Final = structlog.stdlib.PositionalArgumentsFormatter()
_is_secret: Final = lru_cache(maxsize=1024)(is_secret_name)


# ── from a logger to a record ──


class Event(dict[str, Any]):
    """An event with its fields, as the message of a log record; its text is `what happened: field=value`."""

    def __str__(self) -> str:
        """Quote values that hold white space, so that they look neither like a field nor like a line of their own."""
        fields = " ".join(
            f"{name}={_word(str(value))}" for name, value in self.items() if name not in {"event", "exception", "stack"}
        )
        text = str(self.get("event", ""))
        blocks = [str(self[name]) for name in ("stack", "exception") if self.get(name)]
        return "\n".join([f"{text}: {fields}" if fields else text, *blocks])


def _fill_in(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Put positional arguments into the event; those that don't fit are told as a field, and no error."""
    try:
        return _positional(logger, name, event)
    except Exception:  # noqa: BLE001  # `%` runs code of the arguments
        return event


def _to_record(logger: Any, name: str, event: EventDict) -> tuple[tuple[EventDict], dict[str, Any]]:  # structlog's
    """Make the arguments of the call to Python's logging, which itself gets the error that is told of."""
    error = event.pop("exc_info", None)
    arguments, options = ProcessorFormatter.wrap_for_formatter(logger, name, Event(event))
    return arguments, {**options, "exc_info": _figured_out(error)}


def _figured_out(error: Any) -> Any:  # whatever was given as exc_info
    if isinstance(error, BaseException):
        return type(error), error, error.__traceback__
    found = error if isinstance(error, tuple) or not error else sys.exc_info()
    return None if found == (None, None, None) else found


EMITTING: Final[list[Processor]] = [
    structlog.stdlib.filter_by_level,
    _fill_in,
    structlog.processors.StackInfoRenderer(),
    _to_record,
]


# ── from a record to a line ──


class PipelineFormatter(ProcessorFormatter):
    """
    Write records in one format, whether structlog, Python's logging or a library made them.

    `fields` stand on every line; the console, which a person watches for one process, leaves them out. `dates` go with
    a console's times in a file that is kept. `foreign` are further processors for records that aren't of structlog's
    kind; they find the record as `_record`.
    """

    def __init__(
        self,
        format_type: FormatType,
        *,
        colours: bool = False,
        dates: bool = False,
        fields: Mapping[str, str] | None = None,
        foreign: Sequence[Processor] = (),
    ) -> None:
        own = dict(fields or {})
        console = _Console(own, colours=colours)
        super().__init__(
            processors=[
                _take_context,
                _take_error,
                _Line(own, _utc if format_type == "json" else _date_and_time if dates else _time_of_day),
                _as_json if format_type == "json" else console,
            ],
            foreign_pre_chain=[_take_extra, *foreign],
            keep_exc_info=True,
            keep_stack_info=True,
        )

    def format(self, record: logging.LogRecord) -> str:
        """Write a record; one that can't be written as it is, is told of rather than lost."""
        try:
            return super().format(record)
        except Exception as error:  # noqa: BLE001  # values run code of their own when they're shown
            return super().format(_bare(record, error))


def _bare(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    kept = {name: getattr(record, name) for name in ("created", "levelno", "levelname", "name")}
    reason = f"{type(error).__name__}: {_shown(error)}"
    return logging.makeLogRecord(
        {**kept, "msg": _shown(record.msg), "arguments": _shown(record.args), "logging_error": reason}
    )


def _take_extra(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Take what a record got as `extra`."""
    for name, value in vars(event["_record"]).items():
        if name not in _RECORD_FIELDS:
            event[f"{name}_" if name in event else str(name)] = value
    return event


def _take_context(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Take what is bound to the thread or coroutine, such as the task that is running."""
    for name, value in sorted(get_contextvars().items()):
        event.setdefault(name, value)
    return event


def _take_error(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Tell an error by its kind, its words and its trace; the base class mustn't write it a second time."""
    record = event["_record"]
    event.pop("exc_info", None)
    if stack := event.pop("stack", None) or event.pop("stack_info", None) or record.stack_info:
        event["stack"] = stack
    if found := _figured_out(record.exc_info):
        kind, error, trace = found
        event.setdefault("error_type", kind.__name__)
        event.setdefault("error", _shown(error))
        event["exception"] = "".join(traceback.format_exception(kind, error, trace)).rstrip()
    record.exc_info = record.exc_text = record.stack_info = None
    return event


class _Line:
    """What a line begins with, and then its fields: all of it what JSON can hold, and without secrets."""

    def __init__(self, fields: Mapping[str, str], stamp: Callable[[float], str]) -> None:
        self._fields = fields
        self._stamp = stamp

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        record: logging.LogRecord = event.pop("_record")
        del event["_from_structlog"]
        line: dict[str, Any] = {
            "timestamp": self._stamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _masked(str(event.pop("event", ""))).rstrip("\n"),
        }
        for name, value in event.items():
            line[f"{name}_" if name in line else name] = _safe(name, value)
        return line | {name: value for name, value in self._fields.items() if name not in line}


def _utc(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _date_and_time(moment: float) -> str:
    return datetime.fromtimestamp(moment).isoformat(" ", timespec="milliseconds")  # noqa: DTZ006  # people's own time


def _time_of_day(moment: float) -> str:
    return _date_and_time(moment).partition(" ")[2]


def _safe(name: str, value: object) -> object:
    if _is_secret(name):
        return MASK
    try:
        plain = _jsonable(value)
    except Exception:  # noqa: BLE001  # a value of any kind may raise anything when it's looked at
        return _unshown(value)
    match plain:
        case str():
            return _masked(plain)
        case dict() | list():
            return mask_fields({name: plain})[name]
        case _:
            return plain


def _masked(text: str) -> str:
    """Return what `mask_text` does, which takes its time, and look first whether there's anything for it to find."""
    if (":" in text or "=" in text) and ("://" in text or is_secret_name(text)):
        return mask_text(text)
    return text


def _jsonable(value: object, inside: tuple[int, ...] = ()) -> object:
    """Return `value` as JSON holds it; what JSON has no form for becomes its text."""
    match value:
        case None | bool():
            return value
        case str():
            return str(value)
        case int():
            return int(value) if abs(value) < _LARGEST else hex(value)
        case float():
            return float(value) if math.isfinite(value) else str(value)
        case Mapping() | list() | tuple() | set() | frozenset():
            return _contents(value, inside)
        case _:
            return f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else str(value)


def _contents(value: Mapping[Any, Any] | Collection[Any], inside: tuple[int, ...]) -> object:
    if id(value) in inside or len(inside) == _DEEPEST:
        return "…"
    inside = (*inside, id(value))
    if isinstance(value, Mapping):
        return {str(name): _jsonable(item, inside) for name, item in value.items()}
    return [_jsonable(item, inside) for item in value]


def _shown(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001  # as above
        return _unshown(value)


def _unshown(value: object) -> str:
    return f"<{type(value).__name__} that can't be shown>"


# ── renderers ──


def _as_json(_: WrappedLogger, __: str, line: EventDict) -> str:
    return json.dumps(line)  # in ASCII: no character of a value ends a line, in whatever encoding it's read


_RESET: Final = "\x1b[0m"
_DIM: Final = "\x1b[2m"
_LEVEL_COLOURS: Final = {"debug": _DIM, "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[1;31m"}
_QUIET_LOGGERS: Final = frozenset({"celery", "orchestra"})  # what happened tells who says so
_TOLD_BY_TEXT: Final = frozenset({"task_id", "task", "error_type", "error", "duration_seconds"})
# Control characters but for tab and newline, what turns the direction of writing, and halves of characters.
_UNSAFE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class _Console:
    """
    Lines for people: the time, the level, what happened, then fields.

    What takes further lines is indented, so that nothing in a record looks like another one. Left out are fields that
    stand on every line of the process or in the text already, and an attempt that is the first.
    """

    def __init__(self, fields: Mapping[str, str], *, colours: bool) -> None:
        self._fields = fields
        self._colours = colours

    def __call__(self, _: WrappedLogger, __: str, line: EventDict) -> str:
        stamp, level, logger, event = (line.pop(name) for name in ("timestamp", "level", "logger", "event"))
        blocks = [str(line.pop(name)) for name in ("stack", "exception") if name in line]
        text = "\n".join([event, *blocks])
        first, *further = event.split("\n")
        words = [self._in(_DIM, stamp), self._in(_LEVEL_COLOURS.get(level, ""), f"{level:<8}"), _clean(first)]
        words += [
            f"{self._in(_DIM, f'{name}=')}{_valued(value)}"
            for name, value in line.items()
            if not self._is_told(name, value, text)
        ]
        if logger.partition(".")[0] not in _QUIET_LOGGERS:
            words.append(self._in(_DIM, f"[{_clean(logger)}]"))
        further += "\n".join(blocks).split("\n") if blocks else []
        return "\n    ".join([" ".join(words), *map(_clean, further)])

    def _is_told(self, name: str, value: object, text: str) -> bool:
        if name in _TOLD_BY_TEXT:
            return str(value) in text
        return (name == "attempt" and value == 1) or (name in self._fields and self._fields[name] == value)

    def _in(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if self._colours and colour else text


def _valued(value: object) -> str:
    if isinstance(value, dict | list):
        return _clean(json.dumps(value, ensure_ascii=False))
    return _word(str(value))


def _word(text: str) -> str:
    """Quote what isn't one plain word."""
    if text and text.isprintable() and " " not in text:
        return text
    return _clean(json.dumps(text, ensure_ascii=False))


def _clean(text: str) -> str:
    """Show what a terminal would obey, or another program take for the end of a line, as an escape."""
    return text if text.isprintable() else _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)
