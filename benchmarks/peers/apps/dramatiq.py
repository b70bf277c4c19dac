"""dramatiq, with the result middleware."""

import os
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import ResultMissing, Results
from dramatiq.results.backends import RedisBackend

from benchmarks.peers.work import work

__all__ = ["broker", "finished", "submit", "wait"]

broker = RedisBroker(url=os.environ["PEERS_URL"])
broker.add_middleware(Results(backend=RedisBackend(url=os.environ["PEERS_URL"])))
dramatiq.set_broker(broker)
task = dramatiq.actor(actor_name="work", store_results=True)(work)


def submit(kind: str, argument: Any) -> Any:  # Message
    """Submit one task."""
    return task.send(kind, argument)


def wait(handle: Any) -> None:
    """Wait for the result."""
    handle.get_result(block=True, timeout=30_000)


def finished(handle: Any) -> bool:
    """Tell whether the result is there."""
    try:
        handle.get_result()
    except ResultMissing:
        return False
    return True
