"""Leases: which messages one process holds, what it has to say of them, and how many it should hold."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count, islice
from threading import Lock
from typing import Any, Final, NamedTuple, Protocol
from uuid import uuid4

from orchestra.logging_utils import get_logger
from orchestra.pulse import Pulse
from orchestra.store import Argument, Keys, Store, text_of
from orchestra.types import DeadReason
from orchestra.utils import error_text

__all__ = [
    "NOTHING_TOLD",
    "Begun",
    "Lane",
    "Lease",
    "LeaseHolder",
    "News",
    "Pace",
    "Start",
    "Told",
    "condemnation",
    "disown",
    "give_back",
    "start",
    "tell",
    "words",
]

MOST_NEWS: Final = 500  # words about leases that one call takes along
TAKE_OVER_AFTER_SECONDS: Final = 0.3  # that a message waits at a busy agent before an idle one takes it over

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Lease:
    """One message in the hands of one holder; its text is the delivery tag that kombu and Celery know it by."""

    holder: str
    number: int
    queue: str

    def __str__(self) -> str:
        """Write it as a delivery tag."""
        return f"{self.holder}:{self.number}:{self.queue}"

    @classmethod
    def from_tag(cls, tag: object) -> "Lease | None":
        """Read a delivery tag; None when it's one of a delivery without a lease."""
        holder, _, rest = str(tag).partition(":")
        number, parted, queue = rest.partition(":")
        return cls(holder, int(number), queue) if parted and number.isdecimal() else None


class News(NamedTuple):
    """
    What a holder has to say of a lease.

    `kind` is one of `scripts/leases.lua`: settle, release (its task may have run), return (it hasn't), claim (as good
    as started), keep (not started, and nobody is to take it over), delay (`detail` says until when, in s since 1970),
    condemn (to the dead letters; `detail` is a `condemnation`), orphaned (the process that it ran in was lost; `detail`
    holds, in two lines, the agent's name and how).
    """

    kind: str
    lease: Lease
    detail: Argument = ""


class Told(NamedTuple):
    """
    What Redis tells of a message's former deliveries.

    `times_again` is how often it had to be delivered again; the losses are counted since it was last replayed, which
    happened `replays` times.
    """

    times_again: int = 0
    lost_processes: int = 0
    lost_agents: int = 0
    replays: int = 0

    @classmethod
    def read(cls, reply: int | bytes) -> "Told":
        """Read what `scripts/fetch.lua` says: a number, or four in a text."""
        return cls(*map(int, reply.split())) if isinstance(reply, bytes) else cls(int(reply))


NOTHING_TOLD: Final = Told()
_MOST_ERROR_CHARACTERS: Final = 2_000


def condemnation(reason: DeadReason, error: object) -> str:
    """Return the detail of a `condemn`: why a message becomes a dead letter, in a word and in the error's own words."""
    text = error_text(error) if isinstance(error, BaseException) else str(error)
    return f"{reason.value}\n{text[:_MOST_ERROR_CHARACTERS]}".encode(errors="backslashreplace").decode()


@dataclass(slots=True)
class Pace:
    """
    How fast tasks go here, which says how many to fetch ahead so that no process waits for the next one.

    Of queues whose work has to stand back, tasks are fetched ahead for the lesser horizon alone: enough that a process
    doesn't wait for each of the shortest ones.
    """

    horizon_seconds: float = 0.25
    lesser_horizon_seconds: float = 0.01
    most_ahead: int = 64
    mean_seconds: float | None = None
    means_by_queue: dict[str, float] = field(default_factory=dict)

    def note(self, seconds: float, queue: str = "") -> None:
        """Take one task's run time into the means, which follow the last ten or so."""
        self.mean_seconds = _followed(self.mean_seconds, seconds)
        self.means_by_queue[queue] = _followed(self.means_by_queue.get(queue), seconds)

    def ahead(self, slots: int) -> int:
        """Return how many tasks `slots` processes are done with within the horizon; 0 while nothing is known."""
        return self._done_within(self.horizon_seconds, self.mean_seconds, slots)

    def ahead_of(self, queue: str, slots: int) -> int:
        """Return how many tasks of one queue they're done with within the lesser horizon."""
        return self._done_within(self.lesser_horizon_seconds, self.means_by_queue.get(queue), slots)

    def _done_within(self, seconds: float, mean_seconds: float | None, slots: int) -> int:
        return 0 if mean_seconds is None else min(self.most_ahead, int(slots * seconds / max(mean_seconds, 1e-6)))


def _followed(mean: float | None, seconds: float) -> float:
    return seconds if mean is None else mean + (seconds - mean) / 8


def _nothing() -> bool:
    return False


