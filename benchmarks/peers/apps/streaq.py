"""streaQ, whose worker runs a hundred tasks at a time."""

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from streaq import TaskStatus, Worker

from benchmarks.peers.work import work_async

__all__ = ["finished", "session", "submit", "submit_many", "wait", "worker"]

_BATCH = 1_000
worker: Any = Worker(redis_url=os.environ["PEERS_URL"], concurrency=100, anyio_kwargs={"use_uvloop": True})
task = worker.task(name="work", silent=True)(work_async)


@asynccontextmanager
async def session() -> AsyncIterator[None]:
    """Have the worker's connections open."""
    async with worker:
        yield


async def submit(kind: str, argument: Any) -> Any:  # Task
    """Submit one task."""
    return await task.enqueue(kind, argument)


async def submit_many(kind: str, arguments: Iterable[Any]) -> list[Any]:  # Task
    """Submit many by pipelines of a thousand."""
    wanted = [task.enqueue(kind, argument) for argument in arguments]
    for start in range(0, len(wanted), _BATCH):
        await worker.enqueue_many(wanted[start : start + _BATCH])
    return wanted


async def wait(handle: Any) -> None:
    """Wait for the result."""
    await handle.result(timeout=30)


async def finished(handle: Any) -> bool:
    """Tell whether the result is there."""
    return await handle.status() is TaskStatus.DONE
