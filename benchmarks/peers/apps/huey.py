"""huey, which notifies whoever waits for a result."""

import os
from typing import Any

from huey import RedisHuey

from benchmarks.peers.work import work

__all__ = ["finished", "huey", "submit", "wait"]

huey = RedisHuey("peers", url=os.environ["PEERS_URL"], notify_result=True)
task = huey.task(name="work")(work)


def submit(kind: str, argument: Any) -> Any:  # Result
    """Submit one task."""
    return task(kind, argument)


def wait(handle: Any) -> None:
    """Wait for the result, which is taken out of Redis thereby."""
    handle.get(blocking=True, timeout=30)


def finished(handle: Any) -> bool:
    """Tell whether the result is there."""
    return handle.get(preserve=True) is not None
