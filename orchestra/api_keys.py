"""
The API keys of a fleet: who holds which, with what roles, and until when.

A key reads `ao_<key id>_<secret>`. Redis holds a digest of it, never the key, under its id, so it's found without a
search. The secret is 256 random bits: nobody can guess one from its digest, however fast the digest is to compute. A
slow hash such as bcrypt would protect what people think up themselves, and here only cost time on every request.
"""

import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, Final

import pydantic
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from orchestra.exceptions import FieldError, SecurityError, ValidationError
from orchestra.permissions import DEFAULT_ROLES, Roles
from orchestra.store import Store, texts_of
from orchestra.utils import shorten

__all__ = ["ANONYMOUS", "ApiKey", "ApiKeys", "IssuedKey", "RefusedKeyError"]

ANONYMOUS: Final = "anonymous"  # whoever gave no credential; nobody may be called so

_ID_BYTES: Final = 8
_SECRET_BYTES: Final = 32
_FORM = re.compile(rf"ao_(?P<id>[0-9a-f]{{{2 * _ID_BYTES}}})_[0-9a-f]{{{2 * _SECRET_BYTES}}}")
_PRINCIPAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:/+-]{0,127}")
_NO_DIGEST: Final = "0" * 64  # what a key that isn't there is compared with, so that it costs the same


class ApiKey(BaseModel):
    """
    What is known of a key, without what proves it.

    `expires_at` is None for one that doesn't expire, `revoked_at` for one that wasn't revoked; times are in UTC, by
    Redis's clock.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_id: str
    principal: str
    roles: frozenset[str]
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None

    def problem_at(self, now: datetime) -> str | None:
        """Return why it is no good at this time, `revoked` or `expired`; None for a live one."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else None


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key; `text` is what its holder sends, and can't be had again."""

    about: ApiKey
    text: str = field(repr=False)


class RefusedKeyError(SecurityError):
    """
    A key isn't accepted.

    The message is always the same one, and the only thing for a client to see. `reason` is `malformed`, `unknown`,
    `wrong secret`, `revoked` or `expired`; `key_id` is None for a malformed one; `principal` is the holder, and None
    unless the secret is right.
    """

    reason: str = ""
    key_id: str | None = None
    principal: str | None = None


class _Record(BaseModel):
    """A key as Redis holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: ApiKey
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class ApiKeys:
    """
    The keys of one fleet.

    A principal may have several, which is how they are rotated: create the new one, hand it out, revoke the old one.
    A record changes once at most, when it is revoked, so nothing can bring a revoked key back. `roles` says which roles
    there are, and what they grant at the time of a request.

    `random` gives as many random bytes as it is asked for, in hexadecimal digits.
    """

    def __init__(
        self, store: Store, *, roles: Roles = DEFAULT_ROLES, random: Callable[[int], str] = secrets.token_hex
    ) -> None:
        self.roles = roles
        self._store = store
        self._random = random

    def create(self, principal: str, roles: Iterable[str], *, expires: timedelta | None) -> IssuedKey:
        """
        Create a key for `principal`, and return it for the only time.

        `expires` is how long it is good for; None stands for ever.

        Raises:
            ValidationError: the principal's name, a role or the time isn't right.

        """
        if not _PRINCIPAL.fullmatch(principal) or principal == ANONYMOUS:
            rule = f"use 1 to 128 letters, digits, '_', '.', '@', ':', '/', '+' and '-', and not {ANONYMOUS!r}"
            raise _wrong("principal", f"is no name for a principal: {rule}", principal)
        known = self.roles.check(roles)
        if expires is not None and not timedelta(0) < expires <= _LONGEST:
            raise _wrong("expires", "is no time for a key to live: give up to 10 years, or None for ever", expires)
        now = _moment(self._store.command("TIME"))
        key_id = self._random(_ID_BYTES)
        text = f"ao_{key_id}_{self._random(_SECRET_BYTES)}"
        expires_at = None if expires is None else now + expires
        key = ApiKey(key_id=key_id, principal=principal, roles=known, created_at=now, expires_at=expires_at)
        self._write(_Record(key=key, digest=_digest(text)))
        return IssuedKey(key, text)

    def verify(self, text: str) -> ApiKey:
        """
        Return what is known of the key that reads `text`.

        One round trip; a key that was revoked before is refused.

        Raises:
            RefusedKeyError: it isn't a live key of this fleet.

        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise _refusal("malformed")
        record, now = self._read(found["id"])
        proven = compare_digest(_digest(text), _NO_DIGEST if record is None else record.digest)
        if record is None or not proven:
            raise _refusal("unknown" if record is None else "wrong secret", key_id=found["id"])
        problem = record.key.problem_at(now)
        if problem is not None:
            raise _refusal(problem, key_id=found["id"], principal=record.key.principal)
        return record.key

    def revoke(self, key_id: str) -> bool:
        """End a key from now on; tell whether there was one that wasn't revoked before."""
        record, now = self._read(key_id)
        if record is None or record.key.revoked_at is not None:
            return False
        self._write(record.model_copy(update={"key": record.key.model_copy(update={"revoked_at": now})}))
        return True

    def known(self, principal: str | None = None) -> list[ApiKey]:
        """Return every key, live or not, the oldest first; with `principal`, only theirs."""
        reply = texts_of(self._store.command("HGETALL", self._store.keys.api_keys))
        records = (_parsed(key_id, text) for key_id, text in reply.items())
        found = [one.key for one in records if one is not None and principal in {None, one.key.principal}]
        return sorted(found, key=lambda key: (key.created_at, key.key_id))

    def _read(self, key_id: str) -> tuple[_Record | None, datetime]:
        reply, time = self._store.pipeline([("HGET", self._store.keys.api_keys, key_id), ("TIME",)])
        return None if reply is None else _parsed(key_id, reply), _moment(time)

    def _write(self, record: _Record) -> None:
        self._store.command("HSET", self._store.keys.api_keys, record.key.key_id, record.model_dump_json())


_LONGEST: Final = timedelta(days=3653)


def _digest(text: str) -> str:
    """Return the digest of a whole key, so that it proves nothing under another id."""
    return blake2b(text.encode(), digest_size=32, person=b"orchestra.apikey").hexdigest()


def _parsed(key_id: str, text: str | bytes) -> _Record | None:
    """Read a record; None stands for something that we didn't write."""
    try:
        record = _Record.model_validate_json(text)
    except pydantic.ValidationError:
        return None
    return record if record.key.key_id == key_id else None


def _moment(reply: Any) -> datetime:  # Redis's time: seconds and microseconds, as the client has them
    seconds, micros = map(int, reply)
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=micros)


def _refusal(reason: str, *, key_id: str | None = None, principal: str | None = None) -> RefusedKeyError:
    message = "The API key isn't accepted: give one that is valid now, or ask the fleet's admin for a new one."
    return RefusedKeyError(message, reason=reason, key_id=key_id, principal=principal)


def _wrong(name: str, problem: str, given: object) -> ValidationError:
    shown = shorten(repr(given), 60)
    return ValidationError(f"{shown} {problem}.", errors=[FieldError(name, problem, shown)])
