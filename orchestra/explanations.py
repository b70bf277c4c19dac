"""Why a task waits: the explanation, as data and in words."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum, auto
from typing import Final

from orchestra.types import TaskState
from orchestra.wording import counted, ordinal, span

__all__ = ["AgentFit", "Cause", "CauseKind", "EstimatedWait", "Explanation", "Subject"]

_MOST_AGENTS: Final = 10  # that are written out


class Subject(StrEnum):
    """What was asked about."""

    TASK = "task"
    TASK_TYPE = "task type"
    REQUIREMENT = "requirement"
    UNKNOWN = "unknown"


class CauseKind(StrEnum):
    """Why a task isn't running, or what it does instead of waiting; the set is closed, and its words stay."""

    # nothing waits
    UNKNOWN = auto()
    SUCCEEDED = auto()
    FAILED = auto()
    CANCELLED = auto()
    EXPIRED = auto()
    DEAD_LETTERED = auto()
    MESSAGE_GONE = auto()  # its record waits, and there is no message: purged, or thrown away by Redis
    # an agent has it
    RUNNING = auto()
    RUNNING_ON_LOST_AGENT = auto()
    FETCHED = auto()
    FETCHED_BY_LOST_AGENT = auto()
    RATE_LIMITED = auto()
    # it isn't time yet
    DELAYED = auto()
    WAITS_FOR_RETRY = auto()
    WAITS_FOR_PARENT = auto()
    WAITS_FOR_CHORD = auto()
    PARENT_ENDED = auto()  # and didn't succeed, so that what follows is never sent
    PAUSED_BY_BREAKER = auto()
    # nobody takes it
    NO_AGENT_ALIVE = auto()
    CAPABLE_AGENT_LOST = auto()
    CAPABLE_AGENT_STOPPED = auto()
    NO_AGENT_SATISFIES = auto()
    TASK_NOT_KNOWN = auto()
    HANDED_ON = auto()
    ALL_DRAINING = auto()
    NOT_SERVED = auto()
    FOREIGN_QUEUE = auto()
    # it's a matter of time
    ALL_BUSY = auto()
    ABOUT_TO_START = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """
    One reason, with its evidence.

    `text` says it in a sentence; `agents` and `tasks` name whom it's about, tasks by id; `until` is when it ends by
    itself, None where nobody knows; `error` is what a task failed with.
    """

    kind: CauseKind
    text: str
    agents: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    until: datetime | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFit:
    """
    How one agent and the task go together.

    `has` is what the agent can, as text, and `lacks` the terms that it doesn't satisfy. `knows_task` is None where no
    task is asked about. `slots` is how many tasks it runs at once, `running` how many it has. `seen_at` is its last
    beat, or when it stopped.
    """

    name: str
    has: str
    lacks: tuple[str, ...]
    knows_task: bool | None
    serves_queue: bool
    draining: bool
    running: int
    slots: int
    alive: bool
    stopped: bool
    seen_at: datetime

    @property
    def takes(self) -> bool:
        """Whether it takes the task once it has a free process."""
        return (
            self.alive and not self.lacks and self.knows_task is not False and self.serves_queue and not self.draining
        )


