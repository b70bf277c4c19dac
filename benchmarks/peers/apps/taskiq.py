"""taskiq-redis with a stream, which is acknowledged; with PEERS_TASKIQ=list it has a list, which is not."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from taskiq.serializers import ORJSONSerializer
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.peers.work import work_async

__all__ = ["broker", "finished", "session", "submit", "wait"]

_URL = os.environ["PEERS_URL"]
_bare: Any = (
    ListQueueBroker(_URL) if os.environ.get("PEERS_TASKIQ") == "list" else RedisStreamBroker(_URL, consumer_id="0")
)
broker: Any = _bare.with_result_backend(RedisAsyncResultBackend(_URL)).with_serializer(ORJSONSerializer())
task = broker.task(task_name="work")(work_async)


@asynccontextmanager
async def session() -> AsyncIterator[None]:
    """Have the broker open."""
    await broker.startup()
    try:
        yield
    finally:
        await broker.shutdown()


async def submit(kind: str, argument: Any) -> Any:  # AsyncTaskiqTask
    """Submit one task."""
    return await task.kiq(kind, argument)


async def wait(handle: Any) -> None:
    """Wait for the result, by looking once a millisecond."""
    await handle.wait_result(check_interval=0.001, timeout=30)


async def finished(handle: Any) -> bool:
    """Tell whether the result is there."""
    return bool(await handle.is_ready())
