"""What a Redis holds, whatever its keys are called: tests ask where a message is without knowing how it's kept."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from orchestra.store import text_of

__all__ = ["keys_holding", "keys_of", "lengths_of_lists"]


def keys_of(client: Any) -> set[str]:  # a redis.Redis, whose types have every answer awaitable as well
    """Return the names of all keys."""
    return {text_of(key) for key in client.scan_iter()}


def keys_holding(client: Any, text: str) -> set[str]:
    """Return the names of the keys in whose values `text` stands: where a message is, by a word of its headers."""
    return {key for key in keys_of(client) if text.encode() in _value(client, key)}


def lengths_of_lists(client: Any) -> dict[str, int]:
    """Return how many entries each list has."""
    return {key: client.llen(key) for key in keys_of(client) if client.type(key) == b"list"}


_READERS: Final[Mapping[bytes, Callable[[Any, str], Iterable[Any]]]] = {
    b"string": lambda client, key: [client.get(key) or b""],
    b"list": lambda client, key: client.lrange(key, 0, -1),
    b"set": lambda client, key: client.smembers(key),
    b"zset": lambda client, key: client.zrange(key, 0, -1),
    b"hash": lambda client, key: [part for entry in client.hgetall(key).items() for part in entry],
    b"stream": lambda client, key: [repr(client.xrange(key)).encode()],
    b"none": lambda client, key: [],  # gone meanwhile
}


def _value(client: Any, key: str) -> bytes:
    """Return all that a key holds, one entry a line."""
    return b"\n".join(_READERS[client.type(key)](client, key))
