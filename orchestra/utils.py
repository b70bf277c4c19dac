"""What every floor may use: masks that keep secrets out of texts that people read, and a cache that forgets in time."""

import re
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from threading import Lock
from time import monotonic
from typing import Final, Generic, TypeVar

import cachetools

__all__ = ["MASK", "TTLCache", "error_text", "is_secret_name", "mask_fields", "mask_text", "shorten"]

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

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
    if "://" in text:  # the look for it is cheap, and most texts hold none
        text = _URL_USER.sub(_masked_user, text)
    return _PAIR.sub(rf"\g<name>{MASK}", text) if "=" in text or ":" in text else text


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


def error_text(error: BaseException) -> str:
    """Return an error's class and its words, whatever those are: asking somebody's error for them may raise another."""
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"
    except Exception as unreadable:  # noqa: BLE001  # it may be of any class
        return f"{kind}: its text can't be had, for {type(unreadable).__name__}"


def shorten(text: str, limit: int) -> str:
    """Return `text` in at most `limit` characters; the end gives way to an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class TTLCache(Generic[Key, Value]):
    """
    Values that are looked up once and trusted for `ttl_seconds`; threads may share it.

    `load` finds the value of a key, and mustn't ask this cache for the same key. Threads that ask for a key while it is
    being loaded wait for that one load, and get its error if it fails; an error isn't kept. When there are `maxsize`
    values, the one that was asked for the longest ago gives way. A time of 0 stands for no cache. `clock` returns
    seconds that never run backwards.
    """

    def __init__(
        self,
        load: Callable[[Key], Value],
        *,
        ttl_seconds: float,
        maxsize: int = 1024,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        if not ttl_seconds >= 0 or maxsize < 1:
            message = f"TTLCache(ttl_seconds={ttl_seconds!r}, maxsize={maxsize!r}): 0 s and 1 value are the least."
            raise ValueError(message)
        self._load = load
        self._values: cachetools.TTLCache[Key, Value, float] = cachetools.TTLCache(maxsize, ttl_seconds, clock)
        self._loading: dict[Key, Future[Value]] = {}
        self._lock = Lock()

    def get(self, key: Key) -> Value:
        """Return the value of `key`, loaded if there is none that is fresh enough; an error of `load` goes through."""
        with self._lock:
            try:
                return self._values[key]
            except KeyError:
                others = self._loading.get(key)
            loading = self._loading.setdefault(key, Future())
        return self._loaded(key, loading) if others is None else others.result()

    def invalidate(self, key: Key) -> None:
        """Forget the value of `key`; one that is being loaded now reaches those who wait for it, and isn't kept."""
        with self._lock:
            self._values.pop(key, None)
            self._loading.pop(key, None)

    def clear(self) -> None:
        """Forget every value, as `invalidate` does."""
        with self._lock:
            self._values.clear()
            self._loading.clear()

    def _loaded(self, key: Key, loading: "Future[Value]") -> Value:
        try:
            value = self._load(key)
        except BaseException as error:  # an interrupt too: nobody may wait for ever
            with self._lock:
                self._ends(key, loading)
            loading.set_exception(error)
            raise
        with self._lock:
            if self._ends(key, loading):
                self._values[key] = value
        loading.set_result(value)
        return value

    def _ends(self, key: Key, loading: "Future[Value]") -> bool:
        """Take a load off the list; False when it was invalidated meanwhile."""
        current = self._loading.get(key) is loading
        if current:
            del self._loading[key]
        return current
