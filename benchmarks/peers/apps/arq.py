"""arq, which looks for tasks by the clock."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import func

from benchmarks.peers.work import work_async

__all__ = ["WorkerSettings", "finished", "session", "submit", "wait"]

_POLL_SECONDS = 0.005  # by default 0.5
_settings = RedisSettings.from_dsn(os.environ["PEERS_URL"])
_pools: list[Any] = []  # ArqRedis, while there is a session


async def _work(_context: Any, kind: str, argument: Any) -> int:
    return await work_async(kind, argument)


class WorkerSettings:
    """What `arq` takes."""

    functions: ClassVar = [func(_work, name="work")]
    redis_settings = _settings
    max_jobs = 100
    poll_delay = _POLL_SECONDS


@asynccontextmanager
async def session() -> AsyncIterator[None]:
    """Have a pool of connections."""
    pool = await create_pool(_settings)
    _pools.append(pool)
    try:
        yield
    finally:
        await pool.aclose()


async def submit(kind: str, argument: Any) -> Any:  # Job
    """Submit one task."""
    return await _pools[0].enqueue_job("work", kind, argument)


async def wait(handle: Any) -> None:
    """Wait for the result, by looking once a millisecond."""
    await handle.result(timeout=30, poll_delay=0.001)


async def finished(handle: Any) -> bool:
    """Tell whether the result is there."""
    return await handle.result_info() is not None
