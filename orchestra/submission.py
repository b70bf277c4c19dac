"""The sender's half of a task's walk: validate and route a call, before Redis is touched."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, Final, Protocol

from pydantic import BaseModel, Secret, SecretBytes, SecretStr

from orchestra.capabilities import Requirement
from orchestra.exceptions import PayloadError, ValidationError
from orchestra.task_router import DECLARED_HEADER, ROUTING_OPTIONS
from orchestra.types import Unique, Urgency
from orchestra.unroutable import UnroutablePolicy, parse_policy, text_of_policy
from orchestra.validation import check_payload, validate_priority

__all__ = ["ArgumentCheck", "Call", "Declared", "Limits", "Prepared", "complete_signatures", "plain", "prepare"]


class ArgumentCheck(Protocol):
    """What checks a task's arguments: by its type hints, or by the schema in the catalogue."""

    def check(self, task_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise a ValidationError that lists every argument which isn't right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of a payload."""

    max_bytes: int
    max_depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a task says of itself, as its own code or the catalogue has it."""

    requires: Requirement | None = None
    urgency: Urgency | None = None
    on_unroutable: UnroutablePolicy | None = None
    unique: Unique | None = None
    max_queue_depth: int | None = None  # 0 for any number
    arguments: ArgumentCheck | None = None
    enforced: bool = False  # whether a call that doesn't fit is refused, or only remarked on


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a task, as the caller wrote it."""

    task: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    requires: str | Iterable[str] | Requirement | None = None
    urgency: str | Urgency | None = None
    on_unroutable: str | None = None
    priority: float | None = None
    queue: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """
    What a call comes to.

    `requires` is what the caller asked for beyond the task's own declaration, None if nothing; `priority` is one of
    kombu's Redis steps, None to leave the caller's; `on_unroutable` is the call's policy or the task's, None where
    neither has one; `remarks` is what would have been refused of an enforced task.
    """

    requires: Requirement | None
    priority: int | None
    on_unroutable: UnroutablePolicy | None = None
    remarks: ValidationError | None = None


def prepare(call: Call, declared: Declared, limits: Limits, *, enforce: bool) -> Prepared:
    """
    Validate and route a call; pure, so that a refused one leaves nothing behind.

    Raises:
        ValidationError: the requirement, the urgency, the priority or the policy makes no sense, or the call is
            enforced and its arguments don't fit the task. It lists every field.

    """
    requires = None if call.requires is None else Requirement.parse(call.requires)
    if requires is not None and call.queue is not None:
        message = (
            f"{call.task} was not submitted: requires={requires.text!r} and queue={str(call.queue)!r} exclude each "
            "other. Leave out queue= to have the requirement choose the queue."
        )
        raise ValidationError(message)
    remarks = _checked(call, declared, limits, enforce=enforce)
    try:
        priority = _priority(call, declared)
        policy = declared.on_unroutable if call.on_unroutable is None else parse_policy(call.on_unroutable)
    except ValidationError as error:
        message = f"{call.task} was not submitted: {error}"
        raise ValidationError(message, errors=error.errors) from error
    return Prepared(requires=requires, priority=priority, on_unroutable=policy, remarks=remarks)


def _priority(call: Call, declared: Declared) -> int | None:
    if call.urgency is not None and call.priority is not None:
        message = "give urgency= or priority=, not both."
        raise ValidationError(message)
    if call.priority is not None:
        validate_priority(call.priority)
        return None
    urgency = declared.urgency if call.urgency is None else call.urgency
    return Urgency.parse(Urgency.NORMAL if urgency is None else urgency).priority


def _checked(call: Call, declared: Declared, limits: Limits, *, enforce: bool) -> ValidationError | None:
    try:
        if declared.arguments is not None:
            declared.arguments.check(call.task, call.args, call.kwargs)
        if enforce:
            check_payload(call.args, call.kwargs, max_bytes=limits.max_bytes, max_depth=limits.max_depth)
    except ValidationError as error:
        if enforce:
            raise
        return error
    return None


def complete_signatures(
    value: Any,  # whatever a caller passes along
    declared: Callable[[str], Requirement | None] = lambda _: None,
    _depth: int = 0,
) -> None:
    """
    Write into every signature inside `value`, in place, what its task requires, in canonical text, and its options.

    A signature may carry `requires={…}` as a set, which JSON can't hold, and it may hold further signatures: the rest
    of a chain, the members of a group, callbacks. They're sent later, by an agent that may know neither the code of
    their tasks nor an entry of the catalogue, so one that doesn't say itself what it requires, or where it goes, gets
    what `declared` tells of its task. That stands in a header, which counts only where nothing else is known.
    """
    if _depth > _DEEPEST:  # the message's encoding refuses it, in words of its own
        return
    if isinstance(value, (list, tuple)):
        for item in value:
            complete_signatures(item, declared, _depth + 1)
    elif isinstance(value, dict):
        if "subtask_type" in value and isinstance(value.get("options"), dict):
            _complete(str(value.get("task")), value["options"], declared)
        for part in value.values():
            complete_signatures(part, declared, _depth + 1)


def _complete(task: str, options: dict[str, Any], declared: Callable[[str], Requirement | None]) -> None:
    _complete_words(task, options)
    if options.get("requires") is not None:
        options["requires"] = Requirement.parse(options["requires"]).text
    elif not any(options.get(option) for option in ROUTING_OPTIONS):
        requirement = declared(task)
        if requirement is not None:
            options["headers"] = {**(options.get("headers") or {}), DECLARED_HEADER: requirement.text}


def _complete_words(task: str, options: dict[str, Any]) -> None:
    """Write urgency and policy as text, and refuse now what their sender would be refused later, out of sight."""
    try:
        if options.get("urgency") is not None:
            options["urgency"] = Urgency.parse(options["urgency"]).value
        if options.get("on_unroutable") is not None:
            options["on_unroutable"] = text_of_policy(parse_policy(options["on_unroutable"]))
        validate_priority(options.get("priority"))
    except ValidationError as error:
        message = f"{task} was not submitted, nor was what comes before it: {error}"
        raise ValidationError(message, errors=error.errors) from error


_DEEPEST: Final = 200


def plain(value: Any) -> Any:
    """
    Return `value` in the form in which it travels: models, dataclasses, enums and sets as JSON has them.

    What kombu's JSON marks by itself, such as a datetime, stays as it is.

    Raises:
        PayloadError: a model holds a secret, which pydantic would send as asterisks.

    """
    if isinstance(value, BaseModel):
        _refuse_secrets(value)
        return value.model_dump(mode="json", by_alias=True, round_trip=True)
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        items = [plain(item) for item in value]
        return tuple(items) if type(value) is tuple else items
    return value


def _refuse_secrets(value: Any, place: str = "") -> None:
    if isinstance(value, Secret | SecretStr | SecretBytes):
        message = (
            f"{place} is a secret, and a task's message is no place for one: send a reference to it, and read it on "
            "the agent."
        )
        raise PayloadError(message)
    if isinstance(value, BaseModel):
        for name, item in value:
            _refuse_secrets(item, f"{type(value).__name__}.{name}")
    elif isinstance(value, Mapping):
        for item in value.values():
            _refuse_secrets(item, place)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            _refuse_secrets(item, place)
