"""
What agents can and what tasks require, and whether the one satisfies the other.

A **capability** is a label, `gpu`, or a label with a value, `lang=fr`, `mem_gb=64`, `cuda=v12.4`; a label may come
with several values. A **requirement** is a set of terms, all of which must hold:

=================  ====================================================================
`gpu`              the agent has the label, with any value or none
`!gpu`             it doesn't have the label
`lang=fr`          it has the label with this value
`lang!=fr`         it doesn't have it with this value, and needn't have the label at all
`mem_gb>=16`       it has the label with a value in this order; also `>`, `<=` and `<`
`cuda>=v12,<v13`   the same label twice: a part that starts with an operator goes on
=================  ====================================================================

All terms in order (`>=`, `>`, `<=`, `<`) over one label must hold for one and the same value of it. Values are
numbers (`16`, `-0.5`), versions (`v12`, `v1.2-rc1`, `3.11.4`: a leading `v` and a digit, or two dots) or text.

Everything has one canonical form: `16.0` and `016` are `16`, `3.11.0` is `v3.11`, terms are sorted and single. A
requirement's `text` is for people; its `suffix` says the same with the characters `[A-Za-z0-9_.~+=-]` alone, none of
which needs quoting in a shell, so it can name a queue: `gpu`, `not~gpu`, `lang=fr`, `lang~ne~fr`, `mem_gb~ge~16`,
joined by `+`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from operator import attrgetter
from typing import Final

from orchestra.exceptions import FieldError, ValidationError
from orchestra.terms import NOT_IN_SUFFIX, OPERATORS_IN_SUFFIX, Kind, Operator, Term, Value
from orchestra.utils import shorten

__all__ = ["GENERAL", "Capability", "CapabilitySet", "Requirement"]

_RANKS: Final = {operator: rank for rank, operator in enumerate(Operator)}

MAX_TERMS: Final = 32
MAX_CAPABILITIES: Final = 256
MAX_CHARACTERS: Final = 512  # of a requirement's canonical text, since it names a queue; and of one capability
_MAX_INPUT_CHARACTERS: Final = 65_536  # more is refused unread

_REQUIREMENTS: Final = (
    "Terms are written gpu, lang=fr, lang!=fr, mem_gb>=16, cuda>=v12,<v13 or !spot; labels of a-z, 0-9, '_', '.', '-' "
    "(first a letter or digit), values of letters, digits, '.', '_', '-'."
)
_CAPABILITIES: Final = (
    "Capabilities are written gpu, lang=fr, mem_gb=64 or cuda=v12.4; labels of a-z, 0-9, '_', '.', '-' (first a letter "
    "or digit), values of letters, digits, '.', '_', '-'."
)
_LABEL = r"[a-z0-9][a-z0-9_.-]*"
_TERM = re.compile(rf"(?P<label>{_LABEL})?\s*(?:(?P<operator>>=|<=|!=|=|>|<)\s*(?P<value>[A-Za-z0-9._-]+))?")
_LACKS = re.compile(rf"!\s*(?P<label>{_LABEL})")


@dataclass(frozen=True, slots=True)
class Capability:
    """Something that an agent can, or has: a label, with or without a value."""

    label: str
    value: Value | None = None

    def __str__(self) -> str:
        """Return the canonical text."""
        return self.label if self.value is None else f"{self.label}={self.value}"


@dataclass(frozen=True, slots=True)
class CapabilitySet:
    """Everything that an agent can; empty for an agent that offers nothing in particular."""

    capabilities: tuple[Capability, ...]
    _values: Mapping[str, tuple[Value, ...]] = field(compare=False, repr=False)

    @classmethod
    def parse(cls, value: str | Iterable[str]) -> "CapabilitySet":
        """
        Read `"gpu,mem_gb=64"`, or several such texts.

        Raises:
            ValidationError: a part isn't a capability, or there are more than 256; it names the part.

        """
        found = {_capability(part) for text in _texts(value, _CAPABILITY) for part in _parts(text, _CAPABILITY)}
        if len(found) > MAX_CAPABILITIES:
            raise _CAPABILITY.error(f"{len(found)} capabilities are too many: an agent has at most {MAX_CAPABILITIES}")
        capabilities = tuple(sorted(found, key=lambda one: (one.label, str(one))))
        values = {
            label: tuple(one.value for one in group if one.value is not None)
            for label, group in groupby(capabilities, key=attrgetter("label"))
        }
        return cls(capabilities, values)

    def values(self, label: str) -> tuple[Value, ...] | None:
        """Return the values that `label` comes with, none for a plain label; None when the agent doesn't have it."""
        return self._values.get(label)

    def __iter__(self) -> Iterator[str]:
        """Yield the canonical text of each capability."""
        return (str(one) for one in self.capabilities)

    def __len__(self) -> int:
        """Return the number of capabilities."""
        return len(self.capabilities)

    def __str__(self) -> str:
        """Return the canonical text: `gpu,mem_gb=64`."""
        return ",".join(self)


