"""How a task's arguments look to a reader: the catalogue's JSON schemas, written as Python writes a signature."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from orchestra.parameters import ParameterKind

__all__ = ["signature_of"]

_ANYTHING: Final = "*args, **kwargs"
_NAMES: Final[Mapping[str, str]] = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "null": "None",
    "array": "list",
    "object": "dict",
}
_FORMATS: Final[Mapping[str, str]] = {
    "date-time": "datetime",
    "date": "date",
    "time": "time",
    "duration": "timedelta",
    "uuid": "UUID",
    "binary": "bytes",
    "path": "Path",
}
_STARS: Final[Mapping[str, str]] = {ParameterKind.VAR_POSITIONAL: "*", ParameterKind.VAR_KEYWORD: "**"}


def signature_of(arguments: Mapping[str, Any] | None) -> str:
    """
    Return the arguments as in `text: str, limit: int = …`, where `…` stands for a default.

    `arguments` is what `ArgumentSchema.to_catalogue` wrote; None, and what can't be read, stands for anything.

    >>> limit = {"name": "limit", "kind": "keyword_only", "required": False, "schema": {"type": "integer"}}
    >>> signature_of({"parameters": [limit]})
    '*, limit: int = …'
    """
    if arguments is None:
        return _ANYTHING
    try:
        return ", ".join(_words(arguments["parameters"]))
    except (KeyError, TypeError, AttributeError):  # written by another version
        return _ANYTHING


def _words(parameters: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write each parameter, with the marks that part positional, ordinary and keyword ones."""
    words: list[str] = []
    kinds = [str(one["kind"]) for one in parameters]
    for place, (one, kind) in enumerate(zip(parameters, kinds, strict=True)):
        if kind == ParameterKind.KEYWORD_ONLY and not {kind, ParameterKind.VAR_POSITIONAL} & {*kinds[:place]}:
            words.append("*")
        words.append(_parameter(one, _STARS.get(kind, "")))
        if kind == ParameterKind.POSITIONAL_ONLY and kind not in kinds[place + 1 :]:
            words.append("/")
    return words


def _parameter(one: Mapping[str, Any], stars: str) -> str:
    kind = _type(one["schema"])
    default = "" if one["required"] or stars else " = …" if kind else "=…"
    return f"{stars}{one['name']}{f': {kind}' if kind else ''}{default}"


def _type(schema: Any) -> str:  # JSON
    """Return a schema's type in Python's words; empty where anything goes."""
    name = ""
    match schema:
        case {"$ref": str(reference)}:
            name = reference.rpartition("/")[2]
        case {"anyOf": list(members)} | {"oneOf": list(members)}:
            name = " | ".join(dict.fromkeys(_type(member) or "Any" for member in members))
        case {"enum": list(values)}:
            name = " | ".join(map(repr, values))
        case {"const": value}:
            name = repr(value)
        case {"type": "array"}:
            name = _array(schema)
        case {"type": "object", "additionalProperties": dict(values)}:
            name = f"dict[str, {_type(values) or 'Any'}]"
        case {"type": "object", "title": str(title)}:
            name = title
        case {"type": "string", "format": str(form)} if form in _FORMATS:
            name = _FORMATS[form]
        case {"type": str(kind)}:
            name = _NAMES.get(kind, kind)
    return name


def _array(schema: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"tuple[{', '.join(_type(item) or 'Any' for item in schema['prefixItems'])}]"
    kind = "set" if schema.get("uniqueItems") else "list"
    items = _type(schema.get("items"))
    return f"{kind}[{items}]" if items else kind