class Lane(Protocol):
    """A short way from messages to their tasks."""

    counts: Mapping[str, int]  # messages that took it, as `express`, and the others by what kept them off it

    @property
    def waiting(self) -> int:
        """How many messages wait there, leased and not begun."""

    @property
    def running(self) -> int:
        """How many have begun, and have not been told of since."""

    def take(self, channel: Any, payload: Mapping[str, Any], lease: Lease) -> bool:
        """Take a message of a channel of ours, unless it isn't plain; tell whether it was taken."""

    def forget(self, numbers: set[int]) -> None:
        """Let go of messages whose leases were given back."""

    def stop(self) -> None:
        """Let go of all, for good."""


@dataclass(eq=False)
class LeaseHolder:
    """
    One process that takes messages, over all its connections.

    What it has to say of its leases is kept until Redis has heard it, whichever connection that takes: an
    acknowledgement outlives the connection that brought the message. Any thread may `say` something; the rest belongs
    to the thread of the consumer.

    Attributes:
        name: what Redis knows the holder by.
        agent: the name of the agent that it is, empty for other consumers.
        slots: how many tasks run at once; None where a consumer's prefetch count alone says how many to fetch.
        busy: whether a task runs now, which holds the leases while the consumer's loop stands still.
        stopping: whether nothing more is to be begun.
        lane: the short way that plain messages take to their tasks; None where there is none.
        shared_breakers: of queues whose tasks all wait for the same breaker, the breaker's name.
        server: the process of Redis that it was connected to last; None before the first.
        first_here: the number of the first lease that it has by this server; those before it are of another one.

    """

    name: str = field(default_factory=lambda: uuid4().hex)
    agent: str = ""
    slots: Callable[[], int] | None = None
    busy: Callable[[], bool] = _nothing
    stopping: Callable[[], bool] = _nothing
    pace: Pace = field(default_factory=Pace)
    lane: "Lane | None" = None
    shared_breakers: Mapping[str, str] = field(default_factory=dict)
    server: str | None = None
    first_here: int = 1

    def __post_init__(self) -> None:
        self._numbers = 1
        self._sessions = count(1)
        self._news: deque[News] = deque()
        self._hurry = False
        self._unhurried: set[int] = set()
        self._pulse: Pulse | None = None
        self._pulse_is_for: object = None
        self._lock = Lock()

    # ── what Redis is told ──

    def next_session(self) -> int:
        """Return the number of a new connection; Redis no longer fetches for those before it."""
        return next(self._sessions)

    def reserve(self, numbers: int) -> int:
        """Set numbers aside for the leases of one fetch; return the first."""
        first, self._numbers = self._numbers, self._numbers + numbers
        return first

    def say(self, kind: str, lease: Lease, detail: Argument = "") -> None:
        """Have Redis told of a lease as soon as may be."""
        self._news.append(News(kind, lease, detail))
        if kind == "settle" and lease.number in self._unhurried:
            self._unhurried.discard(lease.number)
        else:
            self._hurry = True

    def no_hurry(self, lease: Lease) -> None:
        """Let an acknowledgement to come wait for the next fetch: a copy of its message would not run anyway."""
        self._unhurried.add(lease.number)

    @property
    def hurry(self) -> bool:
        """Whether there is something to tell that can't wait for the next fetch."""
        return self._hurry and bool(self._news)

    @property
    def untold(self) -> int:
        """How many words there are to tell."""
        return len(self._news)

    def changed_server(self, server: str) -> set[int]:
        """
        Note that Redis is another process from now on.

        Ends that the former one hasn't heard of are forgotten: the results may have gone to that one alone.

        Returns:
            The numbers of the leases that there is something else to tell of.

        """
        self.server, self.first_here = server, self._numbers
        kept = [one for one in list(self._news) if one.kind not in {"settle", "condemn"}]
        self._news = deque(kept)
        return {one.lease.number for one in kept}

    def news(self) -> list[News]:
        """Return what is to be told next; `told` takes it off the list."""
        return list(islice(self._news, MOST_NEWS))

    def told(self, news: Iterable[News]) -> None:
        """Forget what Redis has heard; it may have been told so twice."""
        for one in news:
            if self._news and self._news[0] is one:
                self._news.popleft()
        self._hurry = self._hurry and bool(self._news)

    def bound(self) -> int | None:
        """Return how many messages it should have in hand; None when that is for the consumer to say."""
        if self.slots is None:
            return None
        slots = self.slots()
        return slots + self.pace.ahead(slots)

    # ── staying alive ──

    def beat_with(self, made_for: object, make: Callable[[], Pulse]) -> None:
        """Beat by a pulse from `make`, and by a new one once it's made for something else, such as another server."""
        with self._lock:
            if self._pulse is not None and self._pulse_is_for == made_for:
                return
            if self._pulse is not None:
                self._pulse.stop()
            self._pulse, self._pulse_is_for = make(), made_for
            self._pulse.start()
            self._pulse.running = self.busy()

    def tick(self) -> None:
        """Say that the consumer's loop turns; cheap enough for every turn."""
        pulse = self._pulse
        if pulse is not None:
            pulse.running = self.busy()
            pulse.tick()

    def began(self) -> None:
        """Say that a task runs now, before the loop may turn again."""
        if self._pulse is not None:
            self._pulse.running = True

    def rest(self) -> None:
        """Stop beating."""
        with self._lock:
            if self._pulse is not None:
                self._pulse.stop()
            self._pulse = self._pulse_is_for = None


