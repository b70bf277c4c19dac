"""RQ, whose tasks are functions that are found by their names."""

import os
from collections.abc import Iterable
from typing import Any

from redis import Redis
from rq import Queue

from benchmarks.peers.work import work

__all__ = ["finished", "submit", "submit_many", "wait"]

_BATCH = 1_000
_queue = Queue("peers", connection=Redis.from_url(os.environ["PEERS_URL"]))


def submit(kind: str, argument: Any) -> Any:  # Job
    """Submit one task."""
    return _queue.enqueue(work, kind, argument)


def submit_many(kind: str, arguments: Iterable[Any]) -> list[Any]:  # Job
    """Submit many by pipelines of a thousand."""
    wanted = [Queue.prepare_data(work, (kind, argument)) for argument in arguments]
    return [
        job for start in range(0, len(wanted), _BATCH) for job in _queue.enqueue_many(wanted[start : start + _BATCH])
    ]


def wait(handle: Any) -> None:
    """Wait for the result."""
    if handle.latest_result(timeout=30) is None:
        raise TimeoutError(handle.id)


def finished(handle: Any) -> bool:
    """Tell whether the result is there."""
    return handle.latest_result() is not None
