"""The values that pass between the parts: states, urgencies, records."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeAlias, Union

from orchestra.exceptions import FieldError, ValidationError

__all__ = [
    "Cancelled",
    "DeadReason",
    "Health",
    "HistoryEntry",
    "JSONValue",
    "QueueInfo",
    "TaskRecord",
    "TaskState",
    "Unique",
    "Urgency",
]

JSONValue: TypeAlias = Union["dict[str, JSONValue]", "list[JSONValue]", str, int, float, bool, None]


class TaskState(StrEnum):
    """Where a task is in its life."""

    SUBMITTED = "submitted"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # it hadn't started by the time after which nobody wants it

    @property
    def finished(self) -> bool:
        """Whether the task has come to its end, good or bad."""
        return self in {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED}


class DeadReason(StrEnum):
    """Why a message became a dead letter."""

    POISON = "poison"  # too many processes or agents were lost while its task ran
    PERMANENT = "permanent"  # its task failed in a way that trying again can't help
    EXHAUSTED = "exhausted"  # its task failed, and its attempts are used up
    EXPIRED = "expired"  # no agent could start its task in time
    UNDECODABLE = "undecodable"  # it can't be read, or it's no task's message
    UNREGISTERED = "unregistered"  # no agent knows its task
    UNROUTABLE = "unroutable"  # no agent could run it for as long as its policy says
    REJECTED = "rejected"  # its task raised Celery's Reject


class Cancelled(StrEnum):
    """
    What a cancellation found the task doing.

    It's true where the task is cancelled now, also by somebody before; false where there was nothing to cancel any
    more, or nothing is known of the task.
    """

    WAITING = "waiting"  # in its queue: an agent that takes it drops it
    DELAYED = "delayed"  # for its time: it's dropped when that comes
    LEASED = "leased"  # in an agent's hands and not begun: it doesn't begin
    RUNNING = "running"  # its agent is told, and what it still returns isn't kept
    BEFORE = "before"  # it was cancelled already
    FINISHED = "finished"  # it had come to another end
    UNKNOWN = "unknown"  # nothing is known of this id

    def __bool__(self) -> bool:
        """Whether the task is cancelled."""
        return self not in {Cancelled.FINISHED, Cancelled.UNKNOWN}


class Unique(StrEnum):
    """How long a task is the only one with its name and arguments."""

    UNTIL_STARTED = "until_started"
    UNTIL_DONE = "until_done"

    @classmethod
    def parse(cls, value: object) -> "Unique | None":
        """
        Return what `value` names; None stands for a task that isn't unique.

        Raises:
            ValidationError: there is no such thing; the message lists those that there are.

        """
        try:
            return None if value is None else cls(str(value))
        except ValueError:
            names = ", ".join(cls)
            message = f"unique={value!r} makes no sense; give one of: {names}."
            raise ValidationError(
                message, errors=[FieldError("unique", f"give one of: {names}", repr(value)[:60])]
            ) from None


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
    comes, and in UTC; `error` is None unless the task failed or is to be tried again. `not_before` is the time that a
    delayed task waits for, None for one that isn't delayed or has started since; once it's past, the task is due.
    """

    task_id: str
    name: str
    requires: str
    queue: str
    state: TaskState
    attempt: int = 1
    agent: str | None = None
    submitted_at: datetime | None = None
    not_before: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: str | None = None
    history: tuple[HistoryEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """
    One queue of the fleet.

    `requires` is the canonical text of what it asks for, `depth` the number of tasks that wait in it for an agent,
    `delayed` of those that aren't due yet, `leased` of those that agents have fetched and not finished, `parked` of
    those that wait for a breaker to close; a task counts in one of the four. `agents` are the names of the live agents
    that serve it.
    """

    name: str
    requires: str
    depth: int
    delayed: int = 0
    leased: int = 0
    parked: int = 0
    agents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """
    How the fleet is.

    `redis_ms` is the time of one round trip in milliseconds, None when Redis doesn't answer; `agents` counts the live
    ones, `waiting` the tasks that wait in queues for one, without the delayed; `unserved` names the queues in which
    tasks wait without an agent; `problems` says in words what is wrong, and is empty when `ok`.
    """

    ok: bool
    redis_ms: float | None
    agents: int
    waiting: int
    unserved: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
