"""The fleet's circuit breakers: told of failures, opened and closed, and looked at."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from orchestra.breaker_policy import Breaker
from orchestra.exceptions import AgentOrchestraException
from orchestra.logging_utils import get_logger
from orchestra.store import Store, pairs_of, text_of, texts_of

__all__ = [
    "WAITS_FOR",
    "Admission",
    "Answer",
    "BreakerChange",
    "BreakerPhase",
    "BreakerState",
    "CircuitBreaker",
    "Said",
]

WAITS_FOR: Final = "waits for breaker "  # so `scripts/start.lua` notes a task that waits, before the breaker's name
_EVENTS: Final = {"open": "breaker opened", "half_open": "breaker half open", "closed": "breaker closed"}

Said: TypeAlias = Literal["failed", "succeeded", "nothing"]

log = get_logger(__name__)


class BreakerPhase(StrEnum):
    """How a breaker stands: calls are made, held up, or tried."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerChange:
    """
    One change of a breaker's state.

    `at` is in UTC, by Redis's clock; `by` is the agent that brought it about, or who else did; `failures` and `calls`
    are what the window held when it opened, 0 else.
    """

    state: BreakerPhase
    at: datetime
    by: str
    failures: int = 0
    calls: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerState:
    """
    One breaker, as the whole fleet has it.

    `since` is None where it never changed; `until` is when an open one lets calls be tried, None for one that somebody
    has opened without an end (`forced`). `failures` of the `calls` within the window have failed, in an open one those
    that opened it. `probes` are the places reserved now, of `places`; `waiting` counts the tasks that wait for it.
    `changes` are the last ones, the newest first.
    """

    name: str
    state: BreakerPhase
    forced: bool = False
    since: datetime | None = None
    until: datetime | None = None
    failures: int = 0
    calls: int = 0
    probes: int = 0
    places: int = 1
    waiting: int = 0
    changes: tuple[BreakerChange, ...] = ()


class Admission(NamedTuple):
    """A call that was let in: under which epoch of its breaker, by which lease, whether as a probe, for which task."""

    breaker: str
    epoch: str
    lease: str
    probe: bool
    task_id: str = ""
    attempt: int = 1
    record_ttl_seconds: float = 604_800.0


class Answer(NamedTuple):
    """What a report came to: the state that the breaker changed to, None for none, and whether the task went back."""

    changed: BreakerPhase | None
    returned: bool


