"""Messages in transit: they're fetched, started and settled by the scripts alone, as channels and tasks do it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from orchestra.leases import Lease, LeaseHolder, Start, Told, give_back, start, tell, words
from orchestra.pulse import beat_arguments
from orchestra.state import advance_arguments
from orchestra.store import Store, load_script, text_of
from orchestra.types import TaskState
from tests.keys import keys_holding
from tests.stores import client_at, store_at

__all__ = ["QUEUE", "Delivery", "Fetched", "Transit", "holder_named", "transit_at"]

QUEUE: Final = "shop:nlp"
LOST_AFTER: Final = 5.0  # s


class Delivery(NamedTuple):
    """One message that was fetched."""

    number: int
    queue: str
    message: str
    told: Told = Told()

    @property
    def times_again(self) -> int:
        """How often it had to be delivered again."""
        return self.told.times_again


class Fetched(NamedTuple):
    """What one fetch brought."""

    now: float
    due: float | None
    full: bool
    deliveries: list[Delivery]

    @property
    def messages(self) -> list[str]:
        """The messages alone."""
        return [delivery.message for delivery in self.deliveries]


def holder_named(name: str, *, agent: bool = True) -> LeaseHolder:
    """Return a holder of leases, an agent's unless `agent` is False."""
    return LeaseHolder(name=name, agent=f"{name}@test" if agent else "")


class Transit:
    """One fleet's messages, and what is done with them."""

    def __init__(self, store: Store, client: Any) -> None:  # a redis.Redis, whose types have its answers awaitable too
        self.store = store
        self.client = client
        self.keys = store.keys

    def put(self, *messages: str, queue: str = QUEUE) -> None:
        """Push messages as a stock producer does."""
        for message in messages:
            self.client.lpush(queue, message)

    def fetch(
        self,
        holder: LeaseHolder,
        *queues: str,
        lists: Sequence[tuple[str, str]] = (),
        limit: int = 10,
        free: int = 0,
        session: int = 1,
        after: float = 0.3,
        plainly: Collection[str] = (),
        most: Mapping[str, int] = MappingProxyType({}),
        shared: Mapping[str, str] | None = None,
    ) -> Fetched | None:
        """
        Fetch as a channel does, and tell the holder's news by the way; None for a session that was replaced.

        `lists` names each list with its queue, where they aren't called alike; `most` says up to how many messages a
        queue may fill the fetch; `shared` a queue's breaker, where all its tasks share one.
        """
        keys, news = self.keys, holder.news()
        pairs = lists or [(queue, queue) for queue in queues or (QUEUE,)]
        breakers = [word for pair in (shared or {}).items() for word in pair]
        reply = self.store.run(
            "fetch",
            [keys.holders, keys.due, keys.redelivered, keys.sessions, *(name for name, _ in pairs)],
            [
                *(keys.base, holder.name, session, holder.reserve(limit), limit, free, after),
                *(int(not holder.agent), *words(news), len(breakers) // 2, *breakers),
                *(word for _, queue in pairs for word in (queue, int(queue in plainly), most.get(queue, limit))),
            ],
        )
        holder.told(news)
        return _fetched(reply) if reply else None

    def messages(self, holder: LeaseHolder, *queues: str, **options: Any) -> list[str]:
        """Fetch, and return the messages alone."""
        fetched = self.fetch(holder, *queues, **options)
        assert fetched is not None
        return fetched.messages

    def lease(self, holder: LeaseHolder, message: str, *, queue: str = QUEUE) -> Lease:
        """Put one message and have it fetched."""
        self.put(message, queue=queue)
        fetched = self.fetch(holder, queue, limit=1)
        assert fetched is not None
        assert [message] == fetched.messages
        return Lease(holder.name, fetched.deliveries[0].number, queue)

    def lease_of(self, holder: LeaseHolder, fetched: Fetched) -> Lease:
        """Return the lease of the first message that was fetched."""
        return Lease(holder.name, fetched.deliveries[0].number, fetched.deliveries[0].queue)

    def say(self, holder: LeaseHolder, kind: str, lease: Lease, detail: str | float = "") -> None:
        """Say something of a lease, and have Redis told at once."""
        holder.say(kind, lease, detail)
        tell(holder, self.store.run, self.keys)

    def start(
        self, lease: Lease, task_id: str = "1", *, once: bool = False, followed: bool = False, attempt: int = 1
    ) -> Start:
        """Begin a task as an agent does."""
        record = advance_arguments(TaskState.RUNNING, ttl_seconds=60, agent="text@a", attempt=attempt)
        return start(self.store, lease, task_id, once=once, followed=followed, record=record)[0]

    def give_back(self, holder: LeaseHolder, **options: bool) -> set[int]:
        """Give back what a holder has not started, or with `leaving` all that it holds."""
        return give_back(self.store, holder, **options)

    def silence(self, *holders: LeaseHolder) -> None:
        """Have holders beaten last in another life of theirs."""
        self.client.zadd(self.keys.holders, {holder.name: 1 for holder in holders})

    def beat(self, name: str = "survivor", *, limit: int = 1000) -> tuple[int, int]:
        """Beat for a holder on a server that was up all the time; return how many came back and became due."""
        self.client.hset(self.keys.beats, mapping={"last": self.now(), "quiet_until": 0})
        keys, args = beat_arguments(self.keys, holder=name, agent="", lost_after_seconds=LOST_AFTER, limit=limit)
        taken_back, became_due = load_script("pulse").run(self.client, keys, args)
        return taken_back, became_due

    def now(self) -> float:
        """Return Redis's time."""
        seconds, micros = self.client.time()
        return float(seconds + micros / 1e6)

    def waiting(self, queue: str = QUEUE) -> list[str]:
        """Return what waits in a list, the next to be fetched first."""
        return [text_of(message) for message in reversed(self.client.lrange(queue, 0, -1))]

    def places(self, message: str) -> set[str]:
        """Return the names of the keys that hold a message, without the beginning that all the fleet's have."""
        return {key.removeprefix(self.keys.base) for key in keys_holding(self.client, message)}

    def score(self, lease: Lease) -> float | None:
        """Return since when a lease stands, infinite once its task has started; None for one that doesn't."""
        score: float | None = self.client.zscore(self.keys.leased(lease.queue), f"{lease.holder}:{lease.number}")
        return score


@contextmanager
def transit_at(url: str, *, fleet: str = "shop") -> Iterator[Transit]:
    """Give a fleet's messages over a client of its own."""
    with client_at(url) as client, store_at(url, fleet=fleet) as store:
        yield Transit(store, client)


def _fetched(reply: Sequence[Any]) -> Fetched:
    now, due, full, *rest = reply
    deliveries = [
        Delivery(int(number), text_of(queue), message.decode(errors="surrogateescape"), Told.read(told))
        for number, queue, message, told in zip(*[iter(rest)] * 4, strict=True)
    ]
    return Fetched(float(now), float(due) if due else None, text_of(full) == "1", deliveries)
