"""What keeps secrets out of texts that people read: masks for URLs, `name=value` pairs and named fields."""

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["MASK", "is_secret_name", "mask_fields", "mask_text", "shorten"]

MASK: Final = "***"

_TELLING = (
    r"(?:passw(?:or)?d|passphrase|pwd|secret|token(?!s|_count|ize)|(?:api|private|signing)[_-]?key"
    r"|credential|authorization|cookie)"
)
_SECRET_NAME = re.compile(_TELLING, re.IGNORECASE)
# A password may hold '@' and '/' where somebody forgot to quote them: it reaches to the last '@' of its URL.
_URL_USER = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?P<user>[^\s:@/]*)(?P<password>:(?:(?![;,][a-z0-9+.-]+://)\S)*|)@",
    re.IGNORECASE,
)
_PAIR = re.compile(
    rf"(?P<name>\b[\w.-]*{_TELLING}[\w.-]*[\"']?\s*(?:=|:(?!//))\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|(?:Bearer|Basic)\s+[^\s,;&]+|[^\s,;&\"']+)",
    re.IGNORECASE,
)


def is_secret_name(name: str) -> bool:
    """Whether a field of this name holds a secret: `password`, `flower_password`, `api-key`, `Authorization`."""
    return _SECRET_NAME.search(name) is not None


def mask_text(text: str) -> str:
    """
    Return `text` without the passwords of URLs and the values of pairs such as `password=…` and `token: …`.

    Hosts, ports and user names before a password stay readable. A user name without a password is masked: it nearly
    always is a password whose colon was forgotten.
    """
    return _PAIR.sub(rf"\g<name>{MASK}", _URL_USER.sub(_masked_user, text))


def _masked_user(match: re.Match[str]) -> str:
    user = f"{match['user']}:{MASK}" if match["password"] else MASK
    return f"{match['scheme']}{user}@"


def mask_fields(fields: Mapping[str, object]) -> dict[str, object]:
    """Return `fields` with the values of secret names masked, at every depth, and every text passed to `mask_text`."""
    return {name: MASK if is_secret_name(name) else _masked(value) for name, value in fields.items()}


def _masked(value: object) -> object:
    match value:
        case str():
            return mask_text(value)
        case Mapping():
            return mask_fields({str(name): item for name, item in value.items()})
        case list() | tuple() | set() | frozenset():
            return [_masked(item) for item in value]
        case Exception():
            return mask_text(str(value))
        case _:
            return value


def shorten(text: str, limit: int) -> str:
    """Return `text` in at most `limit` characters; the end gives way to an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
