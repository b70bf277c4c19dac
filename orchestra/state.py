"""Where every task's life is written down."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from orchestra.cancellation import Cancellation, StoredResult, cancel_task
from orchestra.followers import Awaited, awaited_of
from orchestra.queues import QueueNames
from orchestra.store import Argument, Store, text_of, texts_of
from orchestra.types import HistoryEntry, TaskRecord, TaskState

__all__ = ["StateManager", "advance_arguments", "read_history"]

# Which states may be left for which. `None` stands for a task that nothing is known of: one that a stock producer sent,
# or whose record was lost with the server's memory. A finished task is never moved back by late or doubled news;
# only a new publish of its id opens it again.
_OPEN: Final = (None, TaskState.SUBMITTED, TaskState.RUNNING, TaskState.RETRYING)
LEGAL: Final[Mapping[TaskState, tuple[TaskState | None, ...]]] = {
    TaskState.SUBMITTED: (None,),
    TaskState.RUNNING: _OPEN,
    TaskState.RETRYING: _OPEN,
    TaskState.SUCCEEDED: _OPEN,
    TaskState.FAILED: _OPEN,
    TaskState.CANCELLED: _OPEN,
    TaskState.EXPIRED: _OPEN,  # from running too: a copy of it, delivered again after its agent was lost
}
_WAITING: Final = (TaskState.SUBMITTED, TaskState.RETRYING)
_NOTE_LENGTH: Final = 500
_FIELD, _LINE = "\x1f", "\x1e"
_NOT_BEFORE: Final = "not before "  # so a publish notes a delay, and a retry's reason follows it behind a semicolon


class StateManager:
    """
    The records of one fleet's tasks: opened by the publish, advanced by compare-and-set.

    All times are Redis's own, so that the clocks of agents don't matter.
    """

    def __init__(self, store: Store, queues: QueueNames, *, ttl_seconds: float) -> None:
        self._store = store
        self._queues = queues
        self._ttl_seconds = ttl_seconds

    def advance(
        self, task_id: str, state: TaskState, *, agent: str = "", attempt: int = 1, note: str = "", name: str = ""
    ) -> TaskState | None:
        """
        Move a task to `state` if that is legal and `attempt` isn't out of date.

        Returns:
            The state that stands now: `state`, or another one when the move was refused;
            None when it was refused and nothing is known of the task. Attempt 0 stands for the one under way.

        """
        arguments = advance_arguments(
            state, agent=agent, attempt=attempt, note=note, name=name, ttl_seconds=self._ttl_seconds
        )
        return self._advance(task_id, arguments)

    def cancel(self, task_id: str, *, note: str = "", result: StoredResult | None = None) -> Cancellation:
        """
        Cancel a task that hasn't ended, in constant time, and store `result` in the same step.

        An agent that has it isn't told by this; it doesn't begin a cancelled task, and doesn't end one otherwise.
        """
        return cancel_task(self._store, task_id, note=_clean(note), ttl_seconds=self._ttl_seconds, result=result)

    def _advance(self, task_id: str, arguments: Sequence[Argument]) -> TaskState | None:
        _, standing = self._store.run("advance", [self._store.keys.task(task_id)], arguments)
        text = text_of(standing)
        return None if text == "-" else TaskState(text)

    def read(self, task_id: str) -> TaskRecord | None:
        """Return a task's record; None when nothing is known of it, which is not the same as waiting."""
        return self.read_many([task_id])[0]

    def read_many(self, task_ids: Sequence[str]) -> list[TaskRecord | None]:
        """Return the tasks' records in the order given, in one round trip."""
        replies = self._store.pipeline([("HGETALL", self._store.keys.task(task_id)) for task_id in task_ids])
        return [self._record(task_id, texts_of(reply)) for task_id, reply in zip(task_ids, replies, strict=True)]

    def look_up(self, task_ids: Sequence[str]) -> list[tuple[TaskRecord | None, Awaited | None]]:
        """Return the tasks' records, and what those wait for that follow others and aren't sent yet: one round trip."""
        keys = self._store.keys
        names = [name for task_id in task_ids for name in (keys.task(task_id), keys.awaits(task_id))]
        replies = [texts_of(reply) for reply in self._store.pipeline([("HGETALL", name) for name in names])]
        found = zip(task_ids, replies[::2], replies[1::2], strict=True)
        return [(self._record(task_id, record), awaited_of(note)) for task_id, record, note in found]

    def _record(self, task_id: str, fields: Mapping[str, str]) -> TaskRecord | None:
        if "state" not in fields:
            return None
        queue = fields.get("queue", "")
        history = read_history(fields.get("history", ""))
        return TaskRecord(
            task_id=task_id,
            name=fields.get("name", ""),
            requires=self._queues.requires(queue),
            queue=queue,
            state=TaskState(fields["state"]),
            attempt=int(fields.get("attempt", "1")),
            agent=fields.get("agent"),
            submitted_at=_moment(fields.get("submitted")),
            not_before=_not_before(history[-1]) if history else None,
            started_at=_moment(fields.get("started")),
            finished_at=_moment(fields.get("finished")),
            error=fields.get("error"),
            history=history,
        )


def advance_arguments(
    state: TaskState,
    *,
    ttl_seconds: float,
    agent: str = "",
    attempt: int = 1,
    note: str = "",
    name: str = "",
) -> list[Argument]:
    """Return the arguments of `advance.lua`."""
    allowed = " ".join("-" if one is None else one.value for one in LEGAL[state])
    return [state.value, f" {allowed} ", agent, attempt, _clean(note), int(ttl_seconds * 1000), name]


def _clean(note: str) -> str:
    """Shorten a note, and take out what parts the fields and lines of a history and what UTF-8 can't hold."""
    text = note[:_NOTE_LENGTH].replace(_FIELD, " ").replace(_LINE, " ")
    return text.encode(errors="backslashreplace").decode()


def read_history(text: str) -> tuple[HistoryEntry, ...]:
    """Read the history that a record holds, and a dead letter of its task."""
    return tuple(_entry(line) for line in text.split(_LINE) if line)


def _entry(line: str) -> HistoryEntry:
    state, at, agent, attempt, note = line.split(_FIELD)
    return HistoryEntry(
        state=TaskState(state),
        at=datetime.fromtimestamp(float(at), UTC),
        agent=agent or None,
        attempt=int(attempt),
        note=note or None,
    )


def _not_before(last: HistoryEntry) -> datetime | None:
    """Return the time that a task waits for, if its last publish noted one."""
    note = last.note or ""
    if last.state not in _WAITING or not note.startswith(_NOT_BEFORE):
        return None
    try:
        moment = datetime.fromisoformat(note.removeprefix(_NOT_BEFORE).partition(";")[0])
    except ValueError:  # the words of an error
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromtimestamp(float(text), UTC)
