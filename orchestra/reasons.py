"""From the facts about a task to the reasons why it waits; pure, so that every case can be tried."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from orchestra.explanations import AgentFit, Cause, CauseKind, EstimatedWait, Explanation, Subject
from orchestra.facts import AgentFacts, Buried, Delayed, Facts, Leased, Parent, Queued
from orchestra.followers import Link
from orchestra.staffing import causes_of_queue, estimated_wait, fits_of, paused
from orchestra.types import DeadReason, TaskRecord, TaskState
from orchestra.wording import counted, listed, span

__all__ = ["explain"]

_OWN_FAILURES: Final = frozenset({DeadReason.PERMANENT, DeadReason.EXHAUSTED})  # reasons of dead letters
_ENDED: Final = {
    TaskState.SUCCEEDED: CauseKind.SUCCEEDED,
    TaskState.FAILED: CauseKind.FAILED,
    TaskState.CANCELLED: CauseKind.CANCELLED,
    TaskState.EXPIRED: CauseKind.EXPIRED,
}


def explain(facts: Facts) -> Explanation:
    """Return why a task waits, or what a task type or a requirement comes to."""
    fits = fits_of(facts)
    causes = tuple(_causes(facts, fits))
    position = _position(facts)
    waits = facts.record is None or not facts.record.state.finished
    return Explanation(
        subject=Subject.UNKNOWN if causes[0].kind is CauseKind.UNKNOWN else facts.subject,
        about=facts.about,
        causes=causes,
        at=facts.now,
        task=facts.task,
        state=None if facts.record is None else facts.record.state,
        since=None if facts.record is None else _since(facts.record, facts.now),
        requires=None if facts.requirement is None else facts.requirement.text,
        queue=facts.queue,
        position=position if isinstance(facts.place, Queued) else None,
        depth=facts.depth,
        wait=_wait(facts, fits, causes[0], position) if waits else None,
        agents=fits if waits else (),
        nearest=facts.nearest,
    )


def _causes(facts: Facts, fits: Sequence[AgentFit]) -> list[Cause]:
    match facts.subject:
        case Subject.TASK if facts.awaited is not None:
            return [_of_parents(facts)]
        case Subject.TASK if facts.record is not None:
            return _of_record(facts, facts.record, fits)
        case Subject.TASK_TYPE | Subject.REQUIREMENT:
            return causes_of_queue(facts, fits)
        case _:
            return [_unknown(facts)]


def _since(record: TaskRecord, now: datetime) -> datetime | None:
    """Return since when a task stands as it does: one that was delayed waits from its time on."""
    last = record.history[-1].at if record.history else record.submitted_at
    due = record.not_before
    return due if last is not None and due is not None and last < due <= now else last


def _position(facts: Facts) -> int | None:
    """Return the place in the queue, from 1; of what isn't sent, that which it would get."""
    match facts.place:
        case Queued(ahead=ahead):
            return ahead + 1
        case None if facts.record is None and facts.awaited is None and facts.depth is not None:
            return facts.depth + 1
    return None


def _wait(facts: Facts, fits: Sequence[AgentFit], first: Cause, position: int | None) -> EstimatedWait | None:
    if first.until is not None:
        return EstimatedWait(max(0.0, (first.until - facts.now).total_seconds()), "it waits for its time")
    return estimated_wait(facts, fits, position)


# ── what is known of a task that was sent ──


def _of_record(facts: Facts, record: TaskRecord, fits: Sequence[AgentFit]) -> list[Cause]:
    ended = [_ended(record)] if record.state.finished else []
    match facts.place:
        case Buried(reason):
            text = f"Its message is among the dead letters: {reason}."
            dead = Cause(kind=CauseKind.DEAD_LETTERED, text=text, error=reason)
            return [*ended, dead] if ended and reason in _OWN_FAILURES else [dead, *ended]
        case _ if ended:
            return ended
        case Leased() as lease:
            return [_held(facts, record, lease)]
        case Delayed(until) if until > facts.now:
            return [_delayed(facts, record, until)]
        case Queued() | Delayed():
            return [*_overdue(facts), *causes_of_queue(facts, fits), *_tried_before(record)]
    return [_running(facts, record) if record.state is TaskState.RUNNING else _in_no_queue(facts, record)]


def _in_no_queue(facts: Facts, record: TaskRecord) -> Cause:
    return _gone(record) if facts.breaker is None else paused(facts)


