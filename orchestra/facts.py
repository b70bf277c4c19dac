"""What is known of a task and its fleet, which an explanation is made from."""

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from orchestra.capabilities import CapabilitySet, Requirement
from orchestra.explanations import Subject
from orchestra.followers import Awaited
from orchestra.types import TaskRecord, TaskState

__all__ = ["AgentFacts", "BreakerFacts", "Buried", "Delayed", "Facts", "Leased", "Parent", "Place", "Queued"]


@dataclass(frozen=True, slots=True)
class Queued:
    """The message waits in a list, behind `ahead` others of its queue; `expires` is when nobody wants it any more."""

    queue: str
    ahead: int
    expires: datetime | None = None


@dataclass(frozen=True, slots=True)
class Leased:
    """A holder has fetched the message; `kept` says that it waits there for its rate limit."""

    holder: str
    started: bool
    kept: bool
    fetched_at: datetime | None = None  # None once it's started or kept


@dataclass(frozen=True, slots=True)
class Delayed:
    """The message isn't moved to its queue before this time."""

    until: datetime


@dataclass(frozen=True, slots=True)
class Buried:
    """The message is among the dead letters."""

    reason: str


Place: TypeAlias = Queued | Leased | Delayed | Buried


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFacts:
    """An agent as the registry has it."""

    name: str
    can: CapabilitySet
    tasks: frozenset[str]
    queues: tuple[str, ...]
    running: int
    slots: int
    draining: bool
    chosen_queues: bool  # by -Q alone, whatever tasks require
    alive: bool
    stopped: bool
    seen_at: datetime
    started_at: datetime
    instance: str = ""
    mean_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class BreakerFacts:
    """A circuit breaker that keeps a queue's tasks from starting; `until` is when it tries one."""

    name: str
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Parent:
    """What is known of a task that another one waits for; `state` is None for one that isn't sent yet."""

    task_id: str
    name: str
    state: TaskState | None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """
    All that an explanation is decided by, as it was at one time.

    `requirement` is None for a queue that isn't the fleet's. `place` is where the message is, None where it wasn't
    found. `parents` are those of `awaited`, and `sent` is the nearest task before them that has been sent.
    """

    subject: Subject
    about: str
    now: datetime
    task: str | None = None
    record: TaskRecord | None = None
    place: Place | None = None
    awaited: Awaited | None = None
    parents: tuple[Parent, ...] = ()
    sent: Parent | None = None
    queue: str | None = None
    requirement: Requirement | None = None
    handed_on: bool = False
    depth: int | None = None
    agents: tuple[AgentFacts, ...] = ()
    breaker: BreakerFacts | None = None
    nearest: tuple[str, ...] = ()
    record_ttl_seconds: float = 0.0
