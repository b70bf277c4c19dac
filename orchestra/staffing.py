"""Who of a fleet takes a queue's tasks, what keeps the others from it, and how long a task waits for them."""

from collections.abc import Iterable, Sequence
from typing import Final

from orchestra.capabilities import GENERAL
from orchestra.explanations import AgentFit, Cause, CauseKind, EstimatedWait
from orchestra.facts import AgentFacts, Facts
from orchestra.wording import counted, listed, ordinal, span

__all__ = ["causes_of_queue", "estimated_wait", "fits_of", "paused"]

_NAMED: Final = 3  # agents in a sentence; the list has all


# ── each agent by itself ──


def fits_of(facts: Facts) -> tuple[AgentFit, ...]:
    """Return how the live agents fit, the nearest first, and behind them the lost and stopped ones that would fit."""
    if facts.queue is None:
        return ()
    fits = [_fit(agent, facts) for agent in facts.agents]
    live = sorted((fit for fit in fits if fit.alive), key=_distance)
    gone = [fit for fit in fits if not fit.alive and not fit.lacks and fit.knows_task is not False]
    return (*live, *sorted(gone, key=lambda fit: fit.seen_at, reverse=True))


def _fit(agent: AgentFacts, facts: Facts) -> AgentFit:
    serves = facts.queue in agent.queues
    return AgentFit(
        name=agent.name,
        has=str(agent.can),
        lacks=() if serves and agent.alive else _lacks(agent, facts),
        knows_task=None if facts.task is None else facts.task in agent.tasks,
        serves_queue=serves,
        draining=agent.draining,
        running=agent.running,
        slots=agent.slots,
        alive=agent.alive,
        stopped=agent.stopped,
        seen_at=agent.seen_at,
    )


def _lacks(agent: AgentFacts, facts: Facts) -> tuple[str, ...]:
    if facts.requirement is None or (agent.chosen_queues and facts.requirement == GENERAL):
        return ()  # nothing is asked of an agent but that it serves the queue
    return facts.requirement.missing(agent.can)


def _distance(fit: AgentFit) -> tuple[object, ...]:
    return (
        len(fit.lacks),
        fit.knows_task is False,
        fit.draining,
        not fit.serves_queue,
        fit.running >= fit.slots,
        fit.name,
    )


# ── all together ──


def causes_of_queue(facts: Facts, fits: Sequence[AgentFit]) -> list[Cause]:
    """Return why nobody takes what waits in the queue, or who is about to; what to act on first comes first."""
    by_breaker = [paused(facts)] if facts.breaker is not None else []
    return [*by_breaker, *(_unstaffed(facts, fits) or [_time_alone(facts, [fit for fit in fits if fit.takes])])]


def paused(facts: Facts) -> Cause:
    """Return the cause that a breaker is."""
    breaker = facts.breaker
    name, until = ("", None) if breaker is None else (breaker.name, breaker.until)
    when = "" if until is None else f" It is tried again in {span((until - facts.now).total_seconds())}."
    text = f"The circuit breaker {name} is open: its tasks wait until what they call works again.{when}"
    return Cause(kind=CauseKind.PAUSED_BY_BREAKER, text=text, until=until)


def _unstaffed(facts: Facts, fits: Sequence[AgentFit]) -> list[Cause]:
    """Return why no live agent takes the task at all; none where one does."""
    live = [fit for fit in fits if fit.alive]
    gone = [_gone(facts, fit) for fit in _latest_gone(fits)]
    if not live:
        return [Cause(kind=CauseKind.NO_AGENT_ALIVE, text="No agent is alive."), *gone]
    if facts.requirement is None and not any(fit.serves_queue for fit in live):
        text = f"No live agent of this fleet serves {facts.queue}, which is no queue of a requirement: who sends there?"
        return [Cause(kind=CauseKind.FOREIGN_QUEUE, text=text), *gone]
    able = [fit for fit in live if not fit.lacks]
    if not able:
        return [*gone, Cause(kind=CauseKind.NO_AGENT_SATISFIES, text=f"No live agent can run {_it(facts)}.")]
    kept = _kept(facts, able)
    return [] if kept is None else [kept, *gone]


def _kept(facts: Facts, able: Sequence[AgentFit]) -> Cause | None:
    """Return what keeps all agents that satisfy the requirement from the task; None where one takes it."""
    knowing = [fit for fit in able if fit.knows_task is not False]
    if not knowing:
        return _unknown(facts, able)
    willing = [fit for fit in knowing if not fit.draining]
    if not willing:
        return _all(CauseKind.ALL_DRAINING, knowing, "can run {it}, and {takes} no more tasks: {drains}", facts)
    if not any(fit.serves_queue for fit in willing):
        served = f"could run {{it}}, and {{does}} not serve {facts.queue}"
        return _all(CauseKind.NOT_SERVED, willing, served, facts)
    return None


