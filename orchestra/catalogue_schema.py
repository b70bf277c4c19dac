"""A task's arguments as the catalogue describes them, for senders that don't have its code."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import Any, Final
from uuid import UUID

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError as SchemaMismatch
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python
from referencing import Registry

from orchestra.exceptions import FieldError, ValidationError
from orchestra.parameters import Parameter, ParameterKind, Parameters, field_error, shown
from orchestra.utils import MASK

__all__ = ["CatalogueSchema"]


@dataclass(frozen=True, slots=True)
class CatalogueSchema:
    """The parameters of a task, and the JSON schemas that their arguments are held against."""

    parameters: Parameters

    @classmethod
    def from_catalogue(cls, entry: Mapping[str, Any]) -> "CatalogueSchema":
        """
        Read what `ArgumentSchema.to_catalogue` wrote.

        Raises:
            ValidationError: it is something else.

        """
        try:
            return cls(Parameters(tuple(_parameter(one) for one in entry["parameters"])))
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            message = (
                "The catalogue's description of the task's arguments can't be read; was it written by another version?"
            )
            raise ValidationError(message) from exc

    def check(
        self,
        task_name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        verdict: str = "was not submitted",
    ) -> None:
        """
        Check the arguments of a call, as `ArgumentSchema.check` does.

        What JSON schema can't express, such as a model's own validators, the agent checks.

        Raises:
            ValidationError: `<task_name> <verdict>: ` and every field that is wrong, missing, unknown or given twice.

        """
        self.parameters.check(task_name, args, kwargs, verdict=verdict)


def _parameter(entry: Mapping[str, Any]) -> Parameter:
    schema = dict(entry["schema"])
    check = _Schema(schema, secret=bool(entry.get("secret"))).errors if schema else None
    plain = not schema.keys() - {"type", "format", "title"} and not isinstance(schema.get("type"), list)
    exact = _EXACT.get((schema.get("type"), schema.get("format"))) if plain else None
    return Parameter(str(entry["name"]), ParameterKind(entry["kind"]), bool(entry["required"]), check, exact)


_EXACT: Final[Mapping[tuple[str | None, str | None], type]] = {
    ("string", None): str,
    ("integer", None): int,
    ("number", None): float,
    ("boolean", None): bool,
    ("string", "binary"): bytes,
    ("string", "date-time"): datetime,
    ("string", "date"): date,
    ("string", "time"): time,
    ("string", "uuid"): UUID,
}
_MARKED: Final = (datetime, date, time, UUID, Decimal, bytes)  # they travel marked, and arrive as what they are
_FORMATS: Final[Mapping[str, Any]] = {
    "date-time": datetime,
    "date": date,
    "time": time,
    "duration": timedelta,
    "uuid": UUID,
}


@dataclass(frozen=True)
class _Schema:
    """One JSON schema, made ready when it is first needed."""

    schema: Mapping[str, Any]
    secret: bool

    def errors(self, name: str, value: Any) -> list[FieldError]:  # any argument
        """List what is wrong with `value`."""
        hidden = MASK if self.secret else None
        try:
            form = to_jsonable_python(value, round_trip=True, bytes_mode="base64", fallback=_unknown)
            mismatches = list(self._validator.iter_errors(form))
        except (ValueError, RecursionError):
            return [field_error(name, "Input can't be written as JSON", hidden or shown(value))]
        if not mismatches and isinstance(value, _MARKED) and self.schema.get("type") == "string":
            wanted = self.schema.get("format")
            return [] if wanted else [field_error(name, "Input should be a valid string", hidden or shown(value))]
        found: dict[str, tuple[list[str], str]] = {}
        for path, message, given in (leaf for mismatch in mismatches for leaf in _leaves(mismatch)):
            place = name + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
            messages, _ = found.setdefault(place, ([], "" if given is _NOTHING else hidden or shown(given)))
            if message not in messages:
                messages.append(message)
        return [field_error(place, ", or ".join(messages), given) for place, (messages, given) in found.items()]

    @cached_property
    def _validator(self) -> Validator:
        # An empty registry: a schema from Redis must not make a sender fetch what it refers to.
        return _strict()(dict(self.schema), format_checker=_formats(), registry=Registry())


def _unknown(value: object) -> object:
    """Stand for an object of a foreign kind."""
    return {"unknown": type(value).__name__}


@lru_cache(maxsize=1)
def _strict() -> Callable[..., Validator]:
    """Return a validator that agrees with pydantic's strict reading: 1.0 is no integer, and a set comes as any list."""
    checker = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    strict: Callable[..., Validator] = extend(  # type: ignore[no-untyped-call]  # its stubs are partial
        Draft202012Validator, {"uniqueItems": lambda *_: ()}, type_checker=checker
    )
    return strict


