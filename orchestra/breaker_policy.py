"""When a breaker opens, for how long, and which one a call belongs to."""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Final

from orchestra.exceptions import ConfigurationError, PermanentError, ValidationError

__all__ = ["Breaker", "BreakerKey", "OnOpen", "check_breaker"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_KEY: Final = re.compile(r"[^\s\x00-\x1f\x7f]{1,200}")
_LONGEST_SECONDS: Final = 86_400.0
_MOST: Final = 1_000_000
_BY_NAME: Final = frozenset({inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY})


class OnOpen(StrEnum):
    """What a task does whose breaker is open: wait for it, or fail at once."""

    WAIT = "wait"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Breaker:
    """
    When calls of a service that fails are held up, in the whole fleet.

    Args:
        name: what the breaker is called; tasks that name the same one share it. Letters, digits, '_', '.' and '-'.
        failures: how many calls have to fail within the window before it opens.
        ratio: which part of the calls has to fail as well, above 0 and up to 1: of the window's, or of those of its
            last tenth, two tenths and so on, so that a service that goes away is found out at once.
        window: the seconds that are looked back on, by tenths.
        cooldown: the seconds that it stays open before calls are tried.
        probes: how many calls are tried then, at most; when as many have succeeded it closes.
        key: parts the breaker: a function of those of the task's arguments that it names, such as
            `lambda url: urlsplit(url).netloc`. Each text that it returns has a breaker of its own, `name:text`.

    Raises:
        ValidationError: a value makes no sense; it tells what is allowed.

    """

    name: str
    failures: int = 5
    ratio: float = 0.5
    window: float = 30.0
    cooldown: float = 30.0
    probes: int = 1
    key: Callable[..., str] | None = None

    def __post_init__(self) -> None:
        if not _is_text(self.name, _NAME):
            allowed = "up to 100 letters, digits, '_', '.' and '-', the first one a letter or a digit"
            raise _senseless("name", self.name, allowed)
        for option in ("failures", "probes"):
            if not _is_whole(value := getattr(self, option)) or not 1 <= value <= _MOST:
                raise _senseless(option, value, "a whole number of at least 1")
        if not _is_number(self.ratio) or not 0 < self.ratio <= 1:
            raise _senseless("ratio", self.ratio, "a number above 0 and up to 1")
        for option in ("window", "cooldown"):
            if not _is_number(value := getattr(self, option)) or not 0 < value <= _LONGEST_SECONDS:
                raise _senseless(option, value, "a number of seconds, above 0 and up to 86400")
        if self.key is not None:
            _names_of(self.key)

    @classmethod
    def of(cls, declared: "str | Breaker") -> "Breaker":
        """Return what a task's `breaker=` stands for; a text names one with the usual values."""
        return declared if isinstance(declared, Breaker) else cls(declared)

    def to_catalogue(self) -> dict[str, Any]:  # JSON
        """Return the policy as the catalogue has it."""
        values = {option: getattr(self, option) for option in _PUBLISHED}
        return values if self.key is None else {**values, "keyed": True}


_PUBLISHED: Final = ("name", "failures", "ratio", "window", "cooldown", "probes")


def _is_text(value: object, form: re.Pattern[str]) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _senseless(option: str, value: object, allowed: str) -> ValidationError:
    return ValidationError(f"Breaker({option}={value!r}) makes no sense: give {allowed}.")


def _names_of(key: Callable[..., str]) -> frozenset[str]:
    """Return the arguments that a key is computed from, by name."""
    allowed = "a function that names the task's arguments it needs, such as lambda url: ..."
    try:
        parameters = inspect.signature(key).parameters.values()
    except (TypeError, ValueError):
        raise _senseless("key", key, allowed) from None
    if not parameters or any(parameter.kind not in _BY_NAME for parameter in parameters):
        raise _senseless("key", key, allowed)
    return frozenset(parameter.name for parameter in parameters)


class BreakerKey:
    """Finds out which breaker a call of one task belongs to."""

    def __init__(self, task_name: str, breaker: Breaker, function: Callable[..., Any]) -> None:
        self._task_name = task_name
        self._breaker = breaker
        self._signature = None if breaker.key is None else inspect.signature(function)

    def name(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """
        Return the name of the breaker for a call with these arguments.

        Raises:
            PermanentError: the key can't be computed from them, or is no text to name a breaker by.

        """
        breaker = self._breaker
        if breaker.key is None or self._signature is None:
            return breaker.name
        try:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = {name: value for name, value in _flat(bound).items() if name in _names_of(breaker.key)}
            key = breaker.key(**given)
        except Exception as error:
            message = f"{self._task_name} can't run: the key of its breaker {breaker.name} raised {error!r}."
            raise PermanentError(message) from error
        if not _is_text(key, _KEY):
            message = (
                f"{self._task_name} can't run: the key of its breaker {breaker.name} is {repr(key)[:60]}; a text of "
                "up to 200 characters without white space is needed."
            )
            raise PermanentError(message)
        return f"{breaker.name}:{key}"


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Return a call's arguments by name, those that the task takes as `**kwargs` among them."""
    flat = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            flat |= flat.pop(name, {})
    return flat


def check_breaker(
    task_name: str, options: Mapping[str, Any], function: Callable[..., Any] | None = None, *, bound: bool = False
) -> None:
    """
    Refuse what a task declares of its breaker wrongly, naming task, option and what is allowed.

    `function` is the task's code, where it's known; the first argument of a `bound` one is the task itself.

    Raises:
        ConfigurationError: an option's value makes no sense.

    """
    declared, on_open = options.get("breaker"), options.get("on_open")
    if on_open is not None and on_open not in set(OnOpen):
        raise ConfigurationError(f"Task {task_name}: on_open={on_open!r}; 'wait' or 'fail' is allowed.")
    if declared is None:
        if on_open is not None:
            raise ConfigurationError(f"Task {task_name} declares on_open and no breaker: name one with breaker=.")
        return
    if not isinstance(declared, (str, Breaker)):
        raise ConfigurationError(f"Task {task_name}: breaker={declared!r}; a name or an orchestra.Breaker is allowed.")
    try:
        breaker = Breaker.of(declared)
    except ValidationError as error:
        raise ConfigurationError(f"Task {task_name}: breaker={declared!r}: {error}") from error
    if breaker.key is not None and function is not None:
        _check_key(task_name, breaker, function, bound=bound)


def _check_key(task_name: str, breaker: Breaker, function: Callable[..., Any], *, bound: bool) -> None:
    parameters = list(inspect.signature(function).parameters.values())[1 if bound else 0 :]
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for name in sorted(_names_of(breaker.key) - set(known) if breaker.key else ()):
        nearest = get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"it has {', '.join(known) or 'none'}."
        message = f"Task {task_name}: the key of breaker {breaker.name} asks for {name}, which the task lacks: {hint}"
        raise ConfigurationError(message)
