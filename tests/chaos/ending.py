"""How a run ends: when nothing moves any more, what is left, what results there are, and who still takes tasks."""

import time
from collections.abc import Sequence
from contextlib import suppress
from threading import Event
from typing import Any, Final

from celery import states

from tests.chaos.leftovers import leftovers
from tests.chaos.measure import pending
from tests.chaos.oracle import Execution, Oracle
from tests.chaos.producer import Publish
from tests.chaos.servers import Server
from tests.chaos.stage import Stage
from tests.chaos.tasks import PROBE

__all__ = ["alive_agents", "failed_tasks", "missing_results", "settle"]

_QUIET_SECONDS: Final = 2.0  # without an execution, at the end
_STALLED_SECONDS: Final = 40.0  # without an execution, though something is left: it won't come any more
_PATIENCE_SECONDS: Final = 180.0
_LOOK_SECONDS: Final = 0.25
_PROBE_SECONDS: Final = 0.05
_ALIVE_SECONDS: Final = 20.0


def settle(publishes: Sequence[Publish], oracle: Oracle, broker: Server) -> dict[str, int]:
    """
    Wait until everything has run and nothing is left, or until nothing moves any more.

    Returns:
        How many messages are left, by key.

    """
    due = max([time.monotonic(), *(publish.ready for publish in publishes)])
    moved, marks = due, -1
    while True:
        executions = oracle.executions()
        now = time.monotonic()
        before, marks = marks, sum(1 + (execution.ended is not None) for execution in executions)
        moved = max(moved, now) if marks != before else moved
        quiet = now - moved
        if quiet > _STALLED_SECONDS or now - due > _PATIENCE_SECONDS:
            return _left(broker)
        if quiet > _QUIET_SECONDS and not _awaited(publishes, executions) and not _left(broker):
            return {}
        Event().wait(_LOOK_SECONDS)


def _awaited(publishes: Sequence[Publish], executions: Sequence[Execution]) -> list[Publish]:
    awaited = pending(publishes, executions)
    if any(not publish.item.deed for publish in awaited):  # don't ask for the others' results yet
        return awaited
    return [publish for publish in awaited if publish.item.number not in failed_tasks(awaited)]


def failed_tasks(publishes: Sequence[Publish]) -> set[int]:
    """Return the confirmed tasks with a deed that ended as failures, as whoever waits for their results sees it."""
    doers = [publish for publish in publishes if publish.item.deed and publish.result is not None]
    return {publish.item.number for publish in doers if _state(publish) == states.FAILURE}


def _state(publish: Publish) -> str:
    result: Any = publish.result
    return str(result.state)


def _left(broker: Server) -> dict[str, int]:
    with broker.client() as client:
        return dict(leftovers(client))


def missing_results(publishes: Sequence[Publish], executions: Sequence[Execution]) -> list[int]:
    """Return the confirmed tasks that came to their end, and whose result isn't there or isn't theirs."""
    done = {execution.number for execution in executions if execution.ended is not None}
    ran = [publish for publish in publishes if publish.result is not None and publish.item.number in done]
    return [publish.item.number for publish in ran if not _has_result(publish)]


def _has_result(publish: Publish) -> bool:
    result: Any = publish.result
    return bool(result.state == states.SUCCESS and result.get(timeout=10) == publish.expected)


def alive_agents(app: Any, stage: Stage) -> set[str]:  # Celery or OrchestraCelery
    """Return the agents that take a task; probes are sent until each has had one, or for a while."""
    wanted = {agent.name for agent in stage.fleet.agents}
    deadline = time.monotonic() + _ALIVE_SECONDS
    while stage.oracle.probed() != wanted and time.monotonic() < deadline:
        with suppress(Exception):  # then the next one
            app.tasks[PROBE].apply_async((_PROBE_SECONDS,), ignore_result=True)
        Event().wait(_PROBE_SECONDS / len(wanted))
    return stage.oracle.probed() & wanted