class CircuitBreaker:
    """The breakers of one fleet; a change is logged where it's made, with the agent or person that made it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # ── for tasks ──

    def report(self, call: Admission, said: Said, policy: Breaker, *, by: str, may_run_again: bool = False) -> Answer:
        """
        Tell what a call says of the service.

        With `may_run_again` the task of a probe that failed goes to the back of its queue, on the attempt that it's on.
        Where Redis is away that is logged and forgotten: a breaker isn't to be one more thing that can fail.
        """
        limits = (policy.failures, policy.ratio, policy.window, policy.cooldown, policy.probes)
        try:
            told = self._store.run(
                "report",
                [self._store.keys.task(call.task_id)],
                [
                    *(self._store.keys.base, call.breaker, call.epoch, call.lease, said, by, *limits),
                    *(int(may_run_again), call.attempt, int(call.record_ttl_seconds * 1000)),
                ],
            )
        except AgentOrchestraException as error:
            log.warning("breaker not told", breaker=call.breaker, said=said, error=str(error))
            return Answer(None, returned=False)
        changed, failures, calls, until, returned = map(text_of, told)
        if changed:
            self.announce(call.breaker, changed, by=by, failures=int(failures), calls=int(calls), until=until)
        return Answer(BreakerPhase(changed) if changed else None, returned=returned == "1")

    def announce(self, name: str, changed: str, *, by: str, **about: object) -> None:
        """Log a change of state: a warning where failures opened it, which somebody may want to look into."""
        told = {field: value for field, value in about.items() if value}
        write = log.warning if about.get("failures") else log.info
        write(_EVENTS[changed], breaker=name, by=by, **told)

    # ── for people ──

    def open(self, name: str, *, by: str, seconds: float | None = None, policy: Breaker | None = None) -> None:
        """Open a breaker, until somebody closes it or for so many seconds, after which calls are tried."""
        known = ("", "") if policy is None else (policy.cooldown, policy.probes)
        self._store.run(
            "steer_breaker", [], [self._store.keys.base, name, "open", by, "" if seconds is None else seconds, *known]
        )
        self.announce(name, BreakerPhase.OPEN, by=by, seconds=seconds)

    def close(self, name: str, *, by: str) -> bool:
        """Close a breaker and forget its window; return False when it was closed already."""
        return self._shut(name, "close", by)

    def reset(self, name: str, *, by: str) -> bool:
        """Close a breaker, and have it listed only once it's called again; return False when it was closed already."""
        return self._shut(name, "reset", by)

    def _shut(self, name: str, act: str, by: str) -> bool:
        closed = bool(self._store.run("steer_breaker", [], [self._store.keys.base, name, act, by]))
        if closed:
            self.announce(name, BreakerPhase.CLOSED, by=by)
        return closed

    def names(self) -> list[str]:
        """Return the names of the breakers that were called within a day, or aren't closed."""
        return sorted(map(text_of, self._store.command("ZRANGE", self._store.keys.breakers, 0, -1)))

    def held_off(self) -> dict[str, datetime | None]:
        """Return the names of the breakers that aren't closed, with the time when calls are tried; None: no end."""
        keys = self._store.keys
        names = [text_of(name) for name in self._store.command("ZRANGEBYSCORE", keys.breakers, "+inf", "+inf")]
        untils = self._store.pipeline([("HGET", keys.breaker(name), "until") for name in names]) if names else []
        return {name: _moment(text_of(at)) if at else None for name, at in zip(names, untils, strict=True)}

    def states(self) -> list[BreakerState]:
        """Return these breakers, by name, each with its last changes."""
        names, changes = self.names(), self._changes()
        now, *states = self._read(names)
        return [
            replace(_state(name, now, reply), changes=tuple(changes.get(name, ())))
            for name, reply in zip(names, states, strict=True)
        ]

    def _read(self, names: Sequence[str]) -> list[Any]:
        """Return Redis's time in s, then of each breaker what its four keys hold, in one round trip."""
        keys = self._store.keys
        commands: list[tuple[Any, ...]] = [("TIME",)]
        for name in names:
            commands += [("HGETALL", keys.breaker(name)), ("HGETALL", keys.breaker_calls(name))]
            commands += [("ZCARD", keys.breaker_probes(name)), ("ZCARD", keys.parked(name))]
        (seconds, micros), *replies = self._store.pipeline(commands)
        return [int(seconds) + int(micros) / 1e6, *(replies[at : at + 4] for at in range(0, len(replies), 4))]

    def _changes(self) -> dict[str, list[BreakerChange]]:
        changes: dict[str, list[BreakerChange]] = {}
        for entry in self._store.command("LRANGE", self._store.keys.breaker_changes, 0, -1):
            fields = json.loads(entry)
            changes.setdefault(fields["name"], []).append(_change(fields))
        return changes


def _change(fields: Mapping[str, Any]) -> BreakerChange:
    return BreakerChange(
        state=BreakerPhase(fields["state"]),
        at=_moment(fields["at"]),
        by=fields["by"],
        failures=int(fields["failures"]),
        calls=int(fields["calls"]),
    )


def _state(name: str, now: float, reply: Sequence[Any]) -> BreakerState:
    fields, window, probes, waiting = texts_of(reply[0]), _counts(reply[1]), int(reply[2]), int(reply[3])
    until = float(fields.get("until") or 0)
    phase = BreakerPhase(fields.get("state", "closed"))
    if phase is BreakerPhase.OPEN and until and until <= now:
        phase = BreakerPhase.HALF_OPEN  # the next call is tried
    is_open = phase is not BreakerPhase.CLOSED
    return BreakerState(
        name=name,
        state=phase,
        forced=fields.get("forced") == "1",
        since=_moment(fields["since"]) if "since" in fields else None,
        until=_moment(fields["until"]) if phase is BreakerPhase.OPEN and until else None,
        failures=int(fields.get("failures", 0)) if is_open else window["f"],
        calls=int(fields.get("calls", 0)) if is_open else max(window["c"], window["f"]),
        probes=probes,
        places=int(fields.get("probes", 1)),
        waiting=waiting,
    )


def _counts(reply: Any) -> dict[str, int]:
    """Add up the calls of a window, whose tenths go with their key before long."""
    sums = {"c": 0, "f": 0}
    for field, count in pairs_of(reply):
        kind, at = text_of(field)[:1], text_of(field)[1:]
        if at[:1].isdecimal():
            sums[kind] += int(count)
    return sums


def _moment(text: str) -> datetime:
    return datetime.fromtimestamp(float(text), UTC)
