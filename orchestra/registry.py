"""Who serves what: the live agents, the table of capability queues, and the catalogue of tasks."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeVar

from orchestra.exceptions import AgentNameTakenError
from orchestra.store import Store, pairs_of, text_of, texts_of
from orchestra.utils import TTLCache

__all__ = ["AgentEntry", "AgentRegistry", "Beat", "CachedCatalogue", "CatalogueEntry"]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """What a sender without the task's code needs to know: its requirement, arguments and urgency."""

    requires: str | None = None
    urgency: str | None = None
    enforced: bool = False
    arguments: Mapping[str, Any] | None = None  # JSON, as `ArgumentSchema.to_catalogue` writes it


@dataclass(frozen=True, slots=True)
class Beat:
    """What the registry answered to a beat; `queues` is None while the table hasn't changed."""

    known: bool
    taken: bool
    version: str
    queues: tuple[str, ...] | None


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
            [keys.agents, keys.agent(name), keys.catalogue, keys.queues, keys.queues_version],
            [*agent, len(fields) // 2, *fields, len(catalogue) // 2, *catalogue, *sorted(set(queues))],
        )
        if not accepted:
            raise AgentNameTakenError(_taken(name, json.loads(text or b"{}"), float(silent)))
        return text_of(text)

    def beat(
        self, name: str, instance: str, *, version: str, queues: Sequence[str], running: int, draining: bool = False
    ) -> Beat:
        """Say that an agent lives and what it does now; learn the table of queues if it isn't at `version`."""
        keys = self._store.keys
        now = ("queues", json.dumps(list(queues)), "running", running, "draining", int(draining))
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
        """Take an agent that stops off the list."""
        keys = self._store.keys
        self._store.run("retire", [keys.agents, keys.agent(name)], [name, instance])

    def agents(self) -> list[AgentEntry]:
        """Return every agent that is known, the live ones and those lost within a day, by name."""
        keys = self._store.keys
        beats, (seconds, micros) = self._store.pipeline([("ZRANGE", keys.agents, 0, -1, "WITHSCORES"), ("TIME",)])
        now = int(seconds) + int(micros) / 1e6
        last_beats = {text_of(name): float(score) for name, score in pairs_of(beats)}
        replies = self._store.pipeline([("HGETALL", keys.agent(name)) for name in sorted(last_beats)])
        found = zip(sorted(last_beats), replies, strict=True)
        return [self._entry(name, texts_of(reply), last_beats[name], now) for name, reply in found if reply]

    def _entry(self, name: str, fields: Mapping[str, str], beat: float, now: float) -> AgentEntry:
        return AgentEntry(
            name=name,
            about=json.loads(fields["about"]),
            queues=tuple(json.loads(fields["queues"])),
            tasks=frozenset(json.loads(fields["tasks"])),
            running=int(fields["running"]),
            draining=fields.get("draining") == "1",
            started_at=datetime.fromtimestamp(float(fields["started"]), UTC),
            last_beat_at=datetime.fromtimestamp(beat, UTC),
            alive=now - beat <= self._lost_after_seconds,
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
        """Forget a queue if it is empty, nothing is unacknowledged, and it wasn't registered since; tell whether."""
        keys = self._store.keys
        lists = [f"{self._prefix_queues}{name}{step}" for step in steps]
        unacked = f"{self._prefix_queues}unacked"
        pruned = self._store.run(
            "prune", [keys.queues, keys.queues_version, unacked, *lists], [suffix, registered_before]
        )
        return bool(pruned)

    def depths(self, names: Sequence[str], *, steps: Sequence[str]) -> list[int]:
        """Return how many messages wait in each queue, all priorities together; `steps` ends the lists' names."""
        lists = [("LLEN", f"{self._prefix_queues}{name}{step}") for name in names for step in steps]
        lengths = [int(length) for length in self._store.pipeline(lists)]
        return [sum(lengths[at : at + len(steps)]) for at in range(0, len(lengths), len(steps))]

    def bury(self, suffix: str, name: str, *, steps: Sequence[str], reason: str) -> list[bytes]:
        """Move a queue's messages to the dead letters and forget the queue; return the raw messages."""
        keys = self._store.keys
        lists = [f"{self._prefix_queues}{name}{step}" for step in steps]
        moved: list[bytes] = self._store.run(
            "bury", [keys.dead, keys.queues, keys.queues_version, *lists], [suffix, name, reason, _BURY_AT_ONCE]
        )
        return moved


def _taken(name: str, about: Mapping[str, Any], silent_seconds: float) -> str:
    return (
        f"An agent named {name} is alive on {about.get('host', '?')} (pid {about.get('pid', '?')}, last beat "
        f"{silent_seconds:.1f} s ago). Names are unique in a fleet: start this one with another, such as -n {name}-2."
    )


def _dump_entry(entry: CatalogueEntry) -> str:
    fields = {
        "requires": entry.requires,
        "urgency": entry.urgency,
        "enforced": entry.enforced,
        "arguments": entry.arguments,
    }
    return json.dumps({name: value for name, value in fields.items() if value})


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
        enforced=bool(fields.get("enforced")),
        arguments=fields.get("arguments"),
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
