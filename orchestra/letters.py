"""What a dead letter is, how it's read, and which ones somebody means."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, Final, TypedDict

from orchestra.capabilities import Requirement
from orchestra.exceptions import ValidationError
from orchestra.state import read_history
from orchestra.types import DeadReason, HistoryEntry

__all__ = ["LISTED", "DeadFilters", "DeadLetter", "DeadPage", "Delivery", "Dropped", "Which", "read_letter"]

LISTED: Final = (  # the fields of a letter's hash, except its message
    *("task_id", "task", "reason", "error", "queue", "requires"),
    *("attempt", "submitted", "history", "deliveries"),
)
_FIELD, _LINE = "\x1f", "\x1e"


class DeadFilters(TypedDict, total=False):
    """
    Which letters are meant: those for which all that is given holds.

    `task` is a task's name, in which `*` and `?` stand for any text and any character; `reason` a `DeadReason`;
    `requires` a label that the task requires, such as `gpu`, or a whole requirement; `since` and `until` bound the time
    at which the message became a letter.
    """

    task: str | None
    reason: str | DeadReason | None
    requires: str | None
    since: datetime | None
    until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What befell a message: with `process` or `agent`, which was lost while its task ran, or it was a `replay`."""

    kind: str
    at: datetime
    agent: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """
    One message that no agent may run, and why.

    `reason` is a `DeadReason`'s text; `died_at` Redis's time in UTC; `attempt` counts from 1. `lost_processes` and
    `lost_agents` count since the letter was last replayed, `deliveries` tells of all. `history` is what the task's
    record held. `message` are the bytes as they were sent; None in lists.
    """

    id: str
    task_id: str | None
    task: str | None
    reason: str
    error: str | None
    died_at: datetime
    queue: str
    requires: str
    attempt: int = 1
    submitted_at: datetime | None = None
    history: tuple[HistoryEntry, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    message: bytes | None = None

    @property
    def lost_processes(self) -> int:
        """How many pool processes the message has cost since it was last replayed."""
        return self._lost("process")

    @property
    def lost_agents(self) -> int:
        """How many agents were lost while they ran it, since it was last replayed."""
        return self._lost("agent")

    def _lost(self, kind: str) -> int:
        kinds = [delivery.kind for delivery in self.deliveries]
        since = len(kinds) - kinds[::-1].index("replay") if "replay" in kinds else 0
        return kinds[since:].count(kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadPage:
    """A part of a list of letters; `cursor` continues it, and is None at its end."""

    letters: tuple[DeadLetter, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """How many letters the bounds have cost so far: for their `age`, or because there were too many, a `surplus`."""

    age: int
    surplus: int


def read_letter(
    letter_id: str,
    died_at: float,
    fields: Mapping[str, Any],  # as Redis has them: bytes, or None
    *,
    requires: str,
) -> DeadLetter:
    """Make a letter of its hash; `requires` is what its queue asks for, where the message itself doesn't say it."""
    known = {name: _lenient(fields.get(name)) for name in LISTED}
    submitted = known["submitted"]
    return DeadLetter(
        id=letter_id,
        task_id=known["task_id"] or None,
        task=known["task"] or None,
        reason=known["reason"],
        error=known["error"] or None,
        died_at=datetime.fromtimestamp(died_at, UTC),
        queue=known["queue"],
        requires=known["requires"] or requires,
        attempt=int(known["attempt"] or 1),
        submitted_at=datetime.fromtimestamp(float(submitted), UTC) if submitted else None,
        history=read_history(known["history"]),
        deliveries=tuple(_delivery(line) for line in known["deliveries"].split(_LINE) if line),
        message=fields.get("raw"),
    )


def _lenient(value: Any) -> str:
    """Read a field, which may hold a piece of a message that anybody has sent."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value or "")


def _delivery(line: str) -> Delivery:
    kind, at, agent, note = line.split(_FIELD, 3)
    return Delivery(kind=kind, at=datetime.fromtimestamp(float(at), UTC), agent=agent or None, note=note or None)


class Which:
    """Filters, read."""

    def __init__(
        self,
        *,
        task: str | None = None,
        reason: str | DeadReason | None = None,
        requires: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> None:
        self.task, self.since, self.until = task, _aware(since), _aware(until)
        self.everything = not (task or reason or requires or since or until)
        self._reason = None if reason is None else _read_reason(reason)
        self._requires = None if requires is None else Requirement.parse(requires)

    def admits(self, letter: DeadLetter) -> bool:
        """Tell whether a letter, of a time that is asked for, is meant."""
        if self._reason is not None and letter.reason != self._reason:
            return False
        if self.task is not None and not fnmatchcase(letter.task or "", self.task):
            return False
        return self._requires is None or self._is_required(letter)

    def _is_required(self, letter: DeadLetter) -> bool:
        asked, text = self._requires, letter.requires
        if asked is None or not text:
            return False
        terms = Requirement.parse(text).terms
        if len(asked.terms) == 1 and asked.text == asked.terms[0].label:
            return any(term.label == asked.text for term in terms)
        return set(asked.terms) <= set(terms)


def _read_reason(reason: str) -> DeadReason:
    try:
        return DeadReason(reason.lower())
    except ValueError:
        names = ", ".join(DeadReason)
        message = f"{reason!r} is no reason for a dead letter; give one of: {names}."
        raise ValidationError(message) from None


def _aware(moment: datetime | None) -> datetime | None:
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)
