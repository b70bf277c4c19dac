"""The dead letters of a fleet, as tests look at them."""

from typing import Any

from orchestra.dead_letters import DeadLetters
from orchestra.letters import DeadLetter
from orchestra.queues import QueueNames
from orchestra.store import Keys, Store

__all__ = ["dead_letters_of", "letters_in"]


def dead_letters_of(store: Store, *, fleet: str = "shop", default: str = "celery", **options: Any) -> DeadLetters:
    """Give a fleet's dead letters."""
    return DeadLetters(store, QueueNames(fleet, default), record_ttl_seconds=60, **options)


def letters_in(client: Any, keys: Keys) -> list[DeadLetter]:  # a redis.Redis, whose answers may be awaitable too
    """Return all dead letters of a server with their messages, the oldest first."""
    letters = dead_letters_of(Store(lambda: client, keys, location="a test's server"), fleet=keys.fleet)
    return [letters.show(name.decode()) for name in client.zrange(keys.dead_letters, 0, -1)]
