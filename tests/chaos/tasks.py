"""The tasks that both systems run."""

import time
from collections.abc import Mapping
from typing import Any, Final

from tests.chaos.deeds import DEEDS
from tests.chaos.oracle import call_service, marked, tell_probe

__all__ = ["CALL", "HANG", "PROBE", "STEP", "TOTAL", "WORK", "declare"]

WORK: Final = "chaos.work"
STEP: Final = "chaos.step"
TOTAL: Final = "chaos.total"
HANG: Final = "chaos.hang"
CALL: Final = "chaos.call"
PROBE: Final = "chaos.probe"


def _work(self: Any, number: int, seconds: float, deed: str = "") -> int:  # Celery's task
    """Take so long, do what is to be done, and return the number."""
    with marked(number, self.request.hostname):
        time.sleep(seconds)
        if deed:
            DEEDS[deed]()
    return number


def _step(self: Any, before: int, number: int, seconds: float) -> int:  # Celery's task
    """Take so long, and return one more than the step before."""
    with marked(number, self.request.hostname):
        time.sleep(seconds)
    return before + 1


def _total(self: Any, numbers: list[int], number: int) -> int:  # Celery's task
    """Return the sum."""
    with marked(number, self.request.hostname):
        return sum(numbers)


def _call(self: Any, number: int, seconds: float, _deed: str = "") -> int:  # Celery's task
    """Call a service that may be away, take so long, and return the number."""
    call_service()
    with marked(number, self.request.hostname):
        time.sleep(seconds)
    return number


def _probe(self: Any, seconds: float) -> None:  # Celery's task
    """Show that this agent takes tasks."""
    tell_probe(self.request.hostname)
    time.sleep(seconds)


def declare(app: Any, *, limits: Mapping[str, Any], calls: Mapping[str, Any], **options: Any) -> None:  # Celery or ours
    """Declare the tasks; `limits` are options of the one that may take only so long, `calls` of the one that calls."""
    for name, function in ((WORK, _work), (STEP, _step), (TOTAL, _total), (PROBE, _probe)):
        app.task(name=name, bind=True, shared=False, **options)(function)
    app.task(name=HANG, bind=True, shared=False, **limits, **options)(_work)
    app.task(name=CALL, bind=True, shared=False, **calls, **options)(_call)
