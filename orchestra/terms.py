"""One condition on one label: its operator, its value, and when it holds."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from functools import total_ordering
from operator import ge, gt, le, lt
from typing import Any, Final

__all__ = ["NOT_IN_SUFFIX", "OPERATORS_IN_SUFFIX", "Kind", "Operator", "Term", "Value"]

_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_NOT_A_NUMBER = re.compile(r"-?(?:nan|inf|infinity)", re.IGNORECASE)
_VERSION = re.compile(r"v?[0-9]++(?:[._-]?(?:[0-9]++|[A-Za-z]++))*+")  # possessive: long input can't make it backtrack
_VERSION_PART = re.compile(r"[0-9]+|[A-Za-z]+")


class Kind(Enum):
    """What a value is; only values of one kind have an order."""

    NUMBER = "a number"
    VERSION = "a version"
    TEXT = "text"


@total_ordering
@dataclass(frozen=True, slots=True)
class Value:
    """
    A value in its one canonical form; values of one kind that aren't text have an order.

    Versions are compared part by part, a part being a run of digits or of letters: numbers by size (`v12.10` is above
    `v12.9`), absent ones as 0 (`v12` is `v12.0`). From the first part of letters on, a version precedes the one
    without: `v2-rc1` < `v2-rc2` < `v2`. There numbers come before letters, letters go by their ASCII order, and fewer
    parts before more.
    """

    text: str
    kind: Kind = field(compare=False)
    key: Any = field(compare=False, repr=False)  # Decimal, str, or a version's nested tuple: of one type within a kind

    @classmethod
    def parse(cls, text: str) -> "Value":
        """
        Return the value that `text` stands for.

        Raises:
            ValueError: it is "nan" or infinite.

        """
        if _NOT_A_NUMBER.fullmatch(text):
            message = f"{text!r} is no value that anything could be compared with"
            raise ValueError(message)
        if _NUMBER.fullmatch(text):
            return cls(_canonical_number(text), Kind.NUMBER, Decimal(text))
        if _VERSION.fullmatch(text) and (text.startswith("v") or text.count(".") > 1):
            return _version(text)
        return cls(text, Kind.TEXT, text)

    def __lt__(self, other: "Value") -> bool:
        """Whether this value comes before `other`, which must be of the same kind."""
        return bool(self.key < other.key)

    def __str__(self) -> str:
        """Return the canonical text."""
        return self.text


def _canonical_number(text: str) -> str:
    whole, _, fraction = text.lstrip("-").partition(".")
    digits = (whole.lstrip("0") or "0") + (f".{kept}" if (kept := fraction.rstrip("0")) else "")
    return f"-{digits}" if text.startswith("-") and digits != "0" else digits


def _version(text: str) -> Value:
    parts = [_digits(part) for part in _VERSION_PART.findall(text.removeprefix("v"))]
    first_letters = next((i for i, part in enumerate(parts) if not part.isdigit()), len(parts))
    release, rest = parts[:first_letters], parts[first_letters:]
    while len(release) > 1 and release[-1] == "0":
        release.pop()
    rank = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in rest)
    key = (tuple(int(part) for part in release if release != ["0"]), (0, rank) if rest else (1, ()))
    return Value("v" + ".".join([*release, *rest]), Kind.VERSION, key)


def _digits(part: str) -> str:
    return (part.lstrip("0") or "0") if part.isdigit() else part


class Operator(Enum):
    """What a term asks of its label, in the order in which a requirement lists the terms of one label."""

    HAS = ""
    LACKS = "!"
    EQUAL = "="
    DIFFERENT = "!="
    AT_LEAST = ">="
    ABOVE = ">"
    AT_MOST = "<="
    BELOW = "<"


_ORDER: Final[Mapping[Operator, Callable[[Value, Value], bool]]] = {
    Operator.AT_LEAST: ge,
    Operator.ABOVE: gt,
    Operator.AT_MOST: le,
    Operator.BELOW: lt,
}
OPERATORS_IN_SUFFIX: Final = {
    Operator.DIFFERENT: "~ne~",
    Operator.AT_LEAST: "~ge~",
    Operator.ABOVE: "~gt~",
    Operator.AT_MOST: "~le~",
    Operator.BELOW: "~lt~",
}
NOT_IN_SUFFIX: Final = "not~"


@dataclass(frozen=True, slots=True)
class Term:
    """One condition of a requirement; `value` is None for HAS and LACKS alone."""

    label: str
    operator: Operator
    value: Value | None = None

    @property
    def text(self) -> str:
        """The canonical text."""
        if self.operator is Operator.LACKS:
            return f"!{self.label}"
        return self.label if self.value is None else f"{self.label}{self.operator.value}{self.value}"

    @property
    def suffix(self) -> str:
        """The canonical text with characters that are safe in a queue's name."""
        if self.operator is Operator.LACKS:
            return f"{NOT_IN_SUFFIX}{self.label}"
        operator = OPERATORS_IN_SUFFIX.get(self.operator, self.operator.value)
        return self.label if self.value is None else f"{self.label}{operator}{self.value}"

    @property
    def ordered(self) -> bool:
        """Whether it compares by order."""
        return self.operator in _ORDER

    def accepts(self, value: Value) -> bool:
        """Whether an ordered term holds for `value`; never for one of another kind."""
        return self.value is not None and value.kind is self.value.kind and _ORDER[self.operator](value, self.value)

    def holds(self, values: tuple[Value, ...] | None) -> bool:
        """Whether a term without an order holds for all that an agent has under its label."""
        match self.operator:
            case Operator.HAS:
                return values is not None
            case Operator.LACKS:
                return values is None
            case Operator.EQUAL:
                return self.value in (values or ())
            case _:
                return self.value not in (values or ())
