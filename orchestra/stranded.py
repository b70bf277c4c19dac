"""Messages that nobody could run for as long as their policy lets them wait, and how they become dead letters."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from orchestra.capabilities import Requirement
from orchestra.delays import due_at
from orchestra.exceptions import NoCapableAgentError, ValidationError
from orchestra.fleet_view import view_of
from orchestra.queues import CapabilityQueue, QueueNames
from orchestra.registry import AgentRegistry
from orchestra.store import Store, text_of
from orchestra.types import DeadReason, TaskState
from orchestra.unroutable import (
    LONGEST_SECONDS,
    POLICY_HEADER,
    DeadLetterAfter,
    FleetView,
    no_capable_agent,
    parse_policy,
)
from orchestra.utils import error_text

__all__ = ["REASON", "Stranded", "StrandedSweep"]

REASON: Final = DeadReason.UNROUTABLE.value
CHUNK: Final = 100  # messages that are read in one round trip
MOST_READ: Final = 1_000  # messages that one sweep reads in one list; the next one goes on behind them
_ADVICE: Final = "Start one that does, and replay it."


@dataclass(frozen=True, slots=True)
class Stranded:
    """A task whose message went to the dead letters, and the error that whoever waits for it gets."""

    task_id: str
    task: str
    error: NoCapableAgentError


@dataclass(frozen=True, slots=True)
class _Waiting:
    """One message that waits in a list, with a policy to wait no longer than `most_seconds`."""

    raw: bytes
    task_id: str
    task: str
    most_seconds: float
    due: float


@dataclass(frozen=True, slots=True)
class _Unserved:
    """A queue that no live agent serves; `able_at` is when one did last, by Redis's clock."""

    name: str
    queue: CapabilityQueue
    able_at: float


class StrandedSweep:
    """
    Look for messages with the policy `dead_letter_after` that waited for long enough while nobody could run them.

    Only queues are read that no live agent serves, and they're read from their oldest end, a bounded number of messages
    a sweep; a mark in Redis tells where the next one goes on. What an agent fetches meanwhile is left to it.
    One agent sweeps at a time, and none sooner than `pause_seconds` after the last.
    """

    def __init__(
        self,
        store: Store,
        registry: AgentRegistry,
        names: QueueNames,
        *,
        steps: Sequence[str],
        queue_prefix: str,
        pause_seconds: float,
        on_stranded: Callable[[Stranded], None],
    ) -> None:
        self._store = store
        self._registry = registry
        self._names = names
        self._steps = steps
        self._queue_prefix = queue_prefix
        self._pause_seconds = pause_seconds
        self._on_stranded = on_stranded

    def run(self) -> None:
        """Sweep once, unless another agent does or has just done."""
        keys = self._store.keys
        if not self._store.command("SET", keys.sweeping, "1", "NX", "PX", int(self._pause_seconds * 1000)):
            return
        unserved, view = self._unserved()
        for one in unserved:
            for step in self._steps:
                self._sweep(one, f"{self._queue_prefix}{one.name}{step}", view)

    def _unserved(self) -> tuple[list[_Unserved], FleetView]:
        """Return the queues in which messages wait and that no live agent serves."""
        _, suffixes = self._registry.registered()
        queues = {self._names.name(queue): queue for queue in filter(None, map(_read, suffixes))}
        depths = self._registry.depths(list(queues), steps=self._steps)
        view = view_of(self._registry, within_seconds=LONGEST_SECONDS)
        able_at = {name: view.last_able_at(queue.requirement, name, queue.task) for name, queue in queues.items()}
        return [
            _Unserved(name, queue, able_at[name])
            for (name, queue), depth in zip(queues.items(), depths, strict=True)
            if depth and able_at[name] < view.at
        ], view

    def _sweep(self, unserved: _Unserved, key: str, view: FleetView) -> None:
        """Read on in one list, and move what has waited for too long."""
        read = 0
        behind = int(self._store.command("HGET", self._store.keys.swept, key) or 0)  # counted from the oldest end
        while read < MOST_READ:
            raws = self._store.command("LRANGE", key, -behind - CHUNK, -behind - 1)
            if not raws:
                behind = 0
                break
            moved = sum(self._move(one, unserved, key, view) for one in self._overdue(reversed(raws), unserved, view))
            read, behind = read + len(raws), behind + len(raws) - moved
        self._mark(key, behind)

    def _mark(self, key: str, behind: int) -> None:
        if behind:
            self._store.command("HSET", self._store.keys.swept, key, behind)
        else:
            self._store.command("HDEL", self._store.keys.swept, key)

    def _overdue(self, raws: Iterable[bytes], unserved: _Unserved, view: FleetView) -> Iterator[_Waiting]:
        """Yield the messages whose time is up: since they came, and since anybody could run them."""
        waited = view.at - unserved.able_at
        found = [one for one in map(_waiting, raws) if one is not None and one.most_seconds <= waited]
        if not found:
            return
        keys = self._store.keys
        records = self._store.pipeline([("HMGET", keys.task(one.task_id), "state", "submitted") for one in found])
        for one, (state, submitted) in zip(found, records, strict=True):
            since = max(float(submitted or 0), one.due)  # a record that is gone outlived its time
            if view.at - since >= one.most_seconds and not _is_finished(state):
                yield one

    def _move(self, waiting: _Waiting, unserved: _Unserved, key: str, view: FleetView) -> int:
        name, requirement = unserved.name, unserved.queue.requirement
        error = _error(waiting, requirement, name, view)
        if not self._store.run("strand", [key], [self._store.keys.base, waiting.raw, name, REASON, error_text(error)]):
            return 0
        self._on_stranded(Stranded(waiting.task_id, waiting.task, error))
        return 1


def _error(waiting: _Waiting, requirement: Requirement, queue: str, view: FleetView) -> NoCapableAgentError:
    what = f"{waiting.task} became a dead letter after {waiting.most_seconds:g} s in which nobody could run it"
    return no_capable_agent(view.within(0), waiting.task, requirement, queue, what=what, advice=_ADVICE)


def _waiting(raw: bytes) -> _Waiting | None:
    """Read what a message says of itself; None for one that may wait, and for what can't be read."""
    if b"dead_letter_after" not in raw:  # most have no such policy, and reading them takes longer
        return None
    try:
        headers: Any = json.loads(raw)["headers"]
        policy = parse_policy(headers[POLICY_HEADER])
        task_id, task = headers["id"], headers["task"]
        due = due_at(headers) or 0.0
    except (ValidationError, ValueError, LookupError, TypeError, AttributeError):  # an agent judges it, if one comes
        return None
    if not isinstance(policy, DeadLetterAfter) or not isinstance(task_id, str) or not isinstance(task, str):
        return None
    return _Waiting(raw, task_id, task, policy.seconds, due)


def _is_finished(state: object) -> bool:
    """Tell whether a task has been cancelled, say: its message is dropped by whoever fetches it."""
    return state is not None and text_of(state) in {one.value for one in TaskState if one.finished}


def _read(suffix: str) -> CapabilityQueue | None:
    try:
        return CapabilityQueue.from_suffix(suffix)
    except ValidationError:  # written by a newer version
        return None
