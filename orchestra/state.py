"""Where every task's life is written down."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from orchestra.queues import QueueNames
from orchestra.store import Argument, Store, text_of, texts_of
from orchestra.types import HistoryEntry, TaskRecord, TaskState

__all__ = ["StateManager", "advance_arguments"]

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
}
_CANCELLABLE: Final = (TaskState.SUBMITTED, TaskState.RETRYING)
_NOTE_LENGTH: Final = 500
_FIELD, _LINE = "\x1f", "\x1e"


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

    def cancel(self, task_id: str, *, note: str = "") -> TaskState | None:
        """Cancel a task that hasn't started; return the state that stands now, None when the task isn't known."""
        arguments = advance_arguments(
            TaskState.CANCELLED, leaving=_CANCELLABLE, attempt=0, note=note, ttl_seconds=self._ttl_seconds
        )
        return self._advance(task_id, arguments)

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

    def _record(self, task_id: str, fields: Mapping[str, str]) -> TaskRecord | None:
        if "state" not in fields:
            return None
        queue = fields.get("queue", "")
        return TaskRecord(
            task_id=task_id,
            name=fields.get("name", ""),
            requires=self._queues.requires(queue),
            queue=queue,
            state=TaskState(fields["state"]),
            attempt=int(fields.get("attempt", "1")),
            agent=fields.get("agent"),
            submitted_at=_moment(fields.get("submitted")),
            started_at=_moment(fields.get("started")),
            finished_at=_moment(fields.get("finished")),
            error=fields.get("error"),
            history=tuple(_entry(line) for line in fields.get("history", "").split(_LINE) if line),
        )


def advance_arguments(
    state: TaskState,
    *,
    ttl_seconds: float,
    leaving: Sequence[TaskState | None] | None = None,
    agent: str = "",
    attempt: int = 1,
    note: str = "",
    name: str = "",
) -> list[Argument]:
    """Return the arguments of `advance.lua`; `leaving` narrows the states that may be left."""
    states = LEGAL[state] if leaving is None else leaving
    allowed = " ".join("-" if one is None else one.value for one in states)
    return [state.value, f" {allowed} ", agent, attempt, _clean(note), int(ttl_seconds * 1000), name]


def _clean(note: str) -> str:
    """Shorten a note, and take out what parts the fields and lines of a history and what UTF-8 can't hold."""
    text = note[:_NOTE_LENGTH].replace(_FIELD, " ").replace(_LINE, " ")
    return text.encode(errors="backslashreplace").decode()


def _entry(line: str) -> HistoryEntry:
    state, at, agent, attempt, note = line.split(_FIELD)
    return HistoryEntry(
        state=TaskState(state),
        at=datetime.fromtimestamp(float(at), UTC),
        agent=agent or None,
        attempt=int(attempt),
        note=note or None,
    )


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromtimestamp(float(text), UTC)
