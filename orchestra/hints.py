"""What type hints say: read from a callable, and made such that values from JSON can be held against them."""

import collections.abc
import functools
import inspect
import operator
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import typing_extensions

__all__ = ["checkable", "is_plain", "read_hints"]


def read_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the hints of a callable by parameter name; one that can't be resolved is Any."""
    target = inspect.unwrap(function)
    if not inspect.isroutine(target) and not inspect.isclass(target):
        target = getattr(target, "func", None) or type(target).__call__  # a partial, or an object that can be called
    try:
        return typing.get_type_hints(target, include_extras=True)
    except Exception:  # noqa: BLE001  # a hint is any expression; one that fails must not take the others with it
        names = vars(sys.modules.get(target.__module__, types)) if hasattr(target, "__module__") else {}
        return {name: _resolved(hint, names) for name, hint in getattr(target, "__annotations__", {}).items()}


def _resolved(hint: Any, names: Mapping[str, Any]) -> Any:  # a hint is any object
    holder = type("Holder", (), {"__annotations__": {"hint": hint}})
    try:
        return typing.get_type_hints(holder, globalns=dict(names), include_extras=True)["hint"]
    except Exception:  # noqa: BLE001  # as above
        return Any


_PLAIN: Final = frozenset({str, int, float, bool, type(None), None, Any, object})
_LISTS: Final = frozenset({list, collections.abc.Sequence, collections.abc.MutableSequence})
_OBJECTS: Final = frozenset({dict, collections.abc.Mapping, collections.abc.MutableMapping})
_ANY_ITEMS: Final = frozenset(
    {collections.abc.Iterable, collections.abc.Collection, collections.abc.Iterator, collections.abc.Container}
)
_UNIONS: Final = frozenset({Union, types.UnionType})
_WRAPPERS: Final = frozenset({typing_extensions.Required, typing_extensions.NotRequired})
_TUPLES_AND_SETS: Final = frozenset({tuple, set, frozenset})
_NOT_PLAIN: Final = bytes  # stands for any hint whose values JSON doesn't have


def is_plain(hint: Any, _inside: tuple[Any, ...] = ()) -> bool:
    """Tell whether what JSON gives for `hint` already is what the hint means, so that nothing is to be converted."""
    if hint is _NOT_PLAIN:
        return False
    if any(hint is seen for seen in _inside):
        return True
    if any(_is_among(hint, kinds) for kinds in (_PLAIN, _LISTS, _OBJECTS)):
        return True
    return all(is_plain(one, (*_inside, hint)) for one in _parts(hint))


def _parts(hint: Any) -> Iterable[Any]:
    """Return the hints that `hint` is made of, if it's plain when they are; one that isn't plain for any other."""
    origin, args = get_origin(hint), get_args(hint)
    if typing_extensions.is_typeddict(hint):
        return list(typing_extensions.get_type_hints(hint, include_extras=True).values())
    if origin is Annotated:
        return [args[0], *(_NOT_PLAIN for one in args[1:] if _converts(one))]
    if origin is Literal:
        return [type(one) for one in args]
    if origin in _UNIONS | _LISTS | _WRAPPERS or (origin in _OBJECTS and args[0] in {str, Any}):
        return args
    return [_NOT_PLAIN]


def _is_among(hint: Any, kinds: frozenset[Any]) -> bool:  # a hint is any object, hashable or not
    return any(hint is kind for kind in kinds)


def _converts(annotation: object) -> bool:
    """Whether an item of Annotated may change the value: pydantic's functional validators may, constraints don't."""
    return hasattr(annotation, "__get_pydantic_core_schema__") or hasattr(annotation, "func")


def checkable(hint: Any) -> Any:  # a hint is any object
    """
    Return a hint of the same meaning that pydantic can check in full against JSON.

    `Iterable[T]` and its like become `list[T]`, the one of them that JSON has. Before Python 3.12, pydantic
    doesn't read the standard library's TypedDict, so it is written anew as that of typing_extensions.
    """
    origin, args = get_origin(hint), get_args(hint)
    if sys.version_info < (3, 12) and typing_extensions.is_typeddict(hint):
        return _typed_dict(hint)
    if _is_among(hint, _ANY_ITEMS):
        return list
    if origin is Annotated:
        return Annotated[(checkable(args[0]), *args[1:])]
    inner = tuple(one if one is ... else checkable(one) for one in args)
    if origin in _UNIONS:
        return functools.reduce(operator.or_, inner)
    if origin in _ANY_ITEMS:
        return list[inner]  # type: ignore[valid-type]  # a hint that is made at run time
    return origin[inner] if origin in _LISTS | _OBJECTS | _TUPLES_AND_SETS else hint


def _typed_dict(hint: Any) -> Any:  # a class that typing makes
    if type(hint).__module__ != "typing":
        return hint
    made = _TYPED_DICTS.get(hint)
    if made is not None:
        return made
    kept = typing_extensions.get_type_hints(hint, include_extras=True)
    _TYPED_DICTS[hint] = Any  # where it holds itself; inner levels then go unchecked
    fields = {name: _field(inner, required=name in hint.__required_keys__) for name, inner in kept.items()}
    _TYPED_DICTS[hint] = made = typing_extensions.TypedDict(hint.__name__, fields)  # type: ignore[operator]  # as above
    return made


def _field(hint: Any, *, required: bool) -> Any:
    """Return the hint of one key, marked; its own mark wins, since the class can't see one in a hint that is a text."""
    origin = get_origin(hint)
    if origin in _WRAPPERS:
        return origin[checkable(get_args(hint)[0])]
    return (typing_extensions.Required if required else typing_extensions.NotRequired)[checkable(hint)]


_TYPED_DICTS: Final[dict[Any, Any]] = {}
