"""What a stranger may hand in: JSON within bounds, checked and never mended."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeVar
from unicodedata import is_normalized

from orchestra.exceptions import FieldError, ValidationError
from orchestra.utils import MASK, is_secret_name, mask_text, shorten

__all__ = ["InputLimits", "InputSanitizer"]

Given = TypeVar("Given")

_DEEPEST: Final = 64  # the walk recurses
_MOST_PROBLEMS: Final = 50  # so that the answer to a hostile input stays small
_TOLD: Final = 3  # in the message; `errors` has the others
_SHOWN_CHARACTERS: Final = 60
_SHOWN_BITS: Final = 128

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_CONTROL_IN_KEY = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
# An object with both keys is how the message's serializer writes a datetime, bytes and so on: an agent would read it
# as something else than what was checked here, or fail to read the message at all.
_MARKS: Final = frozenset({"__type__", "__value__"})


@dataclass(frozen=True, slots=True, kw_only=True)
class InputLimits:
    """
    The bounds of an input.

    Bytes are those of its JSON in ASCII, as messages have it; lengths are in characters. Depth counts lists and objects
    inside each other: `{"a": [1]}` is 2 deep. Values are all that there are, lists and objects included; keys those of
    one object. `max_integer` bounds whole numbers on both sides; beyond 2**53 - 1, JavaScript and Lua lose digits.
    """

    max_bytes: int = 262_144
    max_depth: int = 32
    max_values: int = 10_000
    max_keys: int = 256
    max_key_length: int = 128
    max_text_length: int = 65_536
    max_integer: int = 2**63 - 1

    def __post_init__(self) -> None:
        most = {"max_depth": _DEEPEST, "max_integer": 2**64 - 1}
        for one in fields(self):
            value, highest = getattr(self, one.name), most.get(one.name)
            if type(value) is not int or value < 1 or (highest is not None and value > highest):
                allowed = "a whole number of 1 or more" if highest is None else f"a whole number from 1 to {highest}"
                message = f"InputLimits({one.name}={value!r}) makes no sense: give {allowed}."
                raise ValidationError(message)


_DEFAULT_LIMITS: Final = InputLimits()


class InputSanitizer:
    """
    Checks what comes from outside, before anything is made of it.

    It refuses or passes, and changes nothing: no text is trimmed, escaped, normalised or searched for SQL and HTML,
    since only the one who puts it into a query or a page knows what is harmful there.
    """

    @staticmethod
    def validate_user_input(data: Given, *, limits: InputLimits = _DEFAULT_LIMITS) -> Given:
        """
        Return a deep copy of `data`, which is what a JSON parser gives: dict, list, str, int, float, bool, None.

        Subclasses of these aren't taken, since they may do anything. Texts may hold no control characters but tab and
        line ends, and no half of a surrogate pair; keys no control characters at all, and only in Unicode's composed
        form (NFC), so that no two keys of an object look the same and differ by it. Values keep the form that they
        have: `é` in one character and in two are different texts.

        Raises:
            ValidationError: `errors` has an entry for every problem (the first 50), each with its place, such as
                `pages[3].title`; values under names such as `password` are masked. An input that is beyond
                `max_values` or `max_bytes` isn't looked at to its end.

        """
        walk = _Walk(limits)
        clean = walk.whole(data)
        if walk.problems:
            raise _refusal(walk.problems)
        return clean


class _EnoughError(Exception):
    """There is no use in looking further."""


@dataclass(slots=True)
class _Walk:
    """One walk through an input; `path` is the place where it is."""

    limits: InputLimits
    problems: list[FieldError] = field(default_factory=list)
    path: list[str | int] = field(default_factory=list)
    depth: int = 0
    values: int = 0
    least_bytes: int = 0

    def whole(self, value: Given) -> Given:
        """Return a copy, which is good for nothing when there are problems."""
        try:
            clean: Given = self.copy(value)
            self.check_size(clean)
        except _EnoughError:
            return value
        return clean

    def copy(self, value: Any) -> Any:  # anything may come from outside
        self.values += 1
        if self.values > self.limits.max_values:
            self.give_up(f"holds too many values: {self.limits.max_values:,} are allowed")
        if type(value) is dict:
            return self.enter(value, self.copy_object)
        if type(value) is list:
            return self.enter(value, self.copy_list)
        problem = self.problem_of(value)
        if problem is not None:
            self.note(problem, value)
        return value

    def enter(self, value: Any, copy: Callable[[Any], Any]) -> Any:
        if self.depth == self.limits.max_depth:
            self.note(f"is nested too deep: {self.limits.max_depth} levels are allowed", value)
            return None
        self.depth += 1
        copied = copy(value)
        self.depth -= 1
        return copied

    def copy_list(self, values: list[Any]) -> list[Any]:
        return [self.inside(place, value) for place, value in enumerate(values)]

    def copy_object(self, values: dict[Any, Any]) -> dict[str, Any]:
        if len(values) > self.limits.max_keys:
            self.note(f"has {len(values):,} keys: {self.limits.max_keys:,} are allowed", values)
            return {}
        if values.keys() >= _MARKS:
            self.note("has the keys __type__ and __value__, which mark other things than objects in messages", values)
        return {key: self.inside(key, value) for key, value in values.items() if self.is_text(key)}

    def is_text(self, key: object) -> bool:
        """Check a key; only below one that is a text can anything have a place."""
        problem = self.problem_of_key(key)
        if problem is not None:
            self.note(f"has the key {_shown(key)}, which {problem}", key)
        return type(key) is str

    def inside(self, place: str | int, value: Any) -> Any:
        self.path.append(place)
        copied = self.copy(value)
        self.path.pop()
        return copied

    def problem_of(self, value: object) -> str | None:
        """Return what is wrong with a value that holds no others."""
        if value is None or type(value) is bool:
            return None
        if type(value) is str:
            return self.problem_of_text(value, self.limits.max_text_length, _CONTROL)
        if type(value) is int:
            highest = self.limits.max_integer
            return None if -highest <= value <= highest else f"is beyond the whole numbers up to ±{_shown(highest)}"
        if type(value) is float:
            return None if math.isfinite(value) else f"is {value}, which is no JSON number"
        return f"is of type {type(value).__name__}, which no JSON parser gives"

    def problem_of_key(self, key: object) -> str | None:
        if type(key) is not str:
            return "is no text"
        problem = self.problem_of_text(key, self.limits.max_key_length, _CONTROL_IN_KEY)
        if problem is None and not is_normalized("NFC", key):
            return "isn't in Unicode's composed form (NFC)"
        return problem

    def problem_of_text(self, text: str, max_length: int, control: re.Pattern[str]) -> str | None:
        self.least_bytes += len(text)
        if self.least_bytes > self.limits.max_bytes:
            self.give_up(f"takes more than {self.limits.max_bytes:,} bytes as JSON")
        if len(text) > max_length:
            return f"has {len(text):,} characters: {max_length:,} are allowed"
        if found := control.search(text):
            return f"holds the control character U+{ord(found[0]):04X} at {found.start()}"
        if found := _SURROGATE.search(text):
            return f"holds half of a surrogate pair at {found.start()}"
        return None

    def check_size(self, clean: object) -> None:
        """Count the bytes of a copy in which nothing else is wrong."""
        if self.problems:
            return
        size = len(json.dumps(clean))  # ASCII: a byte a character
        if size > self.limits.max_bytes:
            self.give_up(f"takes {size:,} bytes as JSON: {self.limits.max_bytes:,} are allowed")

    def give_up(self, problem: str) -> None:
        self.path.clear()
        self.note(problem, {})
        raise _EnoughError

    def note(self, problem: str, value: object) -> None:
        secret = any(isinstance(part, str) and is_secret_name(part) for part in self.path)
        self.problems.append(FieldError(_place(self.path), problem, MASK if secret else _shown(value)))
        if len(self.problems) == _MOST_PROBLEMS:
            raise _EnoughError


def _place(path: list[str | int]) -> str:
    first, *rest = path or ["input"]
    start = first if isinstance(first, str) and _PLAIN_KEY.fullmatch(first) else f"input{_step(first)}"
    return shorten(start + "".join(map(_step, rest)), 200)


def _step(part: str | int) -> str:
    if isinstance(part, str) and _PLAIN_KEY.fullmatch(part):
        return f".{part}"
    return f"[{_shown(part)}]"


def _shown(value: object) -> str:
    """Show a value in little space and without what a terminal would act on; of holders and strangers, the type."""
    if type(value) is str:
        return shorten(repr(mask_text(value[: 4 * _SHOWN_CHARACTERS])), _SHOWN_CHARACTERS)
    if type(value) is int and value.bit_length() > _SHOWN_BITS:
        return f"a number of {value.bit_length():,} bits"
    if value is None or type(value) in (int, float, bool):
        return repr(value)
    return type(value).__name__


def _refusal(problems: list[FieldError]) -> ValidationError:
    told = "; ".join(f"{one.field} {one.message}" for one in problems[:_TOLD])
    more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
    return ValidationError(f"the input was refused: {told}{more}.", errors=problems)
