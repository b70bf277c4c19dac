"""What a request shows of who sends it: one token at most, the request's id, and the address that it came from."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

from orchestra.exceptions import FieldError, SecurityError, ValidationError
from orchestra.utils import shorten

__all__ = ["Credentials", "UnreadableCredentialsError", "source_address"]

_AUTHORIZATION: Final = "authorization"
_API_KEY: Final = "x-api-key"
_REQUEST_ID: Final = "x-request-id"

_MAX_HEADER_LENGTH: Final = 8192  # what servers commonly take
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
_HARMLESS_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class UnreadableCredentialsError(SecurityError):
    """The headers show no token that can be read, or several; `reason` says which, and none of what they hold."""

    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """
    What the headers of a request hold.

    `token` is None where none is shown; `request_id` where none is given, or several, or one that could forge a line
    in a log.
    """

    token: str | None = field(repr=False)
    request_id: str | None

    @classmethod
    def from_headers(cls, headers: Mapping[Any, Any]) -> "Credentials":  # frameworks differ in what they hand over
        """
        Read `Authorization: Bearer …`, `X-API-Key: …` and `X-Request-ID: …`; names of headers have no case.

        Raises:
            UnreadableCredentialsError: a header is no text, or too long; the scheme isn't Bearer; a token has
                characters that tokens don't have; or two different ones are shown.

        """
        given = _relevant(headers)
        tokens = {_bearer(value) for value in given[_AUTHORIZATION]} | {_token(value) for value in given[_API_KEY]}
        if len(tokens) > 1:
            raise _unreadable("several credentials")
        ids = given[_REQUEST_ID]
        harmless = [one for one in ids if _HARMLESS_ID.fullmatch(one)]
        return cls(token=next(iter(tokens), None), request_id=harmless[0] if harmless and len(ids) == 1 else None)


def _relevant(headers: Mapping[Any, Any]) -> dict[str, set[str]]:
    """Return the values of each header that is looked at, by its name in lower case."""
    found: dict[str, set[str]] = {_AUTHORIZATION: set(), _API_KEY: set(), _REQUEST_ID: set()}
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise _unreadable("header is no text")
        if name.lower() in found:
            found[name.lower()].add(value)
    return found


def _bearer(value: str) -> str:
    scheme, _, token = _bounded(value).partition(" ")
    if scheme.lower() != "bearer":
        raise _unreadable("no bearer token")
    return _token(token.lstrip(" "))


def _token(value: str) -> str:
    if not _TOKEN.fullmatch(_bounded(value)):
        raise _unreadable("malformed")
    return value


def _bounded(value: str) -> str:
    if len(value) > _MAX_HEADER_LENGTH:
        raise _unreadable("oversize")
    return value


def _unreadable(reason: str) -> UnreadableCredentialsError:
    message = f"The request's credentials can't be read ({reason}): send one token as 'Authorization: Bearer …'."
    return UnreadableCredentialsError(message, reason=reason)


def source_address(text: str) -> str:
    """
    Return an IP address in its one form: an IPv6 address that stands for an IPv4 one becomes that, a zone is dropped.

    Raises:
        ValidationError: it is none.

    """
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        shown = shorten(repr(text), 60)
        rule = "give the address that the connection came from, such as 192.0.2.7, or None"
        raise ValidationError(
            f"{shown} is no IP address: {rule}.", errors=[FieldError("source_ip", rule, shown)]
        ) from None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
