"""
What travels between the agents: a file's text on the way, its profile at the end.

A text goes through Redis packed, at about a third of its length, and only as far as the agents that read it.
"""

import base64
import zlib
from typing import Final, Literal, TypeAlias

from typing_extensions import TypedDict  # pydantic checks typing's own only from Python 3.12 on

__all__ = [
    "Described",
    "Description",
    "Document",
    "Fingerprint",
    "Listing",
    "Outcome",
    "Profile",
    "Report",
    "pack",
    "unpack",
]

Outcome: TypeAlias = Literal["profiled", "empty", "binary", "huge", "unreadable"]

_FAST: Final = 1  # zlib's level: a third of the time of the default one, for texts a quarter longer


class Listing(TypedDict):
    """A tree of files as `workers.io.find` saw it; names are relative to `root`."""

    root: str
    files: list[tuple[str, int]]  # name, bytes
    unreadable: dict[str, str]  # name -> why
    passed_over: dict[str, int]  # a folder's own name -> how many of that name weren't entered


class Document(TypedDict):
    """A file after `workers.io.read`."""

    path: str
    outcome: Outcome
    note: str  # why it isn't profiled; empty when it is
    bytes: int
    encoding: str
    packed: str  # the text; empty unless the outcome is "profiled"


class Description(TypedDict):
    """What the text agent says of a file."""

    kind: str
    readability: float | None  # None: too little prose to judge
    keywords: dict[str, int]


class Described(TypedDict):
    """A file after `workers.text.describe`; the description is None for files without a text."""

    document: Document
    description: Description | None


class Fingerprint(TypedDict):
    """What the compute agent says of a file."""

    digest: str
    signature: str


class Profile(TypedDict):
    """All that is known of a file at the end; `description` and `fingerprint` are None for files without a text."""

    path: str
    outcome: Outcome
    note: str
    bytes: int
    encoding: str
    description: Description | None
    fingerprint: Fingerprint | None


class Report(TypedDict):
    """What the profiles of a whole tree say together."""

    files: int
    bytes: int
    outcomes: dict[str, int]
    kinds: dict[str, int]
    encodings: dict[str, int]
    readability: dict[str, float]  # kind -> median of its files
    near_duplicates: int
    pairs: list[tuple[str, str, float]]  # the near duplicates that share the most text, and how alike they are
    keywords: dict[str, list[str]]  # folder -> words, the folders with the most files first
    skipped: list[tuple[str, str, str]]  # path, outcome, note


def pack(text: str) -> str:
    """Make a text short and free of characters that JSON would have to escape."""
    return base64.b64encode(zlib.compress(text.encode(), _FAST)).decode("ascii")


def unpack(packed: str) -> str:
    """Return the text that was packed."""
    return zlib.decompress(base64.b64decode(packed)).decode()
