"""Checks of what people hand in: task names, times, payloads."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel

from orchestra.exceptions import FieldError, PayloadError, ValidationError
from orchestra.types import Urgency
from orchestra.utils import shorten

__all__ = [
    "check_payload",
    "validate_delay",
    "validate_priority",
    "validate_queue_depth",
    "validate_task_type",
    "validate_timeout",
]

WEEK_SECONDS: Final = 7 * 86_400.0
YEAR_SECONDS: Final = 366 * 86_400.0

_MAX_TASK_TYPE_LENGTH: Final = 255
_TASK_TYPE = re.compile(r"\w[\w.:/-]*")


def validate_task_type(value: object) -> str:
    """
    Return `value` if it can be the name of a task, such as `workers.text.keywords`.

    Raises:
        ValidationError: it isn't a text of 1 to 255 letters, digits, '_', '.', ':', '/' and '-', the first one of
            which is a letter, a digit or '_'.

    """
    if isinstance(value, str) and len(value) <= _MAX_TASK_TYPE_LENGTH and _TASK_TYPE.fullmatch(value):
        return value
    rule = (
        "give the name that the task is registered under, such as workers.text.keywords: 1 to 255 letters, digits, "
        "'_', '.', ':', '/' and '-'"
    )
    raise _refused("task_type", "no task type", rule, value)


def validate_timeout(value: object, *, max_seconds: float = WEEK_SECONDS) -> float | None:
    """
    Return a timeout in seconds; None stands for none. A timedelta is taken as well.

    Raises:
        ValidationError: it isn't a number above 0 and up to `max_seconds`.

    """
    if value is None:
        return None
    seconds = _seconds(value)
    if seconds is None or not 0 < seconds <= max_seconds:
        rule = f"give a number of seconds above 0 and up to {max_seconds:g}, or None for no timeout"
        raise _refused("timeout", "no timeout", rule, value)
    return seconds


def validate_delay(value: object, *, max_seconds: float = YEAR_SECONDS) -> float | None:
    """
    Return a delay in seconds, such as a countdown; None stands for none. A timedelta is taken as well.

    Raises:
        ValidationError: it isn't a number from 0 to `max_seconds`.

    """
    if value is None:
        return None
    seconds = _seconds(value)
    if seconds is None or not 0 <= seconds <= max_seconds:
        raise _refused("delay", "no delay", f"give a number of seconds from 0 to {max_seconds:g}, or None", value)
    return seconds


def validate_priority(value: object) -> float | None:
    """
    Return a priority of Celery's, of which 0 comes first; None stands for none of the caller's own.

    Numbers beyond 0 and 9 are taken for these, as Celery does.

    Raises:
        ValidationError: it isn't a number; the message tells of the urgencies, which have names.

    """
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)):
        return value
    rule = f"give a number from 0, which comes first, to 9, or an urgency by its name, urgency=: {', '.join(Urgency)}"
    raise _refused("priority", "no priority", rule, value)


def validate_queue_depth(value: object) -> int | None:
    """
    Return how many tasks may wait in a queue; 0 stands for any number, None for what is set elsewhere.

    Raises:
        ValidationError: it isn't a whole number of at least 0.

    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    rule = "give a whole number of at least 0; 0 allows any number"
    raise _refused("max_queue_depth", "no max_queue_depth", rule, value)


def _seconds(value: object) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an int that no float can hold
        return None


def _refused(name: str, noun: str, rule: str, value: object) -> ValidationError:
    shown = shorten(repr(value), 60)
    return ValidationError(f"{shown} is {noun}: {rule}.", errors=[FieldError(name, rule, shown)])


# What JSON holds as it is, and what the message's serializer writes as a marked object and reads back.
_PLAIN: Final = frozenset({str, int, bool, type(None)})
_MARKED: Final = (datetime, date, time, UUID, Decimal, bytes)
_KOMBUS_MARKS: Final = {"__type__", "__value__"}  # the keys of the object that each of those is sent as


def check_payload(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    max_bytes: int,
    max_depth: int,
    default: Callable[[Any], Any] | None = None,
) -> int:
    """
    Return how many bytes the arguments of a task take in the message's body.

    JSON's own values pass, pydantic models (which are sent as their JSON form), and datetimes, dates, times, UUIDs,
    Decimals and bytes. `default` is asked for the JSON form of anything else, as `json.dumps` would, and raises
    TypeError where there is none. Depth counts lists and objects inside each other: `{"a": [1]}` as one argument
    is 2 deep.

    Raises:
        PayloadError: the arguments are too large or too deep, contain themselves, or hold something that JSON can't:
            NaN, infinity, a key that isn't text, an object of a foreign kind, or an object that agents would read as
            one of kombu's marked values. It names the place.

    """
    look = _Look(max_bytes, max_depth, default or _refuse_default)
    try:
        look.items(args)
        look.mapping(kwargs)
    except _UnfitError as exc:
        path = exc.path[::-1] or ["kwargs"]
        place = f"args[{path[0]}]" if isinstance(path[0], int) else path[0]
        raise _unfit(
            place + "".join(f".{one}" if isinstance(one, str) else f"[{one}]" for one in path[1:]), exc
        ) from None
    size = _size(args, kwargs, look.default)
    if size > max_bytes:
        raise _too_large(f"{size:,}", max_bytes)
    return size