@dataclass(frozen=True, slots=True)
class Requirement:
    """
    What a task requires of the agent that runs it.

    Two requirements are equal if their canonical texts are; `text`, `suffix` and `terms` say the same three times.
    """

    text: str
    suffix: str = field(compare=False, repr=False)
    terms: tuple[Term, ...] = field(compare=False, repr=False)

    @classmethod
    def parse(cls, value: "str | Iterable[str] | Requirement") -> "Requirement":
        """
        Read `"gpu,mem_gb>=16"`, or several such texts; texts that were read before cost next to nothing.

        Raises:
            ValidationError: a term can't be read, compares what has no order or values of two kinds, or contradicts
                another; or there are none, more than 32, or more than 512 characters. It names the term.

        """
        if isinstance(value, Requirement):
            return value
        return _requirement(value) if isinstance(value, str) else _requirement_of(_texts(value, _REQUIREMENT))

    @classmethod
    def from_suffix(cls, suffix: str) -> "Requirement":
        """
        Read back what `suffix` gave.

        Raises:
            ValidationError: no requirement has this suffix.

        """
        return _requirement_from_suffix(suffix)

    def satisfied_by(self, capabilities: CapabilitySet) -> bool:
        """Whether an agent with these capabilities may run the task."""
        return not self.missing(capabilities)

    def missing(self, capabilities: CapabilitySet) -> tuple[str, ...]:
        """
        Return the terms that an agent with these capabilities doesn't satisfy; none means that it may run the task.

        Where no single value of a label satisfies all its ordered terms, those count that the nearest one fails.
        """
        missing = {
            term
            for label, terms in groupby(self.terms, key=attrgetter("label"))
            for term in _failing(tuple(terms), capabilities.values(label))
        }
        return tuple(term.text for term in self.terms if term in missing)

    def __len__(self) -> int:
        """Return the number of terms."""
        return len(self.terms)

    def __str__(self) -> str:
        """Return the canonical text."""
        return self.text


