"""Stores over a real server, as tests of the stores need them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestra.claims import Claim
from orchestra.queues import QueueNames
from orchestra.registry import AgentRegistry, CatalogueEntry
from orchestra.state import StateManager
from orchestra.store import Keys, Store
from orchestra.types import TaskRecord, TaskState

__all__ = [
    "ABOUT",
    "FLEET",
    "INDEX",
    "beat_of",
    "client_at",
    "manager_of",
    "publish",
    "register",
    "states_of",
    "store_at",
]

FLEET = "shop"
ABOUT = {"capabilities": "nlp", "host": "box", "pid": 4711}
INDEX = CatalogueEntry(requires="nlp", urgency="high", enforced=True, arguments={"parameters": []})


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
    publish_id: str = "",
    due: str = "",
    chosen: bool = False,
    claim: Claim | None = None,
    limit: int = 0,
) -> Any:
    """Publish a task as the transport does, by its script; return what that returns."""
    keys = store.keys
    claimed = claim.packed if claim else ""
    about: list[Any] = [
        message,
        suffix,
        name,
        queue,
        attempt,
        ttl_ms,
        note,
        keys.base,
        publish_id,
        due,
        "",
        int(chosen),
        claimed,
    ]
    return store.run(
        "publish",
        [queue, keys.task(task_id), keys.queues, keys.queues_version, keys.due, *([queue] if limit else [])],
        [*about, limit],
    )


def manager_of(store: Store) -> StateManager:
    """Give the shop's state manager."""
    return StateManager(store, QueueNames(FLEET, "celery"), ttl_seconds=60)


def states_of(record: TaskRecord | None) -> list[TaskState]:
    """List the states that a record went through."""
    assert record is not None
    return [entry.state for entry in record.history]


def register(registry: AgentRegistry, name: str = "text@a", instance: str = "1", **given: Any) -> str:
    """Register an agent that knows one task."""
    return registry.register(
        name, instance, **{"about": ABOUT, "tasks": {"shop.index": INDEX}, "queues": ["nlp"], **given}
    )


def beat_of(
    registry: AgentRegistry, name: str = "text@a", instance: str = "1", *, version: str = "", running: int = 0
) -> tuple[bool, bool, str, tuple[str, ...] | None]:
    """Beat for an agent, and return the answer's parts."""
    answer = registry.beat(name, instance, version=version, queues=["shop:nlp"], running=running)
    return answer.known, answer.taken, answer.version, answer.queues
