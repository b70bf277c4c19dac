"""Who publishes at a steady rate, come what may, and remembers which publishes were confirmed."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any, Final

from celery import chain, chord

from tests.chaos.tasks import STEP, TOTAL, WORK
from tests.chaos.workloads import Canvas, Item, Workload

__all__ = ["Producer", "Publish"]

_HUNG_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """
    What became of a publish: confirmed when the call returned, unconfirmed when it raised.

    Times are monotonic. A task may begin at `due`; it's `ready` once its publish was confirmed as well. `result` is
    None where the publish failed, and `expected` is what it should hold in the end.
    """

    item: Item
    due: float
    ready: float
    result: Any | None  # Celery's AsyncResult
    expected: int = 0
    error: str = ""


class Producer:
    """Publishes a workload in a thread; when a publish takes long, those that were due meanwhile follow at once."""

    def __init__(self, app: Any, workload: Workload) -> None:  # Celery or OrchestraCelery
        self.publishes: list[Publish] = []
        self._app = app
        self._workload = workload
        self._ended = Event()
        self._thread = Thread(target=self._run, name="producer", daemon=True)
        self.began = 0.0

    def start(self) -> None:
        """Begin to publish."""
        self.began = time.monotonic()
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether something is left to publish."""
        return self._thread.is_alive()

    def wait(self, *, seconds: float) -> None:
        """Wait until all is published, for so long at the most."""
        self._thread.join(seconds)

    def stop(self) -> None:
        """Publish no more, and wait until the publish under way has ended, unless it never does."""
        self._ended.set()
        self._thread.join(_HUNG_SECONDS)

    def forget(self) -> None:
        """Let go of the results, which tell the backend so."""
        self.publishes.clear()

    def _run(self) -> None:
        for turn, item in enumerate(self._workload.items):
            due = self.began + turn / self._workload.rate
            if self._ended.wait(max(0.0, due - time.monotonic())):
                return
            self.publishes.extend(self._published(item))

    def _published(self, item: Item | Canvas) -> Iterator[Publish]:
        asked = time.monotonic()
        parts = item.items if isinstance(item, Canvas) else (item,)
        results, error = [None] * len(parts), ""
        try:
            results = (
                _SHAPES[item.shape](self._app, parts) if isinstance(item, Canvas) else [self._publish(item, asked)]
            )
        except Exception as raised:  # noqa: BLE001  # whatever a caller may meet leaves the publish unconfirmed
            error = f"{type(raised).__name__}: {raised}"
        told = time.monotonic()
        for part, result, expected in zip(parts, results, _expected(item), strict=True):
            due = asked if part.due is None else self.began + part.due
            yield Publish(item=part, due=due, ready=max(due, told), result=result, expected=expected, error=error)

    def _publish(self, item: Item, asked: float) -> Any:  # Celery's AsyncResult
        countdown = None if item.due is None else max(0.0, self.began + item.due - asked)
        return self._app.tasks[item.task].apply_async((item.number, item.seconds, item.deed), countdown=countdown)


# ── what is published together ──


def _chord(app: Any, items: tuple[Item, ...]) -> list[Any]:  # of Celery's AsyncResult
    *members, body = items
    header = [app.tasks[WORK].s(item.number, item.seconds) for item in members]
    result: Any = chord(header, app=app)(app.tasks[TOTAL].s(body.number))
    return [*result.parent.results, result]


def _chain(app: Any, items: tuple[Item, ...]) -> list[Any]:
    first, *others = items
    steps = [app.tasks[STEP].s(item.number, item.seconds) for item in others]
    result: Any = chain(app.tasks[STEP].s(0, first.number, first.seconds), *steps, app=app).apply_async()
    results = [result]
    while results[0].parent is not None:
        results.insert(0, results[0].parent)
    return results


_SHAPES: Final[Mapping[str, Callable[[Any, tuple[Item, ...]], list[Any]]]] = {"chord": _chord, "chain": _chain}


def _expected(item: Item | Canvas) -> list[int]:
    """Return what each task's result should be."""
    if isinstance(item, Item):
        return [item.number]
    if item.shape == "chain":
        return list(range(1, len(item.items) + 1))
    numbers = [member.number for member in item.items[:-1]]
    return [*numbers, sum(numbers)]
