"""A task's message as Celery makes it, with holes where calls differ: filled in, it's what Celery would have made."""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from celery.utils.saferepr import saferepr
from kombu import serialization
from kombu.utils.encoding import str_to_bytes
from kombu.utils.json import dumps

__all__ = ["Holes", "Template", "are_flat", "template_of"]

_HOLES: Final = ("id", "root", "parent", "reply_to", "args", "kwargs", "tag", "body")
_EMPTY: Final = ("eta", "expires", "group", "group_index", "shadow", "stamped_headers", "stamps", "compression")
_NOTHING_FOLLOWS: Final = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
_FLAT: Final = frozenset({str, int, float, bool, type(None)})

_quoted = json.JSONEncoder().encode


@dataclass(frozen=True, slots=True)
class Holes:
    """What one call fills into a template."""

    task_id: str
    root_id: str
    parent_id: str | None
    reply_to: str
    tag: str


@dataclass(frozen=True, slots=True)
class Template:
    """
    A message with holes.

    `text` is its JSON, to be filled in by `%`. `most` and `levels` are Celery's bounds of how arguments are shown.
    """

    text: str
    most_args: int
    most_kwargs: int
    levels: int

    def filled(self, args: Sequence[Any], kwargs: Mapping[str, Any], holes: Holes, *, is_flat: bool) -> str:
        """
        Return the message of one call, as JSON; `is_flat` is what `are_flat` says of its arguments.

        Raises:
            EncodeError: an argument isn't what JSON or kombu knows.

        """
        body = serialization.dumps((args, kwargs, _NOTHING_FOLLOWS), "json")[2]
        task_id = _quoted(holes.task_id)
        return self.text % {
            "id": task_id,
            "root": task_id if holes.root_id == holes.task_id else _quoted(holes.root_id),
            "parent": _quoted(holes.parent_id),
            "reply_to": _quoted(holes.reply_to),
            "args": _quoted(self._shown_args(args, is_flat=is_flat)),
            "kwargs": _quoted(self._shown_kwargs(kwargs, is_flat=is_flat)),
            "tag": f'"{holes.tag}"',
            "body": f'"{b64encode(str_to_bytes(body)).decode()}"',
        }

    def _shown_args(self, args: Sequence[Any], *, is_flat: bool) -> str:
        if is_flat:
            ends = "[]" if isinstance(args, list) else "()" if len(args) != 1 else ("(", ",)")
            shown = f"{ends[0]}{', '.join([_shown(value) for value in args])}{ends[1]}"
            if len(shown) < self.most_args:
                return shown
        return saferepr(args, self.most_args, maxlevels=self.levels)

    def _shown_kwargs(self, kwargs: Mapping[str, Any], *, is_flat: bool) -> str:
        if is_flat:
            shown = ", ".join([f"{_shown(name)}: {_shown(value)}" for name, value in kwargs.items()])
            if len(shown) < self.most_kwargs - 1:
                return f"{{{shown}}}"
        return saferepr(kwargs, self.most_kwargs, maxlevels=self.levels)


def are_flat(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether arguments are single values, in which no signature hides and which are shown as they are."""
    return (
        _FLAT.issuperset(map(type, args))
        and _FLAT.issuperset(map(type, kwargs.values()))
        and {str}.issuperset(map(type, kwargs))
    )


def _shown(value: str | float | None) -> str:
    """Return a single value as Celery's saferepr has it, which differs from repr in quoting alone."""
    return "'" + value.replace("'", "\\'") + "'" if type(value) is str else str(value)


def template_of(message: Mapping[str, Any], *, most_args: int, most_kwargs: int, levels: int) -> Template | None:
    """
    Cut a template out of a complete message without arguments; None where it has something of its own call.

    Such as a time, or a body that is written otherwise than as kombu's JSON.
    """
    headers, properties = message["headers"], message["properties"]
    if (
        any(headers.get(name) for name in _EMPTY)
        or (message["content-type"], message["content-encoding"]) != ("application/json", "utf-8")
        or (properties["body_encoding"], properties["correlation_id"]) != ("base64", headers["id"])
        or "expiration" in properties
    ):
        return None
    cut = {
        **message,
        "body": _hole("body"),
        "headers": {
            **headers,
            "id": _hole("id"),
            "root_id": _hole("root"),
            "parent_id": _hole("parent"),
            "argsrepr": _hole("args"),
            "kwargsrepr": _hole("kwargs"),
        },
        "properties": {
            **properties,
            "correlation_id": _hole("id"),
            "reply_to": _hole("reply_to"),
            "delivery_tag": _hole("tag"),
        },
    }
    text = dumps(cut).replace("%", "%%")
    for name in _HOLES:
        text = text.replace(_quoted(_hole(name)), f"%({name})s")
    return Template(text, most_args, most_kwargs, levels)


def _hole(name: str) -> str:
    return f"\0{name}\0"  # no name of a task or a queue holds a NUL