def _it(facts: Facts) -> str:
    return "it" if facts.record is not None or facts.task is not None else "such a task"


def _all(kind: CauseKind, fits: Sequence[AgentFit], words: str, facts: Facts) -> Cause:
    one = len(fits) == 1
    said = words.format(
        it=_it(facts),
        takes="takes" if one else "take",
        does="does" if one else "do",
        drains="it is being drained" if one else "they are being drained",
    )
    names = _names(fits)
    return Cause(kind=kind, text=f"{listed(names, _NAMED)} {said}.", agents=names)


def _unknown(facts: Facts, able: Sequence[AgentFit]) -> Cause:
    names = _names(able)
    who = f"{listed(names, _NAMED)} {'satisfies' if len(names) == 1 else 'satisfy'} its requirement"
    doesnt = f"{'does' if len(names) == 1 else 'do'} not know {facts.task}"
    if facts.handed_on:
        text = f"An agent that does not know {facts.task} handed it on; it waits for one that does. {who} and {doesnt}."
        return Cause(kind=CauseKind.HANDED_ON, text=text, agents=names)
    return Cause(kind=CauseKind.TASK_NOT_KNOWN, text=f"{who} and {doesnt}.", agents=names)


def _latest_gone(fits: Iterable[AgentFit]) -> list[AgentFit]:
    """Return the agents that were lost, then those that stopped, of each kind the latest."""
    gone = [fit for fit in fits if not fit.alive]
    kinds = ([fit for fit in gone if fit.stopped is stopped] for stopped in (False, True))
    return [max(kind, key=lambda fit: fit.seen_at) for kind in kinds if kind]


def _gone(facts: Facts, fit: AgentFit) -> Cause:
    ago = span((facts.now - fit.seen_at).total_seconds())
    kind = CauseKind.CAPABLE_AGENT_STOPPED if fit.stopped else CauseKind.CAPABLE_AGENT_LOST
    what = f"stopped {ago} ago" if fit.stopped else f"was last seen {ago} ago"
    return Cause(kind=kind, text=f"An agent that could run {_it(facts)}, {fit.name}, {what}.", agents=(fit.name,))


def _time_alone(facts: Facts, takers: Sequence[AgentFit]) -> Cause:
    free = [fit for fit in takers if fit.running < fit.slots]
    names = _names(free or takers)
    if free:
        text = (
            f"{listed(names, _NAMED)} {'has' if len(free) == 1 else 'have'} a free process and can take {_it(facts)}."
        )
        return Cause(kind=CauseKind.ABOUT_TO_START, text=text, agents=names)
    running, slots = sum(fit.running for fit in takers), sum(fit.slots for fit in takers)
    busy = f"{counted(running, 'task')} on {counted(slots, 'process', 'processes')}"
    who = "The agent that can" if len(takers) == 1 else f"All {len(takers):,} agents that can"
    text = f"{who} run {_it(facts)} {'is' if len(takers) == 1 else 'are'} busy: {busy}."
    return Cause(kind=CauseKind.ALL_BUSY, text=text, agents=names)


def _names(fits: Iterable[AgentFit]) -> tuple[str, ...]:
    return tuple(fit.name for fit in fits)


# ── how long ──


def estimated_wait(facts: Facts, fits: Sequence[AgentFit], position: int | None) -> EstimatedWait | None:
    """
    Return how long the task at a position (from 1) waits; None where nobody takes it, or none of those has run any.

    It's reckoned as if these agents served no other queue, and nothing more urgent came.
    """
    takers = {fit.name: fit for fit in fits if fit.takes}
    if position is None or not takers or facts.breaker is not None:
        return None
    slots = sum(max(fit.slots, 1) for fit in takers.values())
    staff = f"{counted(len(takers), 'agent')} with {counted(slots, 'process', 'processes')}"
    free = sum(max(0, fit.slots - fit.running) for fit in takers.values())
    if position <= free:
        return EstimatedWait(0.0, f"{staff}, {free:,} of them free")
    mean = _mean_seconds([agent for agent in facts.agents if agent.alive and agent.name in takers])
    if mean is None:
        return None
    place = f"{ordinal(position)} of {max(facts.depth or 0, position):,}"
    return EstimatedWait(position / slots * mean, f"{place}, {staff}, {span(mean)} a task")


def _mean_seconds(agents: Sequence[AgentFacts]) -> float | None:
    """Return how long a task takes on these agents, the larger ones counting more; None where no one knows."""
    known = [(agent.mean_seconds, max(agent.slots, 1)) for agent in agents if agent.mean_seconds is not None]
    slots = sum(weight for _, weight in known)
    return sum(mean * weight for mean, weight in known) / slots if slots else None
