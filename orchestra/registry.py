"""Who serves what: the live agents, the table of capability queues, and the catalogue of tasks."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

from orchestra.exceptions import AgentNameTakenError
from orchestra.store import Argument, Store, pairs_of, text_of, texts_of
from orchestra.utils import TTLCache

__all__ = ["AgentEntry", "AgentRegistry", "Backlog", "Beat", "CachedCatalogue", "CatalogueEntry", "Roster"]

Known = TypeVar("Known")

AGENT_TTL_SECONDS: Final = 86_400  # an agent that fell silent stays readable for a day: "last seen 9 min ago"
_BURY_AT_ONCE: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEntry:
    """One agent as the registry holds it; `about` is what it said of itself once, the rest changes."""

    name: str
    about: Mapping[str, Any]  # JSON
    queues: tuple[str, ...]
    tasks: frozenset[str]
    running: int
    draining: bool
    started_at: datetime
    last_beat_at: datetime
    alive: bool
    instance: str = ""  # what its leases are held under; empty once it has stopped
    mean_seconds: float | None = None  # how long its tasks took lately; None until one has ended
    ways: Mapping[str, int] = field(
        default_factory=dict, hash=False
    )  # messages by the way that they took; empty without a choice


@dataclass(frozen=True, slots=True)
class Roster:
    """Every agent that is known at one time (Redis's, in s): those that live or were lost, and those that stopped."""

    now: float
    agents: list[AgentEntry]
    former: list[AgentEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """What a sender without the task's code needs to know: its requirement, arguments, urgency and policy."""

    requires: str | None = None
    urgency: str | None = None
    on_unroutable: str | None = None
    unique: str | None = None
    max_queue_depth: int | None = None
    enforced: bool = False
    arguments: Mapping[str, Any] | None = None  # JSON, as `ArgumentSchema.to_catalogue` writes it
    breaker: Mapping[str, Any] | None = None  # JSON, as `Breaker.to_catalogue` writes it, and what it does when open


@dataclass(frozen=True, slots=True)
class Beat:
    """What the registry answered to a beat; `queues` is None while the table hasn't changed."""

    known: bool
    taken: bool
    version: str
    queues: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """How many messages of a queue wait for an agent, aren't due yet, are in agents' hands, and wait for a breaker."""

    waiting: int
    delayed: int
    leased: int
    parked: int = 0


class AgentRegistry:
    """
    The registry of one fleet.

    An agent counts as alive until it has been silent for `lost_after_seconds` by Redis's clock. Everything here
    heals itself: an agent that finds its registration gone registers again, and a publish renews its queue's.
    """

    def __init__(self, store: Store, *, lost_after_seconds: float, prefix_queues: str = "") -> None:
        self._store = store
        self._lost_after_seconds = lost_after_seconds
        self._prefix_queues = prefix_queues

    def register(
        self,
        name: str,
        instance: str,
        *,
        about: Mapping[str, Any],
        tasks: Mapping[str, CatalogueEntry],
        queues: Iterable[str],
    ) -> str:
        """
        Write an agent down, with the tasks that it knows and the suffixes of the queues that these need.

        Returns:
            The version of the table of queues.

        Raises:
            AgentNameTakenError: another live agent has this name.

        """
        keys = self._store.keys
        fields = ["about", json.dumps(dict(about)), "tasks", json.dumps(sorted(tasks)), "queues", "[]", "running", "0"]
        catalogue = [word for task, entry in tasks.items() for word in (task, _dump_entry(entry))]
        agent = (name, instance, self._lost_after_seconds, AGENT_TTL_SECONDS)
        accepted, text, silent = self._store.run(
            "register",
            [keys.agents, keys.agent(name), keys.catalogue, keys.queues, keys.queues_version, keys.former_agents],
            [*agent, len(fields) // 2, *fields, len(catalogue) // 2, *catalogue, *sorted(set(queues))],
        )
        if not accepted:
            raise AgentNameTakenError(_taken(name, json.loads(text or b"{}"), float(silent)))
        return text_of(text)

    def beat(
        self,
        name: str,
        instance: str,
        *,
        version: str,
        queues: Sequence[str],
        running: int,
        draining: bool = False,
        mean_seconds: float | None = None,
        ways: Mapping[str, int] = MappingProxyType({}),
    ) -> Beat:
        """Say that an agent lives and what it does now; learn the table of queues if it isn't at `version`."""
        keys = self._store.keys
        now: list[Argument] = ["queues", json.dumps(list(queues)), "running", running, "draining", int(draining)]
        if mean_seconds is not None:
            now += ["mean", f"{mean_seconds:.6f}"]
        if ways:
            now += ["ways", json.dumps(dict(ways))]
        reply = self._store.run(
            "beat",
            [keys.agents, keys.agent(name), keys.queues, keys.queues_version],
            [name, instance, AGENT_TTL_SECONDS, version, *now],
        )
        words = [text_of(word) for word in reply]
        if words[0] != "ok":
            return Beat(known=False, taken=words[0] == "taken", version="", queues=None)
        return Beat(known=True, taken=False, version=words[1], queues=None if words[1] == version else tuple(words[2:]))

    def retire(self, name: str, instance: str) -> None:
        """Take an agent that stops off the list; `former` remembers it for a day."""
        keys = self._store.keys
        self._store.run(
            "retire", [keys.agents, keys.agent(name), keys.former_agents], [name, instance, AGENT_TTL_SECONDS]
        )

    def agents(self) -> list[AgentEntry]:
        """Return every agent that is known, the live ones and those lost within a day, by name."""
        now, last_beats = self._times(self._store.keys.agents)
        found = self._hashes(last_beats)
        return [
            self._entry(name, fields, last_beats[name], alive=now - last_beats[name] <= self._lost_after_seconds)
            for name, fields in found.items()
        ]

    def former(self) -> list[AgentEntry]:
        """Return the agents that stopped within a day, by name; `last_beat_at` is when they did."""
        _, left = self._times(self._store.keys.former_agents)
        return [self._entry(name, fields, left[name], alive=False) for name, fields in self._hashes(left).items()]

    def roster(self, *, within_seconds: float = math.inf) -> Roster:
        """
        Return what `agents` and `former` return, with Redis's time, in two round trips.

        Of those that don't live any more only the ones are read that were seen `within_seconds`.
        """
        keys = self._store.keys
        commands = [("ZRANGE", names, 0, -1, "WITHSCORES") for names in (keys.agents, keys.former_agents)]
        *lists, (seconds, micros) = self._store.pipeline([*commands, ("TIME",)])
        now = int(seconds) + int(micros) / 1e6
        since, earliest = now - self._lost_after_seconds, now - max(within_seconds, self._lost_after_seconds)
        beats, left = ({text_of(name): at for name, at in pairs_of(pairs) if float(at) >= earliest} for pairs in lists)
        found = self._hashes({*beats, *left})
        agents = [
            self._entry(one, found[one], float(at), alive=float(at) >= since)
            for one, at in beats.items()
            if one in found
        ]
        former = [self._entry(one, found[one], float(at), alive=False) for one, at in left.items() if one in found]
        return Roster(now, sorted(agents, key=_name), sorted(former, key=_name))

    def _times(self, list_of_agents: str) -> tuple[float, dict[str, float]]:
        """Return Redis's time, and the time that stands beside each name of a list; all in s."""
        pairs, (seconds, micros) = self._store.pipeline([("ZRANGE", list_of_agents, 0, -1, "WITHSCORES"), ("TIME",)])
        return int(seconds) + int(micros) / 1e6, {text_of(name): float(score) for name, score in pairs_of(pairs)}

    def _hashes(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return what the agents of these names said of themselves, by name; what has expired is left out."""
        ordered = sorted(names)
        replies = self._store.pipeline([("HGETALL", self._store.keys.agent(name)) for name in ordered])
        return {name: texts_of(reply) for name, reply in zip(ordered, replies, strict=True) if reply}

    def _entry(self, name: str, fields: Mapping[str, str], beat: float, *, alive: bool) -> AgentEntry:
        return AgentEntry(
            name=name,
            about=json.loads(fields["about"]),
            queues=tuple(json.loads(fields["queues"])),
            tasks=_texts(fields["tasks"]),
            running=int(fields["running"]),
            draining=fields.get("draining") == "1",
            started_at=datetime.fromtimestamp(float(fields["started"]), UTC),
            last_beat_at=datetime.fromtimestamp(beat, UTC),
            alive=alive,
            instance=fields.get("instance", ""),
            mean_seconds=float(fields["mean"]) if "mean" in fields else None,
            ways=json.loads(fields.get("ways", "{}")),
        )

    def catalogue(self) -> dict[str, CatalogueEntry]:
        """Return what the fleet knows to run: task name -> entry. What can't be read is left out."""
        reply = self._store.command("HGETALL", self._store.keys.catalogue)
        loaded = {task: _load_entry(text) for task, text in texts_of(reply).items()}
        return {task: entry for task, entry in loaded.items() if entry is not None}

    def queues(self) -> dict[str, datetime]:
        """Return the table of capability queues: suffix -> when it was last registered."""
        reply = self._store.command("ZRANGE", self._store.keys.queues, 0, -1, "WITHSCORES")
        return {text_of(suffix): datetime.fromtimestamp(float(score), UTC) for suffix, score in pairs_of(reply)}

    def registered(self) -> tuple[float, dict[str, float]]:
        """Return Redis's time, and of each capability queue (by suffix) the time of its registration; both in s."""
        (seconds, micros), reply = self._store.pipeline(
            [("TIME",), ("ZRANGE", self._store.keys.queues, 0, -1, "WITHSCORES")]
        )
        return int(seconds) + int(micros) / 1e6, {text_of(suffix): float(score) for suffix, score in pairs_of(reply)}

    def prune(self, suffix: str, name: str, *, steps: Sequence[str], registered_before: float) -> bool:
        """
        Forget a queue if nothing of it waits anywhere or is leased, and it wasn't registered since; tell whether.

        What stock workers of any queue have fetched keeps it too, since it may come back to this one.
        """
        keys = self._store.keys
        unacked = f"{self._prefix_queues}unacked"
        pruned = self._store.run(
            "prune",
            [keys.queues, keys.queues_version, unacked, *self._keys_of(name, steps)],
            [suffix, registered_before, name],
        )
        return bool(pruned)

    def depths(self, names: Sequence[str], *, steps: Sequence[str]) -> list[int]:
        """Return how many messages wait in each queue, as `backlogs` counts them."""
        return [backlog.waiting for backlog in self.backlogs(names, steps=steps)]

    def backlogs(self, names: Sequence[str], *, steps: Sequence[str]) -> list[Backlog]:
        """Return what is in each queue, all priorities together; `steps` ends the names of a queue's lists."""
        commands = [command for name in names for command in self._counting(name, steps)]
        replies = [int(reply or 0) for reply in self._store.pipeline(commands)]
        size = len(steps) + 3
        rows = [replies[at : at + size] for at in range(0, len(replies), size)]
        return [
            Backlog(delayed=delayed, leased=leased, parked=parked, waiting=sum(lists))
            for delayed, leased, parked, *lists in rows
        ]

    def _counting(self, name: str, steps: Sequence[str]) -> list[tuple[str, ...]]:
        delayed, leased, parked, *lists = self._keys_of(name, steps)
        return [("ZCARD", delayed), ("ZCARD", leased), ("HGET", parked, name), *(("LLEN", key) for key in lists)]

    def bury(self, suffix: str, name: str, *, steps: Sequence[str], reason: str, error: str = "") -> list[bytes]:
        """
        Move the messages that wait in a queue to the dead letters; return them, raw.

        The queue is forgotten with them, unless more of it wait anywhere or are leased.
        """
        keys = self._store.keys
        moved: list[bytes] = self._store.run(
            "bury",
            [keys.queues, keys.queues_version, *self._keys_of(name, steps)],
            [keys.base, suffix, name, reason, error, _BURY_AT_ONCE],
        )
        return moved

    def _keys_of(self, name: str, steps: Sequence[str]) -> list[str]:
        """Return the keys of a queue's messages: the delayed, the leased, all parked ones, and a list a priority."""
        keys, lists = self._store.keys, [f"{self._prefix_queues}{name}{step}" for step in steps]
        return [keys.delayed(name), keys.leased(name), keys.parked_counts, *lists]


@lru_cache(maxsize=256)
def _texts(text: str) -> frozenset[str]:
    """Read a list of texts; agents of one app know the same tasks, so that a large fleet's are read once."""
    return frozenset(json.loads(text))


_name = attrgetter("name")


def _taken(name: str, about: Mapping[str, Any], silent_seconds: float) -> str:
    return (
        f"An agent named {name} is alive on {about.get('host', '?')} (pid {about.get('pid', '?')}, last beat "
        f"{silent_seconds:.1f} s ago). Names are unique in a fleet: start this one with another, such as -n {name}-2."
    )


def _dump_entry(entry: CatalogueEntry) -> str:
    fields = {
        "requires": entry.requires,
        "urgency": entry.urgency,
        "on_unroutable": entry.on_unroutable,
        "unique": entry.unique,
        "max_queue_depth": entry.max_queue_depth,
        "enforced": entry.enforced,
        "arguments": entry.arguments,
        "breaker": entry.breaker,
    }
    return json.dumps({name: value for name, value in fields.items() if value or type(value) is int})


def _load_entry(text: str) -> CatalogueEntry | None:
    """Read an entry; fields that a newer agent wrote are left aside. None stands for one that isn't an entry."""
    try:
        fields = json.loads(text)
    except ValueError:
        return None
    if not isinstance(fields, dict):
        return None
    return CatalogueEntry(
        requires=fields.get("requires"),
        urgency=fields.get("urgency"),
        on_unroutable=fields.get("on_unroutable"),
        unique=fields.get("unique"),
        max_queue_depth=depth if type(depth := fields.get("max_queue_depth")) is int else None,
        enforced=bool(fields.get("enforced")),
        arguments=fields.get("arguments"),
        breaker=fields.get("breaker") if isinstance(fields.get("breaker"), dict) else None,
    )


class CachedCatalogue(Generic[Known]):
    """
    The catalogue as a sender sees it: read again when it is older than `ttl_seconds`.

    `convert` makes of an entry what the sender works with, which is kept until the next reading.
    """

    def __init__(
        self, registry: AgentRegistry, convert: Callable[[CatalogueEntry], Known], *, ttl_seconds: float
    ) -> None:
        self._convert = convert
        self._readings: TTLCache[None, _Reading[Known]] = TTLCache(
            lambda _: _Reading(registry.catalogue()), ttl_seconds=ttl_seconds, maxsize=1
        )

    def find(self, name: str) -> Known | None:
        """Return what is known of a task; None when no agent has published it."""
        reading = self._readings.get(None)
        entry = reading.entries.get(name)
        if entry is None:
            return None
        if name not in reading.known:
            reading.known.setdefault(name, self._convert(entry))  # of two threads that convert it, both get the first's
        return reading.known[name]

    def forget(self) -> None:
        """Read the catalogue again at the next question."""
        self._readings.clear()

    def names(self) -> list[str]:
        """Return the names of all tasks that agents have published."""
        return sorted(self._readings.get(None).entries)


@dataclass(frozen=True, slots=True)
class _Reading(Generic[Known]):
    """The catalogue as it was read once, and what was made of its entries since."""

    entries: Mapping[str, CatalogueEntry]
    known: dict[str, Known] = field(default_factory=dict)
