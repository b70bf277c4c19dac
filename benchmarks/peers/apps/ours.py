"""Agent Orchestra as it ships."""

import os
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.work import work
from orchestra import Orchestra, OrchestraCelery

__all__ = ["app", "finished", "submit", "submit_many", "submit_to", "wait"]

app: Any = OrchestraCelery("peers", broker=os.environ["PEERS_URL"], backend=os.environ["PEERS_URL"])
if os.environ.get("PEERS_POOL"):
    app.conf.worker_pool = os.environ["PEERS_POOL"]
task = app.task(name="work", shared=False)(work)
_engine = Orchestra(app)


def submit(kind: str, argument: Any) -> Any:  # AsyncResult
    """Submit one task."""
    return task.delay(kind, argument)


def submit_to(number: int, kind: str, argument: Any) -> Any:  # AsyncResult
    """Submit one task to one of many queues."""
    return task.apply_async((kind, argument), requires=f"skill{number}")


def submit_many(kind: str, arguments: Sequence[Any]) -> Sequence[Any]:  # TaskHandle
    """Submit many at once."""
    return _engine.submit_many("work", [{"kind": kind, "argument": argument} for argument in arguments])


def wait(handle: Any) -> None:
    """Wait for the result."""
    handle.get(timeout=30)


def finished(handle: Any) -> bool:
    """Tell whether the result is there."""
    return bool(app.AsyncResult(handle.id).ready())
