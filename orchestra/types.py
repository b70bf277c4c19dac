"""The values that pass between the parts: states, urgencies, records."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeAlias, Union

from orchestra.exceptions import FieldError, ValidationError

__all__ = ["Health", "HistoryEntry", "JSONValue", "QueueInfo", "TaskRecord", "TaskState", "Urgency"]

JSONValue: TypeAlias = Union["dict[str, JSONValue]", "list[JSONValue]", str, int, float, bool, None]


class TaskState(StrEnum):
    """Where a task is in its life."""

    SUBMITTED = "submitted"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """Whether the task has come to its end, good or bad."""
        return self in {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED}


class Urgency(StrEnum):
    """How soon a task should run, compared with others that wait in the same queue."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def priority(self) -> int:
        """The step of kombu's Redis transport that it stands for; 0 comes first."""
        return _PRIORITIES[self]

    @classmethod
    def parse(cls, value: "str | Urgency") -> "Urgency":
        """
        Return the urgency that `value` names; upper and lower case are the same.

        Raises:
            ValidationError: there is no such urgency; the message lists those that there are.

        """
        try:
            return cls(value.lower())
        except (ValueError, AttributeError):
            names = ", ".join(cls)
            message = f"{value!r} is no urgency; give one of: {names}."
            raise ValidationError(
                message, errors=[FieldError("urgency", f"give one of: {names}", repr(value)[:60])]
            ) from None


_PRIORITIES = {Urgency.CRITICAL: 0, Urgency.HIGH: 3, Urgency.NORMAL: 6, Urgency.LOW: 9}


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """
    One change of a task's state.

    `at` is in UTC, by Redis's clock; `agent` is None for what no agent did; `attempt` counts from 1.
    """

    state: TaskState
    at: datetime
    agent: str | None = None
    attempt: int = 1
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """
    What is known of a task.

    `requires` is the requirement's canonical text; `agent` the agent that has or had it last; a time is None until it
    comes, and in UTC; `error` is None unless the task failed or is to be tried again.
    """

    task_id: str
    name: str
    requires: str
    queue: str
    state: TaskState
    attempt: int = 1
    agent: str | None = None
    submitted_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: str | None = None
    history: tuple[HistoryEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """
    One queue of the fleet.

    `requires` is the canonical text of what it asks for, `depth` the number of tasks that wait in it, `agents` the
    names of the live agents that serve it.
    """

    name: str
    requires: str
    depth: int
    agents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """
    How the fleet is.

    `redis_ms` is the time of one round trip in milliseconds, None when Redis doesn't answer; `agents` counts the live
    ones, `waiting` the tasks in queues; `unserved` names the queues in which tasks wait without an agent; `problems`
    says in words what is wrong, and is empty when `ok`.
    """

    ok: bool
    redis_ms: float | None
    agents: int
    waiting: int
    unserved: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
