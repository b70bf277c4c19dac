"""Stock Celery, whose processes never load ours."""

import os
from collections.abc import Iterable
from typing import Any

from celery import Celery

from benchmarks.peers.work import work

__all__ = ["app", "finished", "submit", "submit_many", "submit_to", "wait"]

_BATCH = 500

app: Any = Celery("peers", broker=os.environ["PEERS_URL"], backend=os.environ["PEERS_URL"], set_as_current=False)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=64,
    broker_connection_retry_on_startup=True,
)
task = app.task(name="work", shared=False)(work)


def submit(kind: str, argument: Any) -> Any:  # AsyncResult
    """Submit one task."""
    return task.delay(kind, argument)


def submit_to(number: int, kind: str, argument: Any) -> Any:  # AsyncResult
    """Submit one task to one of many queues."""
    return task.apply_async((kind, argument), queue=f"skill{number}")


def submit_many(kind: str, arguments: Iterable[Any]) -> list[Any]:  # AsyncResult
    """Submit many by kombu's `Producer.batch`; Celery has no such call of its own."""
    with app.producer_pool.acquire(block=True) as producer, producer.batch(_BATCH):
        return [task.apply_async((kind, argument), producer=producer) for argument in arguments]


def wait(handle: Any) -> None:
    """Wait for the result."""
    handle.get(timeout=30)


def finished(handle: Any) -> bool:
    """Tell whether the result is there."""
    return bool(handle.ready())
