"""
What a task does, by its kind: the same for every system.

| kind | argument | does |
|---|---|---|
| `nothing` | anything | nothing, with a payload if the argument is one |
| `stamped` | when it was sent, in nanoseconds of the monotonic clock | tells how long it has waited |
| `compute` | milliseconds | keeps a core busy for that long |
| `pause` | milliseconds | waits, as for another machine's answer |
"""

import asyncio
import time
from typing import Any

from benchmarks.peers.tally import count

__all__ = ["work", "work_async"]


def work(kind: str, argument: Any) -> int:  # which depends on the kind
    """Do it, and return something small, so that there is a result to keep."""
    if kind == "pause":
        time.sleep(argument / 1_000)
    return _done(kind, argument)


async def work_async(kind: str, argument: Any) -> int:  # which depends on the kind
    """Do it for a system that runs coroutines."""
    if kind == "pause":
        await asyncio.sleep(argument / 1_000)
    return _done(kind, argument)


def _done(kind: str, argument: Any) -> int:  # which depends on the kind
    delay_ns = time.monotonic_ns() - argument if kind == "stamped" else None
    if kind == "compute":
        end = time.thread_time() + argument / 1_000
        while time.thread_time() < end:
            pass
    count(delay_ns)
    return 1