def words(news: Iterable[News]) -> list[Argument]:
    """Return news as `take_in_news` in `scripts/leases.lua` reads them."""
    flat: list[Argument] = []
    for kind, lease, detail in news:
        flat += (kind, lease.number, lease.queue, detail)
    return [len(flat) // 4, *flat]


def tell(holder: LeaseHolder, run: Callable[[str, Sequence[str], Sequence[Argument]], Any], keys: Keys) -> None:
    """Tell Redis all the news at once, by `run(script, keys, args)`."""
    while news := holder.news():
        run("news", [keys.redelivered], [keys.base, holder.name, *words(news)])
        holder.told(news)


def give_back(store: Store, holder: LeaseHolder, *, ending: bool = False, leaving: bool = False) -> set[int]:
    """
    Give back to their queues what a holder has not started, or all that it holds when it is `leaving` for good.

    `ending`, its connections fetch nothing more, not even by a call that is under way.

    Returns:
        The numbers of the leases that were given back.

    """
    keys, news = store.keys, holder.news()
    session = holder.next_session() if ending or leaving else ""
    given = store.run(
        "release",
        [keys.redelivered, keys.holders, keys.sessions],
        [keys.base, holder.name, session, int(leaving), *words(news)],
    )
    holder.told(news)
    return {int(number) for number in given}


def disown(store: Store, holder: LeaseHolder, in_hand: Iterable[int]) -> set[int]:
    """
    Give back the started leases that another server has for a holder, and that it has no hand on any more.

    Call it before the first fetch by a connection to a server that may have forgotten the last moments.

    Args:
        store: the fleet's Redis.
        holder: whose leases.
        in_hand: the numbers of the leases whose tasks run, or of which there is something to tell.

    Returns:
        The numbers of the leases that were given back.

    """
    keys = store.keys
    given = store.run("disown", [keys.redelivered], [keys.base, holder.name, holder.first_here, *sorted(in_hand)])
    return {int(number) for number in given}


class Start(StrEnum):
    """What Redis says to a task that is about to begin."""

    STARTED = "started"
    MOVED = "moved"  # its message went to another holder meanwhile
    FINISHED = "finished"  # another copy of its message came to its end
    PARKED = "parked"  # its message waits for its breaker from now on
    REFUSED = "refused"  # its breaker is open, and it doesn't wait


class Begun(NamedTuple):
    """The answer to a start: the verdict, the state in which the record stands, and what a guard was told."""

    verdict: Start
    standing: str
    told: tuple[str, ...] = ()


def start(
    store: Store,
    lease: Lease,
    task_id: str,
    *,
    once: bool,
    followed: bool,
    record: Sequence[Argument],
    counting: str = "",
    guard: Sequence[Argument] = (),
) -> Begun:
    """
    Begin a leased task: nobody takes its message over from here on, and `once` it's begun it never comes again.

    Args:
        store: the fleet's Redis.
        lease: the delivery that the task came by.
        task_id: its id.
        once: whether it runs at most once.
        followed: whether more follows its end than its record tells, such as a chord. A copy of it that comes again
            runs again then, unless it was acknowledged.
        record: what `state.advance_arguments` returns.
        counting: what `retries.RetryBudgets.counting` returns, for a first attempt that is counted.
        guard: what `GuardedCall.arguments` returns; empty for a task without a breaker.

    Returns:
        The verdict; the state in which the record stands, empty unless the task has started; and what `start.lua`
        tells of the breaker.

    """
    keys = store.keys
    reply = store.run(
        "start",
        [keys.leases(lease.holder), keys.leased(lease.queue), keys.task(task_id), keys.redelivered],
        [keys.base, lease.holder, lease.number, lease.queue, int(once), int(followed), *record, counting, *guard],
    )
    verdict, *told = map(text_of, reply)
    standing = told.pop(0) if verdict == Start.STARTED else ""
    return Begun(Start(verdict), standing, tuple(told))