def _gone(record: TaskRecord) -> Cause:
    text = (
        f"Its record says {record.state}, and its message is in no queue and with no agent: it was purged, or Redis "
        "lost it. Submit it again."
    )
    return Cause(kind=CauseKind.MESSAGE_GONE, text=text)


def _ended(record: TaskRecord) -> Cause:
    reason = "" if record.error is None else f": {record.error}"
    words = {
        TaskState.SUCCEEDED: f"It succeeded{_on(record)}.",
        TaskState.FAILED: f"It failed{_on(record)}{reason}",
        TaskState.CANCELLED: f"It was cancelled{_note(record)}.",
        TaskState.EXPIRED: "It expired before an agent started it.",
    }
    return Cause(kind=_ENDED[record.state], text=words[record.state], error=record.error, agents=_agent(record))


def _on(record: TaskRecord) -> str:
    tries = f" at attempt {record.attempt}" if record.attempt > 1 else ""
    return f"{f' on {record.agent}' if record.agent else ''}{tries}"


def _note(record: TaskRecord) -> str:
    note = record.history[-1].note if record.history else None
    return f" {note}" if note else ""


def _agent(record: TaskRecord) -> tuple[str, ...]:
    return (record.agent,) if record.agent else ()


def _tried_before(record: TaskRecord) -> list[Cause]:
    """Tell of an attempt that was made, behind what keeps the next one."""
    if record.state is TaskState.RETRYING:
        text = f"It waited for attempt {record.attempt}, since attempt {record.attempt - 1} ended with {record.error}."
        return [Cause(kind=CauseKind.WAITS_FOR_RETRY, text=text, error=record.error)]
    if record.state is TaskState.RUNNING:
        text = f"It ran{_on(record)} before, which was lost, and is to run again."
        return [Cause(kind=CauseKind.RUNNING_ON_LOST_AGENT, text=text, agents=_agent(record))]
    return []


def _overdue(facts: Facts) -> list[Cause]:
    expires = facts.place.expires if isinstance(facts.place, Queued) else None
    if expires is None or expires > facts.now:
        return []
    ago = span((facts.now - expires).total_seconds())
    return [Cause(kind=CauseKind.EXPIRED, text=f"It expired {ago} ago: the agent that takes it drops it.")]


def _delayed(facts: Facts, record: TaskRecord, until: datetime) -> Cause:
    when = f"for another {span((until - facts.now).total_seconds())}, until {_moment(until)}"
    if record.state is TaskState.RETRYING:
        before = f"attempt {record.attempt - 1} ended with {record.error or 'an error'}"
        text = f"It waits {when}, for attempt {record.attempt}: {before}."
        return Cause(kind=CauseKind.WAITS_FOR_RETRY, text=text, until=until, error=record.error)
    return Cause(kind=CauseKind.DELAYED, text=f"It is delayed {when}.", until=until)


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


# ── what an agent has ──


def _held(facts: Facts, record: TaskRecord, lease: Leased) -> Cause:
    agent = next((one for one in facts.agents if one.instance == lease.holder), None)
    name = agent.name if agent is not None else "a consumer that is no agent"
    names = () if agent is None else (agent.name,)
    if lease.started:
        if agent is not None and not agent.alive:
            return _running_on_lost(facts, agent, comes_back=True)
        return Cause(kind=CauseKind.RUNNING, text=f"It runs on {name}{_for(facts, record.started_at)}.", agents=names)
    if agent is not None and not agent.alive:
        text = (
            f"{name} fetched it, did not start it, and was last seen {_ago(facts, agent)}: it goes back to its queue "
            "when another agent takes back what that one held."
        )
        return Cause(kind=CauseKind.FETCHED_BY_LOST_AGENT, text=text, agents=names)
    if lease.kept:
        text = f"{name} holds it back for the rate limit of {record.name or 'its task'}."
        return Cause(kind=CauseKind.RATE_LIMITED, text=text, agents=names)
    text = f"{name} fetched it{_for(facts, lease.fetched_at)} and has not started it yet."
    return Cause(kind=CauseKind.FETCHED, text=text, agents=names)


def _running(facts: Facts, record: TaskRecord) -> Cause:
    """Tell of a task whose record says that it runs, and that nobody has leased: one that runs at most once, say."""
    agent = next((one for one in facts.agents if one.name == record.agent), None)
    before = agent is None or record.started_at is None or agent.started_at <= record.started_at
    if agent is not None and agent.alive and before:
        text = f"It runs on {agent.name}{_for(facts, record.started_at)}."
        return Cause(kind=CauseKind.RUNNING, text=text, agents=(agent.name,))
    if agent is not None and not agent.alive:
        return _running_on_lost(facts, agent, comes_back=False)
    text = f"It ran{_on(record)}, which is gone, and nobody holds its message: a task that runs at most once is lost."
    return Cause(kind=CauseKind.RUNNING_ON_LOST_AGENT, text=text, agents=_agent(record))


