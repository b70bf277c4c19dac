"""Facts as a fleet may have them, for the tests of what is made of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from orchestra.capabilities import CapabilitySet, Requirement
from orchestra.explanations import Subject
from orchestra.facts import AgentFacts, Facts, Queued
from orchestra.types import HistoryEntry, TaskRecord, TaskState

__all__ = ["NOW", "agent", "ago", "facts", "record"]

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def ago(seconds: float) -> datetime:
    """Return a time in the past."""
    return NOW - timedelta(seconds=seconds)


def agent(name: str = "text@a", can: str = "nlp", **given: Any) -> AgentFacts:
    """Return an agent that takes the tasks of `facts` and has nothing to do."""
    defaults = {
        "can": CapabilitySet.parse(can or ()),
        "tasks": frozenset({"shop.index"}),
        "queues": ("shop:nlp",),
        "running": 0,
        "slots": 2,
        "draining": False,
        "chosen_queues": False,
        "alive": True,
        "stopped": False,
        "seen_at": ago(1),
        "started_at": ago(3600),
        "instance": name.partition("@")[0],
        "mean_seconds": 1.5,
    }
    return AgentFacts(name=name, **{**defaults, **given})


def record(state: TaskState = TaskState.SUBMITTED, **given: Any) -> TaskRecord:
    """Return the record of a task that was submitted 130 s ago."""
    defaults = {
        "task_id": "1",
        "name": "shop.index",
        "requires": "nlp",
        "queue": "shop:nlp",
        "submitted_at": ago(130),
        "history": (HistoryEntry(state=state, at=ago(130)),),
    }
    return TaskRecord(state=state, **{**defaults, **given})


def facts(*agents: AgentFacts, **given: Any) -> Facts:
    """Return what is known of a task that is the third of three in its queue."""
    defaults = {
        "subject": Subject.TASK,
        "about": "1",
        "now": NOW,
        "task": "shop.index",
        "record": record(),
        "place": Queued("shop:nlp", 2),
        "queue": "shop:nlp",
        "requirement": Requirement.parse("nlp"),
        "depth": 3,
        "agents": agents,
    }
    return Facts(**{**defaults, **given})
