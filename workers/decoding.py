"""
From bytes to text, whatever the encoding.

What a file declares about itself is believed first: a byte order mark, then a coding cookie (PEP 263) or an XML
declaration. Then UTF-8, which is seldom right by accident, then UTF-16 without a mark, then Latin-1, which fits
everything and is therefore last, and only for bytes that look like text at all.
"""

import codecs
import re
from typing import Final, NamedTuple

__all__ = ["Decoded", "decode"]

# The marks of UTF-32 begin with those of UTF-16, so they come first.
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COOKIE: Final = re.compile(rb"[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_XML: Final = re.compile(rb"""<\?xml [^>]*?encoding=["']([-\w.]+)["']""")
_PLAIN: Final = rb"\x41 \u0041 +AEE- ~{A~} .xn--bcher-kva." + bytes(range(0x30, 0x5B))  # escapes of odd codecs
_CONTROLS: Final = bytes(set(range(0x20)) - set(b"\t\n\r\f\b\x1b")) + b"\x7f"
_SAMPLE_BYTES: Final = 8192
_MOST_CONTROLS: Final = 0.02  # of a sample; compressed bytes hold about 0.1, texts hardly any


class Decoded(NamedTuple):
    """A text, and the encoding that gave it."""

    text: str
    encoding: str


def decode(raw: bytes) -> Decoded | None:
    """
    Return the text of `raw`; None when it is binary.

    Never raises: a wrong declaration counts as none.
    """
    for encoding in filter(None, (_marked(raw), _declared(raw), "utf-8", _unmarked_utf16(raw))):
        text = _attempt(raw, encoding)
        if text is not None:
            return Decoded(text, encoding)
    return None if _mostly_controls(raw) else Decoded(raw.decode("latin-1"), "latin-1")


def _attempt(raw: bytes, encoding: str) -> str | None:
    try:
        text = raw.decode(encoding)
        text.encode()  # lone surrogates are no text
    except (UnicodeError, LookupError):
        return None
    return None if "\0" in text else text


def _marked(raw: bytes) -> str | None:
    return next((encoding for mark, encoding in _MARKS if raw.startswith(mark)), None)


def _declared(raw: bytes) -> str | None:
    """Return the encoding that the first lines name, by Python's name for it; None when it can't be trusted."""
    cookies = [_COOKIE.match(line) for line in raw[:1024].splitlines()[:2]]
    found = next(filter(None, cookies), None) or _XML.match(raw[:1024])
    if found is None:
        return None
    name = found[1].decode("ascii")
    return codecs.lookup(name).name if _leaves_ascii_alone(name) else None


def _leaves_ascii_alone(name: str) -> bool:
    """Tell whether a codec is one for texts that start in ASCII: no `utf-7`, `unicode_escape`, `rot13` or `zlib`."""
    try:
        return _PLAIN.decode(name) == _PLAIN.decode("ascii")
    except (UnicodeError, LookupError):
        return False


def _unmarked_utf16(raw: bytes) -> str | None:
    """Guess the byte order of mostly Western UTF-16 by where its zero bytes are."""
    even, odd = raw[:_SAMPLE_BYTES:2], raw[1:_SAMPLE_BYTES:2]
    if odd.count(0) > 0.5 * len(odd) and even.count(0) < 0.05 * len(even):
        return "utf-16-le"
    if even.count(0) > 0.5 * len(even) and odd.count(0) < 0.05 * len(odd):
        return "utf-16-be"
    return None


def _mostly_controls(raw: bytes) -> bool:
    sample = raw[:_SAMPLE_BYTES]
    controls = len(sample) - len(sample.translate(None, _CONTROLS))
    return b"\0" in raw or controls > _MOST_CONTROLS * len(sample)
