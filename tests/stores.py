"""Stores over a real server, as tests of the stores need them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestra.store import Keys, Store

__all__ = ["FLEET", "client_at", "publish", "store_at"]

FLEET = "shop"


@contextmanager
def client_at(url: str, **options: Any) -> Iterator[Redis]:
    """Give a client that reports the first failure, instead of trying for seconds."""
    with Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options) as client:
        yield client


@contextmanager
def store_at(url: str, *, fleet: str = FLEET, location: str = "redis.example:6379", **options: Any) -> Iterator[Store]:
    """Give one fleet's store over a client of its own."""
    with client_at(url, **options) as client:
        yield Store(lambda: client, Keys("orchestra", fleet), location=location)


def publish(
    store: Store,
    task_id: str,
    *,
    message: str = "{}",
    suffix: str = "nlp",
    name: str = "shop.index",
    queue: str = "shop:nlp",
    attempt: int = 1,
    ttl_ms: int = 60_000,
    note: str = "",
) -> None:
    """Publish a task as the transport does, by its script."""
    keys = store.keys
    store.run(
        "publish",
        [queue, keys.task(task_id), keys.queues, keys.queues_version],
        [message, suffix, name, queue, attempt, ttl_ms, note],
    )