def _running_on_lost(facts: Facts, agent: AgentFacts, *, comes_back: bool) -> Cause:
    then = (
        "it goes back to its queue when another agent takes back what that one held"
        if comes_back
        else "nobody holds its message, so it does not come back by itself"
    )
    seen = f"{'stopped' if agent.stopped else 'was last seen'} {_ago(facts, agent)}"
    text = f"It ran on {agent.name}, which {seen}: {then}."
    return Cause(kind=CauseKind.RUNNING_ON_LOST_AGENT, text=text, agents=(agent.name,))


def _ago(facts: Facts, agent: AgentFacts) -> str:
    return f"{span((facts.now - agent.seen_at).total_seconds())} ago"


def _for(facts: Facts, since: datetime | None) -> str:
    return "" if since is None else f" for {span((facts.now - since).total_seconds())}"


# ── what isn't sent yet ──


def _of_parents(facts: Facts) -> Cause:
    """Tell what a follower waits for; `sent` is a task further ahead in its chain."""
    ahead = (*facts.parents, *((facts.sent,) if facts.sent is not None else ()))
    bad = [one for one in ahead if one.state is not None and one.state.finished and not _good(one)]
    if bad:
        first = bad[0]
        why = f": {first.error}" if first.error else ""
        text = f"It is never sent, since {_named(first)}, which it follows, {_ending(first)}{why}"
        return Cause(kind=CauseKind.PARENT_ENDED, text=text, tasks=_ids(bad), error=first.error)
    if facts.awaited is not None and facts.awaited.link is Link.CHORD:
        return _of_chord(facts)
    parent = facts.parents[0]
    text = f"It follows {_named(parent)}, which {_standing(parent)}"
    if facts.sent is not None:
        text += f"; before that, {_named(facts.sent)} {_standing(facts.sent)}"
    ask = facts.sent or parent
    text += f". Ask about that one: orchestra explain {ask.task_id}" if not _good(ask) else "."
    return Cause(kind=CauseKind.WAITS_FOR_PARENT, text=text, tasks=_ids(ahead))


def _of_chord(facts: Facts) -> Cause:
    left = [one for one in facts.parents if not _good(one)]
    of = f"{len(facts.parents) - len(left):,} of {counted(len(facts.parents), 'task')} of its chord"
    if not left:
        return Cause(kind=CauseKind.WAITS_FOR_CHORD, text=f"It follows a chord: {of} are done, and it is sent now.")
    first = f"{_named(left[0])}, which {_standing(left[0])}"
    more = f", and {counted(len(left) - 1, 'other')}" if len(left) > 1 else ""
    text = f"It is the body of a chord: {of} are done. It waits for {first}{more}."
    return Cause(kind=CauseKind.WAITS_FOR_CHORD, text=text, tasks=_ids(left))


def _good(parent: Parent) -> bool:
    return parent.state is TaskState.SUCCEEDED


def _named(parent: Parent) -> str:
    return f"{parent.name} {parent.task_id}".strip()


def _standing(parent: Parent) -> str:
    if parent.state is None:
        return "is not sent yet"
    verbs = {TaskState.SUCCEEDED: "has succeeded", TaskState.RUNNING: "is running", TaskState.RETRYING: "is retrying"}
    return verbs.get(parent.state, "waits")


def _ending(parent: Parent) -> str:
    return "was cancelled" if parent.state is TaskState.CANCELLED else str(parent.state)


def _ids(parents: Sequence[Parent]) -> tuple[str, ...]:
    return tuple(one.task_id for one in parents)


# ── nothing is known ──


def _unknown(facts: Facts) -> Cause:
    if facts.nearest:
        return Cause(
            kind=CauseKind.UNKNOWN, text=f"No task is known by this id or name; near it: {listed(facts.nearest)}."
        )
    days = facts.record_ttl_seconds / 86_400
    text = (
        "Nothing is known of it: it was never submitted, or to another fleet or Redis, or by a sender without Agent "
        f"Orchestra and has not started, or its record is older than {days:g} days."
    )
    return Cause(kind=CauseKind.UNKNOWN, text=text)
