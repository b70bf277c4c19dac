"""The web agent: fetches pages, and holds off a host that is away for all who want something of it."""

from http.client import HTTPException, HTTPMessage, IncompleteRead
from typing import Any, Final, TypedDict
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from orchestra import Breaker
from orchestra.exceptions import PermanentError, RetryableError, classify
from workers import app

CAPABILITIES = "http"

LARGEST: Final = 512 * 1024  # bytes, for which a result has room
_CONNECTION_SECONDS: Final = 10.0  # without a word of the host
_HEADERS: Final = {"User-Agent": "agent-orchestra"}
_BUSY: Final = 429
_BROKEN: Final = 500


class Page(TypedDict):
    """What a host answered: at which address after redirects, and what the page is; what is no text has none."""

    url: str
    status: int
    kind: str
    bytes: int
    text: str


def host_of(url: str) -> str:
    """Return the host that a URL leads to, with its port; refuse what isn't to be fetched."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        message = "Only http and https are fetched, from a host, without a user's name in the URL."
        raise PermanentError(message)
    return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname


@app.task(
    requires={"http"},
    breaker=Breaker("http", failures=5, ratio=0.5, window=30, cooldown=10, key=host_of),
    timeout=60,
    max_attempts=4,
)
def fetch(url: str, max_bytes: int = LARGEST) -> Page:
    """Fetch a page, whatever the host says of it; a host that is away or overloaded is asked again later."""
    host = host_of(url)
    try:
        return _fetched(url, max_bytes)
    except HTTPException as error:  # half an answer
        message = f"{host} broke off: {error!r}"
        raise RetryableError(message) from error


def _fetched(url: str, max_bytes: int) -> Page:
    try:
        with _opener().open(Request(url, headers=_HEADERS), timeout=_CONNECTION_SECONDS) as reply:  # noqa: S310  # http alone
            return _page(reply, max_bytes)
    except HTTPError as error:
        with error:
            _refuse(error)
            return _page(error, max_bytes)


def _opener() -> OpenerDirector:
    """Return what opens http and https alone, also behind redirects: no files, no FTP."""
    opener = OpenerDirector()
    for handler in (
        *(ProxyHandler, UnknownHandler, HTTPHandler, HTTPSHandler),
        *(HTTPDefaultErrorHandler, HTTPRedirectHandler, HTTPErrorProcessor),
    ):
        opener.add_handler(handler())
    return opener


def _refuse(error: HTTPError) -> None:
    """Raise where the host says that it can't answer now."""
    if error.code == _BUSY or error.code >= _BROKEN:
        message = f"{urlsplit(error.url).hostname} answered {error.code} {error.reason}"
        raise RetryableError(message, retry_after=classify(error).retry_after) from error


def _page(reply: Any, max_bytes: int) -> Page:  # an HTTPResponse, or an HTTPError, which has the same
    most = min(max_bytes, LARGEST)
    raw: bytes = reply.read(most + 1)
    if len(raw) > most:
        message = f"{urlsplit(reply.url).hostname} sent more than {most:,} bytes."
        raise PermanentError(message)
    if left := getattr(reply, "length", None):  # read() doesn't say that it got less than was announced
        raise IncompleteRead(raw, left)
    headers: HTTPMessage = reply.headers
    kind = headers.get_content_type()
    is_text = kind.startswith("text/") or kind.endswith(("json", "xml"))
    text = _decoded(raw, headers.get_content_charset() or "utf-8") if is_text else ""
    return Page(url=reply.url, status=reply.status, kind=kind, bytes=len(raw), text=text)


def _decoded(raw: bytes, encoding: str) -> str:
    """Decode a page as it says that it is, or as UTF-8 where Python doesn't know that encoding."""
    try:
        return raw.decode(encoding, "replace")
    except LookupError:
        return raw.decode("utf-8", "replace")
