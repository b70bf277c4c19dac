"""Who can run what, as a sender sees it: the fleet's agents through a cache, and what a policy makes of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from orchestra.capabilities import CapabilitySet, Requirement
from orchestra.exceptions import ValidationError
from orchestra.logging_utils import get_logger
from orchestra.patience import Patience
from orchestra.queues import QueueNames
from orchestra.registry import AgentEntry, AgentRegistry
from orchestra.unroutable import (
    DeadLetterAfter,
    Fallback,
    FleetView,
    Raise,
    SeenAgent,
    UnroutablePolicy,
    Wait,
    no_capable_agent,
)
from orchestra.utils import TTLCache

__all__ = ["Routability", "view_of"]

_ADVICE: Final = "Start one that does, or submit the task with on_unroutable='wait'."

log = get_logger(__name__)


class Routability:
    """
    Decides where a call goes whose policy isn't to wait.

    An agent that is gone counts for `grace_seconds` more, so that a fleet which is restarted, one by one or all at
    once, looks the same all the time. The view is read again when it's older than `ttl_seconds`, and once before an
    error is raised on its account; a call costs no round trip beyond that.
    """

    def __init__(self, registry: AgentRegistry, names: QueueNames, *, grace_seconds: float, ttl_seconds: float) -> None:
        self._names = names
        self._readings: TTLCache[None, _Reading] = TTLCache(
            lambda _: _Reading(view_of(registry, within_seconds=grace_seconds)), ttl_seconds=ttl_seconds, maxsize=1
        )
        self._told: set[tuple[str, str]] = set()

    def fallback_for(
        self, task: str, requirement: Requirement, policy: UnroutablePolicy, patience: Patience
    ) -> Requirement | None:
        """
        Return the requirement that takes the place of a call's own; None to leave it.

        Raises:
            NoCapableAgentError: nobody can run it, and the policy says to raise.
            BrokerUnavailableError: Redis can't be asked, for as long as there is `patience`.

        """
        match policy:
            case Raise():
                self._require(task, requirement, patience)
                return None
            case Fallback(other):
                if self._able(task, requirement, patience):
                    return None
                self._tell(task, requirement, other)
                return other
            case Wait() | DeadLetterAfter():
                return None

    def _able(self, task: str, requirement: Requirement, patience: Patience) -> bool:
        return self._read(patience).can_run(task, requirement, self._names.name_for(requirement))

    def _require(self, task: str, requirement: Requirement, patience: Patience) -> None:
        if self._able(task, requirement, patience):
            return
        self._readings.clear()  # an agent may have joined since
        now, queue = self._read(patience), self._names.name_for(requirement)
        if not now.can_run(task, requirement, queue):
            what = f"{task} was not submitted"
            raise no_capable_agent(now.view, task, requirement, queue, what=what, advice=_ADVICE)

    def _read(self, patience: Patience) -> "_Reading":
        return patience.insist(lambda: self._readings.get(None))

    def _tell(self, task: str, requirement: Requirement, other: Requirement) -> None:
        """Log a fallback, once for each task and requirement."""
        reason = (task, requirement.text)
        if reason not in self._told:
            self._told.add(reason)
            log.warning("no capable agent", task=task, requires=requirement.text, fallback=other.text)


@dataclass(frozen=True, slots=True)
class _Reading:
    """The fleet as it was read once, and what was asked of it since: large fleets take their time to look through."""

    view: FleetView
    answers: dict[tuple[str, str], bool] = field(default_factory=dict)

    def can_run(self, task: str, requirement: Requirement, queue: str) -> bool:
        """Tell whether any agent can run a task."""
        asked = (task, requirement.text)
        if asked not in self.answers:
            self.answers[asked] = self.view.can_run(requirement, queue, task)
        return self.answers[asked]


def view_of(registry: AgentRegistry, *, within_seconds: float) -> FleetView:
    """Read the agents that live or were seen within so many seconds, in two round trips."""
    roster = registry.roster(within_seconds=within_seconds)
    return FleetView(tuple(_agents([*roster.agents, *roster.former])), roster.now)


def _agents(entries: Iterable[AgentEntry]) -> Iterable[SeenAgent]:
    for entry in entries:
        capabilities = _capabilities(entry.about)
        yield SeenAgent(
            name=entry.name,
            capabilities=capabilities,
            queues=frozenset(entry.queues),
            tasks=entry.tasks,
            alive=entry.alive,
            seen_at=entry.last_beat_at.timestamp(),
        )


def _capabilities(about: Mapping[str, Any]) -> CapabilitySet | None:  # JSON
    """Return what an agent said that it can; None for one with -Q alone, and for what can't be read."""
    text = str(about.get("capabilities") or "")
    try:
        return CapabilitySet.parse(text) if text else None
    except ValidationError:  # written by a newer version
        return None
