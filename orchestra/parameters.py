"""The parameters of a task, and what a call gives to each of them."""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

from orchestra.exceptions import FieldError, ValidationError
from orchestra.utils import MASK, is_secret_name, mask_fields, mask_text, shorten

__all__ = ["Parameter", "ParameterKind", "Parameters", "field_error", "shown"]

_LONGEST_SHOWN: Final = 60
_MOST_IN_MESSAGE: Final = 20


class ParameterKind(StrEnum):
    """How a parameter takes its argument."""

    POSITIONAL_ONLY = "positional_only"
    POSITIONAL_OR_KEYWORD = "positional_or_keyword"
    VAR_POSITIONAL = "var_positional"
    KEYWORD_ONLY = "keyword_only"
    VAR_KEYWORD = "var_keyword"


@dataclass(frozen=True, slots=True)
class Parameter:
    """
    One parameter.

    `check` lists what is wrong with a value for it, given the name to call it by; None where anything goes. A value
    whose type is exactly `exact` needs no check.
    """

    name: str
    kind: ParameterKind
    required: bool = True
    check: Callable[[str, Any], list[FieldError]] | None = field(default=None, compare=False)
    exact: type | None = None


@dataclass(frozen=True)
class Parameters:
    """All parameters of a task, in their order."""

    items: tuple[Parameter, ...]

    @cached_property
    def _by_position(self) -> tuple[Parameter, ...]:
        kinds = {ParameterKind.POSITIONAL_ONLY, ParameterKind.POSITIONAL_OR_KEYWORD}
        return tuple(one for one in self.items if one.kind in kinds)

    @cached_property
    def _by_name(self) -> dict[str, Parameter]:
        kinds = {ParameterKind.KEYWORD_ONLY, ParameterKind.POSITIONAL_OR_KEYWORD}
        return {one.name: one for one in self.items if one.kind in kinds}

    @cached_property
    def _rest_by_position(self) -> Parameter | None:
        return next((one for one in self.items if one.kind is ParameterKind.VAR_POSITIONAL), None)

    @cached_property
    def _rest_by_name(self) -> Parameter | None:
        return next((one for one in self.items if one.kind is ParameterKind.VAR_KEYWORD), None)

    @cached_property
    def _required(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.items if one.required)

    def positional(self, args: Sequence[Any]) -> Iterator[tuple[Parameter | None, Any]]:
        """Yield the parameter of each positional argument, None for one too many, with its value."""
        for place, value in enumerate(args):
            known = place < len(self._by_position)
            yield (self._by_position[place] if known else self._rest_by_position), value

    def by_name(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        """Return a call's arguments by name, as far as they have one, and the rest in their order."""
        known = {one.name: value for one, value in zip(self._by_position, args, strict=False)}
        return {**known, **kwargs}, list(args[len(known) :])

    def named(self, name: str) -> Parameter | None:
        """Return the parameter that takes a keyword argument; None when there is none."""
        return self._by_name.get(name, self._rest_by_name)

    def check(self, task_name: str, args: Sequence[Any], kwargs: Mapping[str, Any], *, verdict: str) -> None:
        """
        Check a call, to its last field.

        Raises:
            ValidationError: `<task_name> <verdict>: ` and every field that isn't right.

        """
        errors: list[FieldError] = []
        for place, (parameter, value) in enumerate(self.positional(args)):
            if parameter is None:
                errors.append(FieldError(f"args[{place}]", "Unexpected positional argument", ""))
            elif type(value) is not parameter.exact and parameter.check is not None:
                rest = parameter.kind is ParameterKind.VAR_POSITIONAL
                name = f"{parameter.name}[{place - len(self._by_position)}]" if rest else parameter.name
                errors += parameter.check(name, value)
        given = {one.name for one in self._by_position[: len(args)]}
        for name, value in kwargs.items():
            parameter = self.named(name)
            if parameter is None:
                errors.append(FieldError(shorten(str(name), 120), self._unexpected(name), ""))
            elif name in given and name in self._by_name:
                errors.append(FieldError(name, "Given twice, by position and by name", ""))
            elif type(value) is not parameter.exact and parameter.check is not None:
                errors += parameter.check(name, value)
        by_name = kwargs.keys() & self._by_name.keys()
        missing = [name for name in self._required if name not in given and name not in by_name]
        errors += [FieldError(name, "Missing required argument", "") for name in missing]
        if errors:
            raise _refused(task_name, verdict, errors)

    def _unexpected(self, name: object) -> str:
        only = any(one.name == name for one in self._by_position)
        return "Can be given by position alone" if only else "Unexpected keyword argument"


def _refused(task_name: str, verdict: str, errors: list[FieldError]) -> ValidationError:
    lines = [
        f"{error.field}: {error.message}" + (f" (got {error.given})" if error.given else "")
        for error in errors[:_MOST_IN_MESSAGE]
    ]
    if len(errors) > _MOST_IN_MESSAGE:
        lines.append(f"and {len(errors) - _MOST_IN_MESSAGE} more")
    return ValidationError(f"{task_name} {verdict}: {'; '.join(lines)}", errors=errors)


def field_error(path: str, message: str, given: str) -> FieldError:
    """Make a FieldError whose texts hold no secrets; the value isn't shown where the path names one."""
    secret = given and is_secret_name(path)
    return FieldError(shorten(path, 200), shorten(mask_text(message), 300), MASK if secret else given)


_BRIEF: Final = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 4 * _LONGEST_SHOWN  # long enough for a password to be seen whole
_BRIEF.maxdict = _BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxset = 8


def shown(value: object) -> str:
    """Return a value as errors show it: its repr in at most 60 characters, without what looks like a secret."""
    plain = mask_fields({str(key): item for key, item in value.items()}) if isinstance(value, Mapping) else value
    return shorten(mask_text(_BRIEF.repr(plain)), _LONGEST_SHOWN)
