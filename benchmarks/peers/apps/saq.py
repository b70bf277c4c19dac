"""SAQ, whose worker runs a hundred tasks at a time."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from saq import Queue

from benchmarks.peers.work import work_async

__all__ = ["finished", "session", "settings", "submit", "wait"]

_DONE = {"complete", "failed", "aborted"}
_queue = Queue.from_url(os.environ["PEERS_URL"], name="peers")


async def _work(_context: Any, *, kind: str, argument: Any) -> int:
    return await work_async(kind, argument)


settings = {"queue": _queue, "functions": [("work", _work)], "concurrency": 100}


@asynccontextmanager
async def session() -> AsyncIterator[None]:
    """Have the queue connected."""
    await _queue.connect()
    try:
        yield
    finally:
        await _queue.disconnect()


async def submit(kind: str, argument: Any) -> Any:  # Job
    """Submit one task."""
    return await _queue.enqueue("work", kind=kind, argument=argument)


async def wait(handle: Any) -> None:
    """Wait for the result, by looking once a millisecond, as `apply` does; what it's told of may have been before."""
    async with asyncio.timeout(30):
        while not await finished(handle):  # noqa: ASYNC110  # another process's doing
            await asyncio.sleep(0.001)


async def finished(handle: Any) -> bool:
    """Tell whether the result is there."""
    await handle.refresh()
    return handle.status in _DONE
