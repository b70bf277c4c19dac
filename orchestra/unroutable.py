"""What is to become of a task that nobody can run: the policies, and who can run what of a fleet as it was seen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from orchestra.capabilities import CapabilitySet, Requirement
from orchestra.exceptions import FieldError, NoCapableAgentError, ValidationError
from orchestra.utils import shorten

__all__ = [
    "FALLBACK_HEADER",
    "POLICY_HEADER",
    "WAIT",
    "DeadLetterAfter",
    "Fallback",
    "FleetView",
    "Raise",
    "SeenAgent",
    "UnroutablePolicy",
    "Wait",
    "no_capable_agent",
    "parse_policy",
    "text_of_policy",
]

LONGEST_SECONDS: Final = 86_400.0  # a day: for as long the registry remembers agents that are gone
RULE: Final = (
    "'wait', 'raise', 'fallback:' and a requirement, such as 'fallback:cpu,mem_gb>=16', or 'dead_letter_after:' and a "
    f"number of seconds from 1 to {LONGEST_SECONDS:g}"
)
_SHOWN: Final = 3  # agents that an error tells of


@dataclass(frozen=True, slots=True)
class Wait:
    """It waits for an agent that can run it."""


@dataclass(frozen=True, slots=True)
class Raise:
    """It isn't submitted; its submitter gets a NoCapableAgentError."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """It goes where tasks with another requirement go."""

    requirement: Requirement


@dataclass(frozen=True, slots=True)
class DeadLetterAfter:
    """It waits, and becomes a dead letter when nobody could run it for so long."""

    seconds: float


UnroutablePolicy: TypeAlias = Wait | Raise | Fallback | DeadLetterAfter

WAIT: Final = Wait()
POLICY_HEADER: Final = "on_unroutable"  # the policy that a message was sent by
FALLBACK_HEADER: Final = "fallback_from"  # the requirement that nobody could satisfy when it was sent


def parse_policy(value: object) -> UnroutablePolicy:
    """
    Read `"wait"`, `"raise"`, `"fallback:cpu,mem_gb>=16"` or `"dead_letter_after:600"`; a policy comes back as it is.

    Raises:
        ValidationError: it is none of these; the message says what is allowed.

    """
    if isinstance(value, (Wait, Raise, Fallback, DeadLetterAfter)):
        return value
    if not isinstance(value, str):
        raise _refused(value)
    name, parted, rest = value.partition(":")
    match name.strip().lower(), bool(parted):
        case "wait", False:
            return WAIT
        case "raise", False:
            return Raise()
        case "fallback", True:
            return Fallback(_requirement(value, rest))
        case "dead_letter_after", True:
            return DeadLetterAfter(_seconds(value, rest))
        case _:
            raise _refused(value)


def text_of_policy(policy: UnroutablePolicy) -> str:
    """Return the canonical text of a policy, which `parse_policy` reads."""
    match policy:
        case Wait():
            return "wait"
        case Raise():
            return "raise"
        case Fallback(requirement):
            return f"fallback:{requirement.text}"
        case DeadLetterAfter(seconds):
            return f"dead_letter_after:{int(seconds) if seconds.is_integer() else seconds}"
        case _:
            assert_never(policy)


def _requirement(value: str, text: str) -> Requirement:
    try:
        return Requirement.parse(text)
    except ValidationError as error:
        raise _refused(value, str(error)) from error


def _seconds(value: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError as error:
        raise _refused(value) from error
    if not (math.isfinite(seconds) and 1 <= seconds <= LONGEST_SECONDS):
        raise _refused(value)
    return seconds


def _refused(value: object, reason: str = "") -> ValidationError:
    shown = shorten(repr(value), 80)
    why = f" ({reason.rstrip('.')})" if reason else ""
    message = f"on_unroutable={shown} is no policy for what nobody can run{why}; give one of: {RULE}."
    return ValidationError(message, errors=[FieldError("on_unroutable", f"give one of: {RULE}", shown)])


# ── who can run what ──


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenAgent:
    """
    One agent, as its beats told of it.

    `capabilities` is None for a worker that serves the queues of its `-Q` alone; `seen_at` is the time of its last
    beat, or of its stop, in s since 1970 by Redis's clock.
    """

    name: str
    capabilities: CapabilitySet | None
    queues: frozenset[str]
    tasks: frozenset[str]
    alive: bool
    seen_at: float

    def lacks(self, requirement: Requirement, queue: str) -> tuple[str, ...]:
        """Return the terms that it doesn't satisfy; none if it serves the queue, whose requirement this is."""
        if queue in self.queues:
            return ()
        if self.capabilities is None:
            return tuple(term.text for term in requirement.terms)
        return requirement.missing(self.capabilities)

    def can_run(self, requirement: Requirement, queue: str, task: str | None) -> bool:
        """Tell whether it may run tasks of this requirement, and knows `task` unless that is None."""
        return (task is None or task in self.tasks) and not self.lacks(requirement, queue)


@dataclass(frozen=True, slots=True)
class FleetView:
    """The agents of a fleet as they were seen at `at`, in s since 1970 by Redis's clock."""

    agents: tuple[SeenAgent, ...]
    at: float

    def within(self, seconds: float) -> "FleetView":
        """Return the view without the agents that were seen last before so many seconds."""
        return FleetView(tuple(one for one in self.agents if one.alive or self.at - one.seen_at <= seconds), self.at)

    def can_run(self, requirement: Requirement, queue: str, task: str | None = None) -> bool:
        """Tell whether any of the agents can run it."""
        return any(one.can_run(requirement, queue, task) for one in self.agents)

    def last_able_at(self, requirement: Requirement, queue: str, task: str | None = None) -> float:
        """Return when an agent was seen last that can run it: `at` for one that lives, minus infinity for none."""
        return max(
            (self.at if one.alive else one.seen_at for one in self.agents if one.can_run(requirement, queue, task)),
            default=-math.inf,
        )


def no_capable_agent(
    view: FleetView, task: str, requirement: Requirement, queue: str, *, what: str, advice: str
) -> NoCapableAgentError:
    """
    Return the error of a task that no agent of the view can run.

    Args:
        view: the fleet.
        task: the task's name.
        requirement: what it requires.
        queue: the queue that it would wait in.
        what: how the message begins, up to its colon.
        advice: how it ends.

    """
    missing = {one.name: one.lacks(requirement, queue) for one in view.agents}
    nearest = sorted(missing, key=lambda name: (len(missing[name]), name))
    unknown_to = tuple(name for name in nearest if not missing[name])
    message = f"{what}: no agent that knows it satisfies {requirement.text}; {_told(missing, nearest)}. {advice}"
    return NoCapableAgentError(
        message,
        task_type=task,
        requirement=requirement.text,
        missing={name: missing[name] for name in nearest if missing[name]},
        unknown_to=unknown_to,
    )


def _told(missing: Mapping[str, tuple[str, ...]], nearest: Sequence[str]) -> str:
    if not nearest:
        return "no agent is known"
    shown = [f"{name} {_shortfall(missing[name])}" for name in nearest[:_SHOWN]]
    more = [f"and {len(nearest) - _SHOWN} more"] if len(nearest) > _SHOWN else []
    known = "1 agent is known" if len(nearest) == 1 else f"{len(nearest)} agents are known"
    return f"{known}: {'; '.join([*shown, *more])}"


def _shortfall(terms: Sequence[str]) -> str:
    return f"lacks {', '.join(terms)}" if terms else "satisfies it and doesn't know the task"