@lru_cache(maxsize=1)
def _formats() -> FormatChecker:
    checker = FormatChecker(formats=())
    for name, kind in _FORMATS.items():
        checker.checks(name, raises=ValueError)(_reader(TypeAdapter(kind)))
    return checker


def _reader(adapter: TypeAdapter[Any]) -> Callable[[object], bool]:
    def reads(value: object) -> bool:
        return not isinstance(value, str) or bool(adapter.validate_strings(value, strict=True) is not None)

    return reads


_NOTHING: Final = object()
_Leaf = tuple[tuple[str | int, ...], str, Any]


def _leaves(mismatch: SchemaMismatch) -> Iterator[_Leaf]:
    """Yield path, message and value of each thing that is wrong; of a union, what its members say."""
    path = tuple(mismatch.absolute_path)
    given: Any = mismatch.instance
    wanted: Any = mismatch.validator_value
    match mismatch.validator:
        case "anyOf" | "oneOf" if mismatch.context:
            inner = [leaf for one in mismatch.context for leaf in _leaves(one)]
            telling = [leaf for leaf in inner if leaf[1] != _TYPES["null"]]
            yield from telling or inner
        case "required":
            yield from (((*path, name), "Field required", _NOTHING) for name in wanted if name not in given)
        case "additionalProperties" if wanted is False and isinstance(mismatch.schema, Mapping):
            unknown = given.keys() - mismatch.schema.get("properties", {}).keys()
            yield from (((*path, name), "Unexpected field", _NOTHING) for name in sorted(unknown))
        case _:
            yield path, _message(str(mismatch.validator), wanted), given


_TYPES: Final[Mapping[str, str]] = {
    "string": "Input should be a valid string",
    "integer": "Input should be a valid integer",
    "number": "Input should be a valid number",
    "boolean": "Input should be a valid boolean",
    "array": "Input should be a valid list",
    "object": "Input should be a valid dictionary",
    "null": "Input should be None",
}
_MESSAGES: Final[Mapping[str, str]] = {
    "const": "Input should be {!r}",
    "minimum": "Input should be greater than or equal to {}",
    "exclusiveMinimum": "Input should be greater than {}",
    "maximum": "Input should be less than or equal to {}",
    "exclusiveMaximum": "Input should be less than {}",
    "multipleOf": "Input should be a multiple of {}",
    "minLength": "String should have at least {} characters",
    "maxLength": "String should have at most {} characters",
    "minItems": "List should have at least {} items",
    "maxItems": "List should have at most {} items",
    "pattern": "String should match pattern '{}'",
    "format": "Input should be a valid {}",
}


def _message(validator: str, wanted: Any) -> str:  # JSON
    """Say what a schema asks for; jsonschema's own texts hold the value, which may be secret or huge."""
    match validator, wanted:
        case "type", str():
            return _TYPES.get(wanted, f"Input should be of type {wanted}")
        case "enum", list():
            return f"Input should be {', '.join(map(repr, wanted[:-1]))}{' or ' if wanted[1:] else ''}{wanted[-1]!r}"
        case _:
            return _MESSAGES.get(validator, "Input should fit the task's schema").format(wanted)
