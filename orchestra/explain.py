"""Gathers what is known of a task, a task type or a requirement, and has it explained."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Final

from orchestra.breaker import WAITS_FOR, CircuitBreaker
from orchestra.capabilities import CapabilitySet, Requirement
from orchestra.exceptions import ValidationError
from orchestra.explanations import Explanation, Subject
from orchestra.facts import AgentFacts, BreakerFacts, Facts, Parent, Place, Queued
from orchestra.followers import Awaited, Link
from orchestra.locating import Locator
from orchestra.queues import CapabilityQueue, QueueNames
from orchestra.reasons import explain
from orchestra.registry import AgentEntry, AgentRegistry
from orchestra.shared_breakers import shared_breakers
from orchestra.state import StateManager
from orchestra.types import TaskRecord, TaskState

__all__ = ["Explainer", "explainer_of"]

_NEAREST: Final = 3
_PER_ROUND_TRIP: Final = 1_000
_MOST_PARENTS: Final = 10_000
_MOST_STEPS: Final = 50  # of a chain that are gone back to find the one that was sent
_LOOKS: Final = 2  # a message that moves while it's looked for is missed
_LIKE_AN_ID: Final = re.compile(r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")
_LIKE_A_NAME: Final = re.compile(r"[^=<>!,]*[A-Z.][^=<>!,]*")  # no operator, and what labels seldom have


@dataclass(frozen=True, slots=True, kw_only=True)
class Explainer:
    """
    Explains for one fleet.

    `tasks` returns the tasks that are known by name, this process's own and the catalogue's; `route` the name of the
    queue that one of them goes to.
    """

    state: StateManager
    registry: AgentRegistry
    breakers: CircuitBreaker
    locator: Locator
    names: QueueNames
    steps: Sequence[str]
    tasks: Callable[[], Iterable[str]]
    route: Callable[[str], str]
    record_ttl_seconds: float

    def explain(self, about: str | Iterable[str] | Requirement) -> Explanation:
        """
        Explain a task by its id, a task type by its name, or a requirement; a text may be any of them.

        An id or a name that nothing is known of is an answer too, with the cause `unknown`.

        Raises:
            ValidationError: a text is empty, or another requirement can't be read.
            BrokerUnavailableError: Redis can't be reached.

        """
        if not isinstance(about, str):
            return self._of_requirement(Requirement.parse(about))
        text = about.strip()
        if not text:
            message = "Nothing was asked about: give a task's id, the name of a task, or a requirement."
            raise ValidationError(message)
        ((record, awaited),) = self.state.look_up([text])
        if awaited is not None and (record is None or record.submitted_at is None):
            return self._of_follower(text, awaited, record)  # with the end that Celery gave it, say, for its parent's
        if record is not None:
            return self._of_record(record)
        return self._of_text(text)

    def _of_text(self, text: str) -> Explanation:
        """Explain what is no task's id that is known."""
        known = {name for name in self.tasks() if not name.startswith("celery.")}
        if text in known:
            return self._of_queue(Subject.TASK_TYPE, text, self.route(text), task=text)
        nearest = tuple(get_close_matches(text, sorted(known), n=_NEAREST))
        if not _LIKE_AN_ID.fullmatch(text) and not nearest and not _LIKE_A_NAME.fullmatch(text):
            return self._of_requirement(Requirement.parse(text))
        facts = Facts(subject=Subject.UNKNOWN, about=text, now=self._everybody()[0], nearest=nearest)
        return explain(replace(facts, record_ttl_seconds=self.record_ttl_seconds))

    def _of_requirement(self, requirement: Requirement) -> Explanation:
        return self._of_queue(Subject.REQUIREMENT, requirement.text, self.names.name_for(requirement))

    def _of_queue(self, subject: Subject, about: str, queue: str, *, task: str | None = None) -> Explanation:
        now, agents = self._everybody()
        facts = Facts(subject=subject, about=about, now=now, task=task, agents=agents)
        return explain(replace(facts, **self._about_queue(queue)))

    # ── a task that was sent ──

    def _of_record(self, record: TaskRecord) -> Explanation:
        now, agents = self._everybody()
        place = self._find(record, agents, now)
        facts = Facts(
            subject=Subject.TASK,
            about=record.task_id,
            now=now,
            task=record.name or None,
            record=record,
            place=place,
            agents=agents,
        )
        queue = place.queue if isinstance(place, Queued) else record.queue
        waits_for = _breaker_of(record) if place is None else ""
        return explain(replace(facts, **self._about_queue(queue, waits_for)) if queue else facts)

    def _find(self, record: TaskRecord, agents: Sequence[AgentFacts], now: datetime) -> Place | None:
        """Return where the task's message is; None where it's in no place, as that of a finished task."""
        task_id, look = record.task_id, self.locator
        if record.state.finished:
            return look.buried(task_id) if record.state is TaskState.FAILED else None
        if record.state is TaskState.RUNNING:
            holder = next((one.instance for one in agents if one.name == record.agent and one.instance), None)
            held = None if holder is None else look.held(task_id, holder)
            if held is not None:
                return held
        queues = [record.queue, *self._handed_on(record)] if record.queue else []
        looks: list[Callable[[str, str], Place | None]] = [
            lambda task_id, queue: look.queued(task_id, queue, record.submitted_at),
            look.leased,
            look.delayed,
        ]
        if record.not_before is not None and record.not_before > now:
            looks.reverse()
        for _ in range(_LOOKS):
            found = (one(task_id, queue) for queue in queues for one in looks)
            place = next((one for one in found if one is not None), None)
            if place is not None:
                return place
            ((standing, _),) = self.state.look_up([task_id])
            if standing is None or standing.state is not record.state:
                break
        return look.buried(task_id)

    def _handed_on(self, record: TaskRecord) -> list[str]:
        """Return the queue that an agent which doesn't know the task hands it on to."""
        queue = self._queue(record.queue)
        if queue is None or queue.task is not None or not record.name:
            return []
        return [self.names.name(CapabilityQueue(queue.requirement, record.name))]

    # ── a task that isn't sent yet ──

    def _of_follower(self, task_id: str, awaited: Awaited, record: TaskRecord | None) -> Explanation:
        parents, sent = self._parents(awaited)
        return explain(
            Facts(
                subject=Subject.TASK,
                about=task_id,
                now=self._everybody()[0],
                task=awaited.name,
                record=record,
                awaited=awaited,
                parents=parents,
                sent=sent,
            )
        )

    def _parents(self, awaited: Awaited) -> tuple[tuple[Parent, ...], Parent | None]:
        """Return what a task waits for, and where that isn't sent yet, the nearest task before it that is."""
        after = awaited.after[:_MOST_PARENTS]
        parts = [after[at : at + _PER_ROUND_TRIP] for at in range(0, len(after), _PER_ROUND_TRIP)]
        found = [one for part in parts for one in self.state.look_up(part)]
        parents = tuple(_parent(task_id, *one) for task_id, one in zip(after, found, strict=True))
        record, note = found[0] if found else (None, None)
        steps = 0
        while record is None and note is not None and awaited.link is Link.CHAIN and steps < _MOST_STEPS:
            before = note.after[0]
            ((record, note),) = self.state.look_up([before])
            if record is not None:
                return parents, _parent(before, record, note)
            steps += 1
        return parents, None

    # ── what all share ──

    def _everybody(self) -> tuple[datetime, tuple[AgentFacts, ...]]:
        """Return Redis's time, and all agents: the live, the lost and the stopped ones."""
        roster = self.registry.roster()
        agents = [_agent(entry) for entry in roster.agents]
        return datetime.fromtimestamp(roster.now, UTC), (*agents, *(_agent(one, stopped=True) for one in roster.former))

    def _about_queue(self, name: str, waits_for: str = "") -> dict[str, Any]:  # fields of Facts
        """Return what is known of a queue; `waits_for` names the breaker that a task says it waits for."""
        queue = self._queue(name)
        (backlog,) = self.registry.backlogs([name], steps=self.steps)
        return {
            "queue": name,
            "requirement": None if queue is None else queue.requirement,
            "handed_on": queue is not None and queue.task is not None,
            "depth": backlog.waiting,
            "breaker": self._breaker(name, waits_for),
        }

    def _breaker(self, queue: str, waits_for: str) -> BreakerFacts | None:
        """Return the breaker that holds a task off, or all tasks of its queue; None where it's closed."""
        held_off = self.breakers.held_off()
        if not held_off:
            return None
        name = waits_for or shared_breakers(self.registry.catalogue(), self.names).get(queue, "")
        return BreakerFacts(name, held_off[name]) if name in held_off else None

    def _queue(self, name: str) -> CapabilityQueue | None:
        """Return what a queue asks for; None for one that isn't the fleet's."""
        suffix = self.names.suffix(name)
        try:
            return None if suffix is None else CapabilityQueue.from_suffix(suffix)
        except ValidationError:
            return None


