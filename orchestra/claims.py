"""What a submission claims: to be the only one with its idempotency key, or with its arguments while it's under way."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kombu.utils.json import dumps

from orchestra.exceptions import IdempotencyError, ValidationError
from orchestra.parameters import Parameters
from orchestra.store import Keys
from orchestra.submission import Declared, plain
from orchestra.types import Unique
from orchestra.utils import shorten

__all__ = ["Claim", "Standing", "claim_of", "refuse_other_payload"]

_LONGEST_KEY = 255


class Standing(NamedTuple):
    """The task that had already what a submission claims, and whether it has the same arguments."""

    task_id: str
    same: bool


class Claim(NamedTuple):
    """What one submission claims, in the words of `scripts/claims.lua`; an empty key or lock claims nothing."""

    key: str
    digest: str
    key_ms: int
    lock: str
    until: str

    @property
    def packed(self) -> str:
        """The claim as `scripts/claims.lua` reads it."""
        return "\x1f".join(map(str, self))


def claim_of(
    task: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    declared: Declared,
    *,
    idempotency_key: object = None,
    unique: object = None,  # False: not this time; None: as declared
    keys: Keys,
    key_seconds: float,
) -> Claim | None:
    """
    Return what a call claims; None for nothing.

    Raises:
        ValidationError: the key, or what is said of uniqueness, makes no sense.

    """
    until = None if unique is False else Unique.parse(declared.unique if unique is None else unique)
    if idempotency_key is None and until is None:
        return None
    digest = _digest(declared, args, kwargs)
    return Claim(
        key="" if idempotency_key is None else keys.idempotency(task, _checked(task, idempotency_key)),
        digest=digest,
        key_ms=int(key_seconds * 1000),
        lock="" if until is None else keys.lock(task, digest),
        until=until or "",
    )


def refuse_other_payload(task: str, standing: Standing | None) -> None:
    """
    Refuse a submission whose idempotency key stands for other arguments.

    Raises:
        IdempotencyError: so it does; it has the id of the other task.

    """
    if standing is not None and not standing.same:
        message = (
            f"{task} was not submitted: task {standing.task_id} has its idempotency key, with other arguments. Give "
            "each payload a key of its own."
        )
        raise IdempotencyError(message, task_id=standing.task_id)


def _checked(task: str, key: object) -> str:
    if isinstance(key, str) and 0 < len(key) <= _LONGEST_KEY and key.isprintable():
        return key
    message = (
        f"{task} was not submitted: {shorten(repr(key), 60)} is no idempotency key; give a text of 1 to {_LONGEST_KEY} "
        "printable characters."
    )
    raise ValidationError(message)


def _digest(declared: Declared, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Digest the arguments, by name where names are known, so that it doesn't matter how they were given."""
    parameters: Parameters | None = getattr(declared.arguments, "parameters", None)
    named, rest = (dict(kwargs), list(args)) if parameters is None else parameters.by_name(args, kwargs)
    form = dumps(plain([rest, named]), sort_keys=True)
    return hashlib.sha256(form.encode()).hexdigest()[:32]
