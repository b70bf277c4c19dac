"""What a task's type hints ask of its arguments: checked where it is submitted, brought to life where it runs."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import pydantic
from pydantic import TypeAdapter
from pydantic_core import PydanticOmit, from_json, to_json

from orchestra.catalogue_schema import CatalogueSchema
from orchestra.exceptions import FieldError, ValidationError
from orchestra.hints import checkable, is_plain, read_hints
from orchestra.parameters import Parameter, ParameterKind, Parameters, field_error, shown
from orchestra.utils import MASK

__all__ = ["ArgumentSchema", "CatalogueSchema"]

_EXACT: Final = frozenset({str, int, float, bool, bytes, datetime, date, time, UUID, Decimal})
_MARKED: Final = (datetime, date, time, UUID, Decimal, bytes)  # they travel marked, and arrive as what they are


@dataclass(frozen=True, slots=True)
class ArgumentSchema:
    """The parameters of a task's code, and the type hints that their arguments are held against."""

    parameters: Parameters
    hints: Mapping[str, "_Hint"]

    @classmethod
    def from_callable(cls, function: Callable[..., Any], *, bound: bool = False) -> "ArgumentSchema":
        """
        Read the parameters and hints of `function`; with `bound`, its first parameter is the task itself.

        Parameters without a hint, and hints that pydantic can't check, accept anything. So does a callable whose
        parameters can't be read, such as some that are written in C.
        """
        try:
            parameters = list(inspect.signature(function).parameters.values())[bound:]
        except (TypeError, ValueError):
            parameters = [inspect.Parameter(name, kind) for name, kind in _ANYTHING]
        annotations = read_hints(function)
        hints = {one.name: _hint(annotations.get(one.name, Any), optional=one.default is None) for one in parameters}
        known = {name: hint for name, hint in hints.items() if hint is not None}
        return cls(Parameters(tuple(_parameter(one, known.get(one.name)) for one in parameters)), known)

    @staticmethod
    def from_catalogue(entry: Mapping[str, Any]) -> CatalogueSchema:
        """
        Read what `to_catalogue` wrote, for a sender that doesn't have the task's code.

        Raises:
            ValidationError: it is something else.

        """
        return CatalogueSchema.from_catalogue(entry)

    def to_catalogue(self) -> dict[str, Any]:
        """
        Return the schema as JSON.

        Its `parameters` are in order, each with `name`, `kind`, `required`, the JSON `schema` of its values (empty
        where anything goes) and whether they are `secret`.
        """
        return {"parameters": [self._entry(parameter) for parameter in self.parameters.items]}

    def _entry(self, parameter: Parameter) -> dict[str, Any]:
        hint = self.hints.get(parameter.name)
        return {
            "name": parameter.name,
            "kind": parameter.kind.value,
            "required": parameter.required,
            "schema": {} if hint is None else dict(hint.schema),
            "secret": hint is not None and hint.secret,
        }

    @property
    def revives(self) -> bool:
        """Whether `revive` has anything to do."""
        return any(hint.revives for hint in self.hints.values())

    def check(
        self,
        task_name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        verdict: str = "was not submitted",
    ) -> None:
        """
        Check the arguments of a call: each is right when its JSON form is valid for its hint.

        So a list is a fine tuple, 1 a fine float, a dictionary or an instance a fine model, and "5" is no int.

        Raises:
            ValidationError: `<task_name> <verdict>: ` and every field that is wrong, missing, unknown or given twice.

        """
        self.parameters.check(task_name, args, kwargs, verdict=verdict)

    def revive(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """
        Turn arguments from their JSON form into what the hints say: models, dataclasses, enums, tuples, datetimes.

        Arguments that `check` refuses raise a ValidationError here too.
        """
        if not self.revives:
            return tuple(args), dict(kwargs)
        by_position = tuple(self._revived(one, value) for one, value in self.parameters.positional(args))
        return by_position, {name: self._revived(self.parameters.named(name), value) for name, value in kwargs.items()}

    def _revived(self, parameter: Parameter | None, value: Any) -> Any:  # any argument
        hint = None if parameter is None else self.hints.get(parameter.name)
        if parameter is None or hint is None or not hint.revives or type(value) is parameter.exact:
            return value
        try:
            return hint.value(value)
        except ValueError:
            errors = hint.errors(parameter.name, value)
            message = "; ".join(f"{error.field}: {error.message}" for error in errors)
            raise ValidationError(message, errors=errors) from None


_ANYTHING: Final = (("args", inspect.Parameter.VAR_POSITIONAL), ("kwargs", inspect.Parameter.VAR_KEYWORD))


def _parameter(parameter: inspect.Parameter, hint: "_Hint | None") -> Parameter:
    kind = ParameterKind(parameter.kind.name.lower())
    rest = kind in {ParameterKind.VAR_POSITIONAL, ParameterKind.VAR_KEYWORD}
    return Parameter(
        parameter.name,
        kind,
        required=not rest and parameter.default is inspect.Parameter.empty,
        check=None if hint is None else hint.errors,
        exact=None if hint is None else hint.exact,
    )


@dataclass(frozen=True, slots=True)
class _Hint:
    """One type hint, ready to be held against values."""

    adapter: TypeAdapter[Any]
    exact: type | None  # a value of exactly this type needs no look
    schema: Mapping[str, Any]  # JSON schema; empty where there is none
    secret: bool
    revives: bool

    def errors(self, name: str, value: Any) -> list[FieldError]:  # any argument
        """List what is wrong with `value`: it is right when its JSON form is valid for the hint."""
        try:
            self.value(value)
        except pydantic.ValidationError as exc:
            return self._fields(name, value, exc)
        except ValueError as exc:
            return [field_error(name, str(exc), "" if self.secret else shown(value))]
        return []

    def value(self, value: Any) -> Any:  # any argument
        """Return `value` as the hint has it; raise a ValueError where it isn't right."""
        form = _json(value)
        if form is None:
            return self.adapter.validate_python(value, strict=True)
        made = self.adapter.validator.validate_json(form, strict=True)
        if isinstance(made, str) and isinstance(value, _MARKED):
            raise ValueError("Input should be a valid string")  # noqa: TRY004  # as pydantic's errors are
        return made

    def _fields(self, name: str, value: Any, error: pydantic.ValidationError) -> list[FieldError]:
        """Return one entry a field; what the members of a union say about the same field is joined."""
        data = from_json(_json(value) or b"null")
        found: dict[str, tuple[list[str], str]] = {}
        for entry in error.errors(include_url=False, include_context=False):
            missing = entry["type"] == "missing"
            path = _path(name, entry["loc"], data, missing=missing)
            given = "" if missing else MASK if self.secret else shown(value if path == name else entry["input"])
            messages, _ = found.setdefault(path, ([], given))
            if entry["msg"] not in messages:
                messages.append(entry["msg"])
        return [field_error(path, ", or ".join(messages), given) for path, (messages, given) in found.items()]


def _hint(annotation: Any, *, optional: bool) -> _Hint | None:  # a hint is any object
    """Make a hint ready, to take None as well if it's `optional`; None where anything goes or pydantic can't tell."""
    if annotation is Any or annotation is object:
        return None
    try:
        wanted = checkable(annotation) | None if optional else checkable(annotation)
        adapter: TypeAdapter[Any] = TypeAdapter(wanted)
    except Exception:  # noqa: BLE001  # a hint is any object, and its own hooks for pydantic may raise anything
        return None
    schema = _json_schema(adapter)
    return _Hint(
        adapter=adapter,
        exact=annotation if isinstance(annotation, type) and annotation in _EXACT else None,
        schema=schema or {},
        secret=_holds_secret(adapter.core_schema),
        revives=not is_plain(wanted),
    )


def _holds_secret(schema: object) -> bool:
    """Whether a secret type of pydantic's is anywhere in a core schema; its own functions serialize them all."""
    match schema:
        case Mapping():
            return any(_holds_secret(part) for part in schema.values())
        case list() | tuple():
            return any(_holds_secret(part) for part in schema)
        case _:
            name = getattr(schema, "__qualname__", "") if getattr(schema, "__module__", "") == "pydantic.types" else ""
            return "secret" in name.lower()


def _json_schema(adapter: TypeAdapter[Any]) -> dict[str, Any] | None:
    try:
        return adapter.json_schema()
    except (pydantic.PydanticUserError, PydanticOmit, TypeError, ValueError):  # such as a callable, or an odd default
        return None


def _json(value: object) -> bytes | None:
    """Return the JSON form of `value`; None where there is none, such as for bytes that aren't text."""
    try:
        return to_json(value, round_trip=True, fallback=_unknown)
    except ValueError as exc:
        if "Circular" in str(exc) or "depth" in str(exc):
            raise ValueError("Input contains itself, or is nested too deep") from None
        return None


def _unknown(value: object) -> object:
    """Stand for an object of a foreign kind: only a hint that takes any object takes this."""
    return {"unknown": type(value).__name__}


def _path(name: str, location: Sequence[int | str], data: Any, *, missing: bool) -> str:  # JSON
    """Write where a value stands, without the parts of `location` that name a union's members."""
    path = name
    for place, part in enumerate(location):
        if isinstance(data, dict) and part in data:
            data, path = data[part], f"{path}.{part}"
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data, path = data[part], f"{path}[{part}]"
        elif missing and place == len(location) - 1:
            path = f"{path}[{part}]" if isinstance(part, int) else f"{path}.{part}"
    return path
