"""The io agent: finds files and turns their bytes into text."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from workers import app
from workers.decoding import decode
from workers.documents import Document, Listing, Outcome, pack

CAPABILITIES = "io"

PASSED_OVER = frozenset({".git", ".hg", ".svn", "__pycache__", "node_modules", "site-packages", "dist-packages"})
LARGEST_PACKED = 768 * 1024  # what a message can carry, with room for the rest of it


@app.task(requires={"io"}, timeout=120, max_attempts=3)
def find(root: str) -> Listing:
    """List the files below a folder; links to folders aren't followed, and folders of tools are passed over."""
    listing = Listing(root=str(Path(root).resolve(strict=True)), files=[], unreadable={}, passed_over={})
    for path in _walk(listing):
        name = os.path.relpath(path, listing["root"])
        try:
            about = Path(path).stat()
        except OSError as error:
            listing["unreadable"][printable(name)] = reason(error)
        else:
            _enter(listing, name, about)
    listing["files"].sort()
    return listing


def _walk(listing: Listing) -> Iterator[str]:
    """Yield the paths of all that is no folder, and note the folders that can't be entered or aren't wanted."""
    folders = [listing["root"]]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as found:
                entries = list(found)
        except OSError as error:
            listing["unreadable"][printable(os.path.relpath(folder, listing["root"]))] = reason(error)
            continue
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                yield entry.path
            elif entry.name in PASSED_OVER:
                listing["passed_over"][entry.name] = listing["passed_over"].get(entry.name, 0) + 1
            else:
                folders.append(entry.path)


def _enter(listing: Listing, name: str, about: os.stat_result) -> None:
    if stat.S_ISDIR(about.st_mode):
        listing["unreadable"][printable(name)] = "link to a folder, not followed"
    elif not stat.S_ISREG(about.st_mode):
        listing["unreadable"][printable(name)] = "not a regular file"
    elif printable(name) != name:
        listing["unreadable"][printable(name)] = "its name is not UTF-8"
    else:
        listing["files"].append((name, about.st_size))


@app.task(requires={"io"}, timeout=60, max_attempts=3, ignore_result=True)
def read(root: str, names: list[str], max_bytes: int = 1024 * 1024) -> list[Document]:
    """Read and decode files; one that is empty, binary, huge or unreadable says so, and doesn't stop the others."""
    return [_read_one(root, name, max_bytes) for name in names]


def _read_one(root: str, name: str, max_bytes: int) -> Document:
    try:
        raw, size = _bytes_of(Path(root, name), max_bytes)
    except OSError as error:
        return _document(name, "unreadable", note=reason(error))
    if size > max_bytes:
        return _document(name, "huge", size=size, note=f"over {max_bytes:,} bytes")
    decoded = decode(raw)
    if decoded is None:
        return _document(name, "binary", size=size, note="bytes that are no text")
    if not decoded.text.strip():
        return _document(name, "empty", size=size, note="no text in it")
    packed = pack(decoded.text)
    if len(packed) > LARGEST_PACKED:
        return _document(name, "huge", size=size, note=f"over {LARGEST_PACKED:,} bytes when packed")
    return _document(name, "profiled", size=size, encoding=decoded.encoding, packed=packed)


def _document(
    name: str, outcome: Outcome, *, size: int = 0, note: str = "", encoding: str = "", packed: str = ""
) -> Document:
    return Document(path=name, outcome=outcome, note=note, bytes=size, encoding=encoding, packed=packed)


def _bytes_of(path: Path, max_bytes: int) -> tuple[bytes, int]:
    """Return a file's content, or the start of it when that is too long, and its size."""
    # It may have become a pipe since it was listed: opened like this, a pipe doesn't block.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(0, "Not a regular file", str(path))
        raw = file.read(max_bytes + 1)
        return raw, max(len(raw), about.st_size)


def reason(error: OSError) -> str:
    """Say in a few words why a file can't be read."""
    return (error.strerror or type(error).__name__).lower()


def printable(name: str) -> str:
    """Return a file's name such that it can be sent and shown, whatever bytes it is made of."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