@dataclass(frozen=True, slots=True)
class EstimatedWait:
    """How long it takes until the task starts, in seconds, and in words what that is reckoned from."""

    seconds: float
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """
    Why a task waits, or what became of it.

    `about` is what was asked: an id, a task's name, a requirement. `causes` has at least one; the first is what to act
    on first. `state`, `since` (of when that is) and `position` (from 1) are None for what is no task, or isn't known;
    `queue`, `depth` and `requires` where no queue is involved, and `requires` also for a queue that isn't the fleet's.
    `agents` are the live ones, the nearest fit first, and those lost or stopped that would fit. `wait` is None where
    nothing is known to reckon with. `nearest` are known names like an unknown one. Times are Redis's.
    """

    subject: Subject
    about: str
    causes: tuple[Cause, ...]
    at: datetime
    task: str | None = None
    state: TaskState | None = None
    since: datetime | None = None
    requires: str | None = None
    queue: str | None = None
    position: int | None = None
    depth: int | None = None
    wait: EstimatedWait | None = None
    agents: tuple[AgentFit, ...] = ()
    nearest: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it as a person reads it, in lines."""
        return "\n".join(self.lines())

    def lines(self, *, most_agents: int = _MOST_AGENTS) -> list[str]:
        """Return it as a person reads it; of the agents only the nearest are written out."""
        causes = sorted(self.causes, key=lambda cause: cause.kind not in _HEADS)  # what the list of agents stands below
        live = [agent for agent in self.agents if agent.alive]
        shown = live if causes[0].kind in _OF_AGENTS else []
        lines = [f"{self._headline()}.", causes[0].text, *_table([_row(agent, self) for agent in shown[:most_agents]])]
        if len(shown) > most_agents:
            lines.append(f"  and {counted(len(shown) - most_agents, 'other agent')}")
        lines += [cause.text for cause in causes[1:]]
        if self.wait is not None and causes[0].until is None:
            lines.append(f"Estimated wait: {_about(self.wait.seconds)} ({self.wait.basis}).")
        return lines

    def _headline(self) -> str:
        waiting = (
            "" if self.depth is None else f"{counted(self.depth, 'task')} {'waits' if self.depth == 1 else 'wait'}"
        )
        match self.subject:
            case Subject.TASK:
                return f"{self.task or 'A task'} {self.about} {self._stands()}"
            case Subject.TASK_TYPE:
                requires = "" if self.requires is None else f"requires {self.requires} and "
                return f"{self.about} {requires}goes to {self.queue}, in which {waiting}"
            case Subject.REQUIREMENT:
                return f"What requires {self.about} goes to {self.queue}, in which {waiting}"
            case _:
                return f"{self.about} is unknown"

    def _stands(self) -> str:
        since = "" if self.since is None else span((self.at - self.since).total_seconds())
        if self.state is None:
            return "is not sent yet"
        if self.state.finished:
            return f"{'was ' if self.state is TaskState.CANCELLED else ''}{self.state} {since} ago"
        if self.position is not None:
            place = f"{ordinal(self.position)} of {max(self.depth or 0, self.position):,}"
            return f"is queued in {self.queue}, {place}, for {since}"
        return f"is {self.state}{f', for {since}' if since else ''}"


_HEADS: Final = frozenset({CauseKind.NO_AGENT_SATISFIES})
_OF_AGENTS: Final = frozenset(
    {
        CauseKind.NO_AGENT_SATISFIES,
        CauseKind.TASK_NOT_KNOWN,
        CauseKind.HANDED_ON,
        CauseKind.ALL_DRAINING,
        CauseKind.NOT_SERVED,
        CauseKind.ALL_BUSY,
        CauseKind.ABOUT_TO_START,
        CauseKind.PAUSED_BY_BREAKER,
    }
)


def _row(agent: AgentFit, about: Explanation) -> tuple[str, str, str]:
    has = f"has {agent.has.replace(',', ', ')}" if agent.has else "has nothing named"
    return agent.name, has, _verdict(agent, about)


def _verdict(agent: AgentFit, about: Explanation) -> str:
    """Say what keeps an agent from the task: the first that has to be changed."""
    if agent.lacks:
        return f"lacks {', '.join(agent.lacks)}"
    if agent.knows_task is False:
        return f"doesn't know {about.task}"
    if agent.draining:
        return "is being drained"
    if not agent.serves_queue:
        return f"doesn't serve {about.queue}"
    return f"runs {agent.running} of {agent.slots}" if agent.running else "is free"


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    first, second = (max((len(row[place]) for row in rows), default=0) for place in (0, 1))
    return [f"  {name:{first}}  {has:{second}}  {verdict}" for name, has, verdict in rows]


def _about(seconds: float) -> str:
    return f"about {span(seconds)}" if seconds else "none"
