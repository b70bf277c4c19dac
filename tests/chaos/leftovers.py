"""Which messages of the tasks are still anywhere in the broker, whatever a system calls its keys."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from redis import Redis

__all__ = ["leftovers"]

_TASK: Final = b'"chaos.'
_MESSAGE: Final = b"delivery_tag"  # what every message has, and neither a result nor a record of a task
_DEAD: Final = b":dead"  # in the key of what nobody waits for any more
_PORTION: Final = 500


def leftovers(client: "Redis") -> Counter[str]:
    """Count the messages of the tasks, by key."""
    found: Counter[str] = Counter()
    for kind, read in (("list", _list), ("hash", _hash), ("zset", _sorted_set), ("set", _set), ("string", _string)):
        keys: list[Any] = [key for key in client.scan_iter(_type=kind, count=1000) if _DEAD not in key]
        for start in range(0, len(keys), _PORTION):
            portion = keys[start : start + _PORTION]
            with client.pipeline(transaction=False) as pipeline:
                for key in portion:
                    read(pipeline, key)
                for key, values in zip(portion, pipeline.execute(), strict=True):
                    found[key.decode()] += sum(map(_is_message, _flat(values)))
    return +found


def _is_message(value: Any) -> bool:
    return isinstance(value, bytes) and _TASK in value and _MESSAGE in value


def _flat(values: Any) -> Iterable[Any]:  # what redis-py makes of a reply
    if isinstance(values, dict):
        return values.values()
    return values if isinstance(values, (list, set)) else [values]


def _list(pipeline: Any, key: bytes) -> None:
    pipeline.lrange(key, 0, -1)


def _hash(pipeline: Any, key: bytes) -> None:
    pipeline.hgetall(key)


def _sorted_set(pipeline: Any, key: bytes) -> None:
    pipeline.zrange(key, 0, -1)


def _set(pipeline: Any, key: bytes) -> None:
    pipeline.smembers(key)


def _string(pipeline: Any, key: bytes) -> None:
    pipeline.get(key)