def _failing(terms: tuple[Term, ...], values: tuple[Value, ...] | None) -> list[Term]:
    ordered = [term for term in terms if term.ordered]
    by_value = ([term for term in ordered if not term.accepts(value)] for value in values or ())
    return [term for term in terms if not term.ordered and not term.holds(values)] + min(
        by_value, key=len, default=ordered
    )


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is being read: how its errors call it, and its grammar."""

    field: str
    noun: str
    grammar: str

    def error(self, problem: str, given: object = "") -> ValidationError:
        shown = shorten(given if isinstance(given, str) else repr(given), 60)
        return ValidationError(f"{problem}. {self.grammar}", errors=[FieldError(self.field, problem, shown)])


_REQUIREMENT: Final = _Subject("requires", "requirement", _REQUIREMENTS)
_CAPABILITY: Final = _Subject("capabilities", "capability", _CAPABILITIES)


def _texts(value: object, subject: _Subject) -> frozenset[str]:
    if isinstance(value, str):
        return frozenset({value})
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        shown = shorten(repr(value), 60)
        hint = " Where nothing is required, leave `requires` away." if value is None else ""
        raise subject.error(
            f"{shown} is no {subject.noun}: give a text, or a set or list of texts.{hint}".rstrip("."), value
        )
    texts = list(value)
    for text in texts:
        if not isinstance(text, str):
            raise subject.error(f"{shorten(repr(text), 60)} is no {subject.noun}: each must be a text", text)
    return frozenset(texts)


def _parts(text: str, subject: _Subject) -> list[str]:
    """Split `text` at its commas; no parts for an empty one."""
    if len(text) > _MAX_INPUT_CHARACTERS:
        raise subject.error(f"a text of {len(text)} characters is too long for a {subject.noun}", text)
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if "" in parts:
        raise subject.error(f"{shorten(text, 60)!r} has nothing between two commas, or at its start or end", text)
    return parts


def _capability(text: str) -> Capability:
    found = _TERM.fullmatch(text)
    if found is None or found["label"] is None or found["operator"] not in {None, "="}:
        raise _CAPABILITY.error(f"{shorten(text, 60)!r} is no capability", text)
    if len(text) > MAX_CHARACTERS:
        raise _CAPABILITY.error(f"{shorten(text, 60)!r} has {len(text)} characters; {MAX_CHARACTERS} are allowed", text)
    return Capability(found["label"], _value(text, found["value"], _CAPABILITY))


def _value(term: str, text: str | None, subject: _Subject) -> Value | None:
    try:
        return None if text is None else Value.parse(text)
    except ValueError as exc:
        raise subject.error(f"{term!r} can't be: {exc}", term) from exc


@lru_cache(maxsize=4096)
def _requirement(text: str) -> Requirement:
    return _requirement_of(frozenset({text}))


@lru_cache(maxsize=4096)
def _requirement_from_suffix(suffix: str) -> Requirement:
    text = suffix.replace("+", ",")
    for operator, written in OPERATORS_IN_SUFFIX.items():
        text = text.replace(written, operator.value)
    parts = (
        f"!{part.removeprefix(NOT_IN_SUFFIX)}" if part.startswith(NOT_IN_SUFFIX) else part for part in text.split(",")
    )
    try:
        requirement = _requirement(",".join(parts))
    except ValidationError as exc:
        raise _REQUIREMENT.error(f"{shorten(suffix, 60)!r} names no queue of a requirement", suffix) from exc
    if requirement.suffix != suffix:
        raise _REQUIREMENT.error(f"{shorten(suffix, 60)!r} names no queue: write {requirement.suffix!r}", suffix)
    return requirement


@lru_cache(maxsize=4096)
def _requirement_of(texts: frozenset[str]) -> Requirement:
    found = {term for text in texts for term in _terms(text)}
    if not found:
        raise _REQUIREMENT.error("the requirement is empty; where nothing is required, leave `requires` away")
    if len(found) > MAX_TERMS:
        raise _REQUIREMENT.error(f"{len(found)} terms are too many: a requirement has at most {MAX_TERMS}")
    terms = tuple(sorted(found, key=lambda term: (term.label, _RANKS[term.operator], term.text)))
    for _, group in groupby(terms, key=attrgetter("label")):
        _check_label(tuple(group))
    text = ",".join(term.text for term in terms)
    if len(text) > MAX_CHARACTERS:
        problem = f"a requirement has at most {MAX_CHARACTERS} characters; {shorten(text, 60)!r} has {len(text)}"
        raise _REQUIREMENT.error(problem, text)
    return Requirement(text, "+".join(term.suffix for term in terms), terms)


def _terms(text: str) -> Iterator[Term]:
    label = None
    for part in _parts(text, _REQUIREMENT):
        term = _term(part, label)
        label = term.label
        yield term


def _term(text: str, label_before: str | None) -> Term:
    """Read one term; `label_before` is the label that a part which starts with an operator goes on with."""
    if lacks := _LACKS.fullmatch(text):
        return Term(lacks["label"], Operator.LACKS)
    found = _TERM.fullmatch(text)
    shown = shorten(text, 60)
    if found is None:
        raise _REQUIREMENT.error(f"{shown!r} is no requirement term", text)
    label = found["label"] or label_before
    if label is None:
        raise _REQUIREMENT.error(f"{shown!r} starts with an operator, and no label stands before it", text)
    operator = Operator(found["operator"] or "")
    value = _value(text, found["value"], _REQUIREMENT) if len(text) <= MAX_CHARACTERS else None
    if len(text) > MAX_CHARACTERS:
        raise _REQUIREMENT.error(f"{shown!r} has {len(text)} characters; {MAX_CHARACTERS} are allowed", text)
    if Term(label, operator, value).ordered and value is not None and value.kind is Kind.TEXT:
        problem = (
            f"{shown!r} asks for an order, but {value.text!r} is text; numbers (16) and versions (v12, 3.11.4) have one"
        )
        raise _REQUIREMENT.error(problem, text)
    return Term(label, operator, value)


def _check_label(terms: tuple[Term, ...]) -> None:
    """Refuse terms over one label that no agent can satisfy together, or that compare different kinds."""
    by_operator = {term.operator: term for term in terms if term.value is None}
    wanted = [term for term in terms if term.operator not in {Operator.LACKS, Operator.DIFFERENT}]
    if Operator.LACKS in by_operator and wanted:
        raise _contradiction(by_operator[Operator.LACKS], wanted[0])
    refused = {term.value: term for term in terms if term.operator is Operator.DIFFERENT}
    for term in terms:
        if term.operator is Operator.EQUAL and term.value in refused:
            raise _contradiction(term, refused[term.value])
    ordered = [term for term in terms if term.ordered]
    if ordered:
        _check_kinds(ordered[0], terms)
        _check_range(ordered, refused)


def _check_kinds(compared: Term, terms: tuple[Term, ...]) -> None:
    for term in terms:
        if term.value is not None and compared.value is not None and term.value.kind is not compared.value.kind:
            problem = (
                f"{term.text!r} has {term.value.kind.value} and {compared.text!r} {compared.value.kind.value}: "
                "a label can be compared by one kind of value alone"
            )
            raise _REQUIREMENT.error(problem, term.text)


def _check_range(ordered: list[Term], refused: Mapping[Value | None, Term]) -> None:
    """Refuse a range without any value in it."""
    lower = [term for term in ordered if term.operator in {Operator.AT_LEAST, Operator.ABOVE}]
    upper = [term for term in ordered if term.operator in {Operator.AT_MOST, Operator.BELOW}]
    for low in lower:
        for high in upper:
            if low.value is None or high.value is None or low.value < high.value:
                continue
            if not (low.accepts(high.value) and high.accepts(low.value)):
                raise _contradiction(low, high)
            if low.value in refused:
                raise _contradiction(low, refused[low.value])


def _contradiction(one: Term, other: Term) -> ValidationError:
    return _REQUIREMENT.error(
        f"{one.text!r} and {other.text!r} exclude each other: no agent can satisfy both", one.text
    )


GENERAL: Final = Requirement.parse("general")
