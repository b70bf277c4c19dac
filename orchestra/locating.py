"""Where a task's message is: in a queue, put by, with an agent, or among the dead letters."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from math import inf
from typing import Any, Final

from orchestra.facts import Buried, Delayed, Leased, Queued
from orchestra.store import Argument, Store, text_of

__all__ = ["Locator"]

_FIRST_STEP: Final = 8  # entries, whose size tells how many to read next: one may have a megabyte
_BYTES: Final = 500_000  # that one call looks into, which holds Redis for about a millisecond
_BEFORE: Final = 3  # entries before the place where a message should be; what is pushed meanwhile moves it away
_MOST_CALLS: Final = 20_000  # a queue that grows faster than it's read ends the look some time
_KEPT: Final = 1e12  # the time of a lease that waits for its task's rate limit
_EXPIRES: Final = re.compile(rb'"expires": ?"([^"]+)"')
_ID: Final = re.compile(rb'"id": ?("(?:[^"\\]|\\.)*")')


class Locator:
    """
    Looks for messages by the ids in their headers.

    Nothing is indexed for it: a queue is read through, in calls that hold Redis for about a millisecond each. A message
    that moves meanwhile may be missed, so that who finds nothing looks again.
    """

    def __init__(self, store: Store, *, steps: Sequence[str], prefix_queues: str = "") -> None:
        self._store = store
        self._steps = steps
        self._prefix_queues = prefix_queues

    def queued(self, task_id: str, queue: str, submitted_at: datetime | None = None) -> Queued | None:
        """
        Return the place of a task's message in a queue, behind all that is more urgent or was sent before.

        Where `submitted_at` tells its place, as it does of most, little of the queue is read.
        """
        lists = [f"{self._prefix_queues}{queue}{step}" for step in self._steps]
        lengths = [int(length) for length in self._store.pipeline([("LLEN", one) for one in lists])]
        for place, one in enumerate(lists):
            found = self._in_list(one, task_id, submitted_at) if lengths[place] else None
            if found:
                return Queued(queue, sum(lengths[:place]) + int(found[0]), _expires(found[1]))
        return None

    def _in_list(self, key: str, task_id: str, submitted_at: datetime | None) -> Sequence[Any] | None:
        """Look at the oldest first, which most are asked about, then where it should be, then through all."""
        marks = _marks(task_id)
        found = self._look(key, "oldest", marks, calls=1)
        if not found and submitted_at is not None:
            place = self._place_of(key, submitted_at.timestamp())
            found = self._look(key, "list", marks, at=max(0, place - _BEFORE), calls=2)
        return found or self._look(key, "list", marks)

    def _place_of(self, key: str, submitted: float) -> int:
        """
        Return where in a list, from its newest message on, that of a task submitted at a time should be.

        The records of the messages that are there tell; one that has none, or was sent again, may mislead.
        """
        low, high = 0, int(self._store.command("LLEN", key))
        while low < high:
            middle = (low + high) // 2
            other = _ID.search(self._store.command("LINDEX", key, middle) or b"")
            name = self._store.keys.task(json.loads(other[1])) if other else ""
            if float(self._store.command("HGET", name, "submitted") or 0) > submitted:
                low = middle + 1
            else:
                high = middle
        return low

    def leased(self, task_id: str, queue: str) -> Leased | None:
        """Return who has leased a message of a queue."""
        found = self._look(self._store.keys.leased(queue), "leases", _marks(task_id))
        return _lease(found) if found else None

    def held(self, task_id: str, holder: str) -> Leased | None:
        """Return a lease of one holder, whatever the queue."""
        found = self._look(self._store.keys.leases(holder), "held", _marks(task_id))
        return _lease(found) if found else None

    def delayed(self, task_id: str, queue: str) -> Delayed | None:
        """Return until when a message is put by."""
        found = self._look(self._store.keys.delayed(queue), "delayed", _marks(task_id))
        return Delayed(datetime.fromtimestamp(float(found[0]), UTC)) if found else None

    def buried(self, task_id: str) -> Buried | None:
        """Return why a task's message is among the dead letters; letters have the ids of their tasks."""
        reason = self._store.command("HGET", self._store.keys.dead_letter(task_id), "reason")
        return None if reason is None else Buried(text_of(reason))

    def _look(
        self,
        key: str,
        kind: str,
        marks: Sequence[str],
        *,
        at: int = 0,
        calls: int = _MOST_CALLS,
    ) -> Sequence[Any] | None:
        """Return what `locate.lua` tells of a message that it found; None where there is none."""
        step = _FIRST_STEP
        for _ in range(calls):
            arguments: list[Argument] = [self._store.keys.base, kind, at, _BYTES, step, *marks]
            verdict, *found = self._store.run("locate", [key], arguments)
            if text_of(verdict) != "next":
                return found or None
            at, step = int(found[0]), int(found[1])
        return None


def _marks(task_id: str) -> list[str]:
    """Return an id as JSON has it, and how a message's header names it; in no other place is just that written."""
    text = json.dumps(task_id)
    return [text[1:-1], f'"id": {text}', f'"id":{text}']


def _lease(found: Sequence[Any]) -> Leased:
    score = float(found[1] or 0)
    fetched = datetime.fromtimestamp(score, UTC) if 0 < score < _KEPT else None
    return Leased(text_of(found[0]), started=score == inf, kept=score == _KEPT, fetched_at=fetched)


def _expires(raw: bytes | str) -> datetime | None:
    found = _EXPIRES.search(raw.encode() if isinstance(raw, str) else raw)
    try:
        at = datetime.fromisoformat(found[1].decode()) if found else None
    except ValueError:
        return None
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at
