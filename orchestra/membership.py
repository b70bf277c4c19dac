"""An agent's membership of its fleet: register, beat, hear of new queues, leave."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from threading import Event, Thread
from time import monotonic
from typing import Any, Final

from orchestra.capabilities import CapabilitySet
from orchestra.exceptions import AgentNameTakenError, AgentOrchestraException, BrokerUnavailableError, ValidationError
from orchestra.logging_utils import get_logger
from orchestra.queues import CapabilityQueue, QueueNames
from orchestra.registry import AgentRegistry, CatalogueEntry

__all__ = ["SWEEP_EVERY_BEATS", "Doing", "Membership", "Profile", "served_queues"]

SWEEP_EVERY_BEATS: Final = 10

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What an agent says of itself when it registers; `instance` tells two processes of one name apart."""

    name: str
    instance: str
    about: Mapping[str, Any]  # JSON
    tasks: Mapping[str, CatalogueEntry]
    needs: frozenset[str]  # suffixes of the queues that its own tasks ask for


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """
    What an agent does now: the queues that it serves, how many tasks it has in hand, whether it takes no more.

    `mean_seconds` is how long its tasks took lately; None until one has ended. `ways` counts the messages that took
    the short way, and the others by what kept them off it.
    """

    queues: tuple[str, ...]
    running: int
    draining: bool = False
    mean_seconds: float | None = None
    ways: Mapping[str, int] = field(default_factory=dict, hash=False)


def served_queues(suffixes: Iterable[str], can: CapabilitySet, knows: Iterable[str], names: QueueNames) -> set[str]:
    """Return the names of those capability queues that an agent with these capabilities and tasks serves."""
    known = frozenset(knows)
    return {
        names.name(queue)
        for queue in map(_read, suffixes)
        if queue is not None and queue.requirement.satisfied_by(can) and (queue.task is None or queue.task in known)
    }


def _read(suffix: str) -> CapabilityQueue | None:
    try:
        return CapabilityQueue.from_suffix(suffix)
    except ValidationError:  # written by a newer version
        return None


class Membership:
    """
    One agent's place in the registry, kept by a thread of its own.

    The thread beats, so that tasks which hold the consumer don't make the agent look lost. It only tells of changes:
    `on_queues` gets the suffixes of all capability queues whenever their table has changed.
    """

    def __init__(
        self,
        registry: AgentRegistry,
        profile: Profile,
        *,
        every_seconds: float,
        patience_seconds: float,
        doing: Callable[[], Doing],
        on_queues: Callable[[tuple[str, ...]], None],
        sweep: Callable[[], None] = lambda: None,  # called every so many beats
    ) -> None:
        self._registry = registry
        self._profile = profile
        self._every_seconds = every_seconds
        self._patience_seconds = patience_seconds
        self._doing = doing
        self._on_queues = on_queues
        self._sweep = sweep
        self._version = ""  # of the table of queues; empty until the first beat has brought it
        self._away = False
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="orchestra-membership", daemon=True)

    def start(self) -> None:
        """
        Register and begin to beat.

        A name may still be held by this agent's predecessor, which was killed: that is waited for.

        Raises:
            AgentNameTakenError: another live agent has the name.

        """
        deadline = monotonic() + self._patience_seconds
        while True:
            try:
                self._register()
                break
            except AgentNameTakenError:
                if monotonic() >= deadline or self._stopping.wait(self._every_seconds / 2):
                    raise
        self.beat()
        self._thread.start()

    def stop(self) -> None:
        """Stop beating, and leave the registry."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._every_seconds + 5)
        try:
            self._registry.retire(self._profile.name, self._profile.instance)
        except AgentOrchestraException as error:
            log.info("agent not retired", agent=self._profile.name, error=str(error))

    def _run(self) -> None:
        for beats in count(1):
            if self._stopping.wait(self._every_seconds):
                return
            try:
                self.beat()
                if beats % SWEEP_EVERY_BEATS == 0:
                    self._sweep()
            except BrokerUnavailableError as error:
                if not self._away:
                    log.warning("registry unreachable", agent=self._profile.name, error=str(error))
                self._away = True
            except AgentOrchestraException as error:
                log.warning("beat refused", agent=self._profile.name, error=str(error))
            except Exception:  # a sweep's own trouble, say: an agent that works mustn't look lost
                log.exception("beat failed", agent=self._profile.name)

    def beat(self) -> None:
        """Say that the agent lives; register again where the registry has forgotten it."""
        if not self._say():
            self._version = ""
            self._register()
            self._say()  # at once: the registry needs what it serves, and the agent the queues

    def _say(self) -> bool:
        """Beat once; return whether the registry knows the agent."""
        now = self._doing()
        answer = self._registry.beat(
            self._profile.name,
            self._profile.instance,
            version=self._version,
            queues=now.queues,
            running=now.running,
            draining=now.draining,
            mean_seconds=now.mean_seconds,
            ways=now.ways,
        )
        self._back()
        if answer.known:
            self._version = answer.version
        if answer.queues is not None:
            self._on_queues(answer.queues)
        return answer.known

    def _back(self) -> None:
        if self._away:
            self._away = False
            log.info("registry reachable again", agent=self._profile.name)

    def _register(self) -> None:
        profile = self._profile
        self._registry.register(
            profile.name, profile.instance, about=profile.about, tasks=profile.tasks, queues=profile.needs
        )