def explainer_of(app: Any) -> Explainer:  # OrchestraCelery, which is built on this
    """Return what explains for an app's fleet."""
    return Explainer(
        state=app.state,
        registry=app.registry,
        breakers=app.breakers,
        locator=Locator(app.store, steps=app.priority_steps, prefix_queues=app.prefix_queues),
        names=app.queue_names,
        steps=app.priority_steps,
        tasks=lambda: {*app.tasks, *app.catalogue.names()},
        route=app.queue_of,
        record_ttl_seconds=app.settings.state_ttl_seconds,
    )


def _breaker_of(record: TaskRecord) -> str:
    """Return the breaker that a task waits for, as its record says; empty for none."""
    note = (record.history[-1].note or "") if record.history else ""
    return note.removeprefix(WAITS_FOR) if note.startswith(WAITS_FOR) else ""


def _parent(task_id: str, record: TaskRecord | None, awaited: Awaited | None) -> Parent:
    if record is not None:
        return Parent(task_id, record.name, record.state, record.error)
    return Parent(task_id, "" if awaited is None else awaited.name, None)


def _agent(entry: AgentEntry, *, stopped: bool = False) -> AgentFacts:
    about: Mapping[str, Any] = entry.about
    return AgentFacts(
        name=entry.name,
        can=_capabilities(about.get("capabilities") or ""),
        tasks=entry.tasks,
        queues=entry.queues,
        running=entry.running,
        slots=about.get("concurrency") or 1,
        draining=entry.draining,
        chosen_queues=bool(about.get("chosen_queues")),
        alive=entry.alive,
        stopped=stopped,
        seen_at=entry.last_beat_at,
        started_at=entry.started_at,
        instance=entry.instance,
        mean_seconds=entry.mean_seconds,
    )


@lru_cache(maxsize=1024)
def _capabilities(text: str) -> CapabilitySet:
    return CapabilitySet.parse(text or ())