def _refuse_default(value: Any) -> Any:  # whatever JSON doesn't know
    raise TypeError(type(value).__name__)


class _UnfitError(Exception):
    """Something that can't be sent; each level on the way up adds where it stands, innermost first."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.path: list[str | int] = []


@dataclass(slots=True)
class _Look:
    """One walk through a payload; `holders` are the lists and objects around the place where it is."""

    max_bytes: int
    max_depth: int
    default: Callable[[Any], Any]
    least_bytes: int = 0  # what the values so far take; it bounds the walk where parts are shared
    holders: list[int] = field(default_factory=list)

    def items(self, values: Sequence[Any]) -> None:
        self.count(len(values))
        for place, value in enumerate(values):
            if type(value) not in _PLAIN:
                self.inside(value, place)

    def mapping(self, values: Mapping[Any, Any]) -> None:
        self.count(len(values))
        for key, value in values.items():
            if not isinstance(key, str):
                raise _UnfitError(f"has the key {shorten(repr(key), 60)}; JSON's keys are texts")
            if type(value) not in _PLAIN:
                self.inside(value, key)

    def inside(self, value: Any, place: str | int) -> None:
        try:
            self.at(value)
        except _UnfitError as exc:
            exc.path.append(place)
            raise

    def at(self, value: Any) -> None:
        if isinstance(value, float):
            if not math.isfinite(value):
                raise _UnfitError(f"is {value}, which is no JSON number")
        elif isinstance(value, dict):
            if value.keys() == _KOMBUS_MARKS:
                raise _UnfitError("has just the keys __type__ and __value__, which are kombu's own mark; add another")
            self.enter(value, self.mapping)
        elif isinstance(value, (list, tuple)):
            self.enter(value, self.items)
        elif isinstance(value, BaseModel):
            self.enter(_dumped(value), self.mapping)
        elif not isinstance(value, (str, int, *_MARKED)):
            self.foreign(value)

    def enter(self, value: Any, walk: Callable[[Any], None]) -> None:
        if id(value) in self.holders:
            raise _UnfitError("contains itself")
        if len(self.holders) >= self.max_depth:
            raise _UnfitError(f"is nested too deep: {self.max_depth} levels are allowed")
        self.holders.append(id(value))
        walk(value)
        self.holders.pop()

    def count(self, values: int) -> None:
        self.least_bytes += 2 * values  # brackets and separators; every value lies between two of them
        if self.least_bytes > self.max_bytes:
            raise _too_large(f"more than {self.max_bytes:,}", self.max_bytes)

    def foreign(self, value: Any) -> None:
        if callable(getattr(value, "__json__", None)):
            return
        try:
            self.default(value)
        except TypeError:
            hint = "; send a list" if isinstance(value, (set, frozenset)) else ""
            raise _UnfitError(f"is of type {type(value).__name__}, which JSON can't hold{hint}") from None


def _size(args: Sequence[Any], kwargs: Mapping[str, Any], default: Callable[[Any], Any]) -> int:
    try:
        return len(_encoder(default).encode([list(args), dict(kwargs)]))  # ASCII: a byte a character
    except (ValueError, TypeError, RecursionError) as exc:
        message = f"the payload can't be written as JSON: {shorten(str(exc), 120)}"
        raise PayloadError(message) from exc


@lru_cache(maxsize=8)
def _encoder(default: Callable[[Any], Any]) -> json.JSONEncoder:
    def form(value: Any) -> Any:
        if isinstance(value, BaseModel):
            return _dumped(value)
        if callable(reduce := getattr(value, "__json__", None)):
            return reduce()
        if isinstance(value, _MARKED):
            return {"__type__": type(value).__name__, "__value__": _marked(value)}
        return default(value)

    return json.JSONEncoder(default=form, allow_nan=False, check_circular=False)  # the walk before has found cycles


def _dumped(model: BaseModel) -> dict[str, Any]:
    try:
        return model.model_dump(mode="json", by_alias=True, round_trip=True)
    except ValueError as exc:
        raise _UnfitError(f"has no JSON form: {shorten(str(exc), 120)}") from exc


def _marked(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8") if _is_utf8(value) else "x" * (4 * -(-len(value) // 3))  # base64's length
    return str(value)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _unfit(place: str, problem: Exception) -> PayloadError:
    place = shorten(place, 200)
    return PayloadError(f"the payload can't be sent: {place} {problem}", errors=[FieldError(place, str(problem), "")])


def _too_large(size: str, max_bytes: int) -> PayloadError:
    problem = f"{size} bytes are too many: {max_bytes:,} are allowed"
    message = f"the payload can't be sent: {problem}. Store it elsewhere and send where it is."
    return PayloadError(message, errors=[FieldError("payload", problem, "")])
