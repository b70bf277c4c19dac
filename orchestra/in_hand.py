"""What a channel has in hand, and what becomes of it."""

from typing import Any

from kombu.transport import redis as kombu_redis
from kombu.transport.virtual import QoS as VirtualQoS

from orchestra.leases import Lease

__all__ = ["LeaseQoS"]

_KombuQoS: Any = kombu_redis.QoS  # kombu ships no types


class LeaseQoS(_KombuQoS):  # type: ignore[misc]
    """
    What a channel has in hand. Its words about leases go to the lease holder, and are said with the next fetch.

    Nothing here speaks to Redis, so that a channel whose connection is gone can still be acknowledged on, and closed.
    """

    channel: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept: set[str] = set()  # tags of messages that wait here for something else than a process

    def append(self, message: Any, delivery_tag: str) -> None:
        """Take a message into the hand."""
        VirtualQoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Be done with a message."""
        self._say("settle", delivery_tag)
        self._drop(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give a message back to the front of its queue, or drop it."""
        if requeue and Lease.from_tag(delivery_tag) is None:  # popped plainly, for a consumer that is gone
            self.channel.put_back(self.get(delivery_tag))
        self._say("release" if requeue else "settle", delivery_tag)
        self._drop(delivery_tag)

    def _drop(self, tag: str) -> None:
        self._kept.discard(tag)
        self._quick_ack(tag)

    def keep(self, tag: str) -> None:
        """Let a message wait, for its task's rate limit, without a claim to a process."""
        self._kept.add(tag)

    def _say(self, kind: str, tag: str) -> None:
        lease = Lease.from_tag(tag)
        if lease is not None:
            self.channel.holder.say(kind, lease)
        if not self.channel.holder.agent:  # nobody else may ever fetch here again
            self.channel.flush_news()

    @property
    def in_hand(self) -> int:
        """How many messages are delivered here and neither acknowledged nor given back."""
        lane = self.channel.holder.lane
        return len(self._delivered) - len(self._dirty) + (0 if lane is None else lane.waiting)

    @property
    def to_do(self) -> int:
        """How many of them have a process or wait for one."""
        return self.in_hand - len(self._kept)

    def room(self) -> int:
        """Return how many messages may be fetched now: one at a time, unless the holder says how many it's good for."""
        bound = self.channel.holder.bound()
        most = 1 if bound is None else bound - self.to_do
        return min(most, self.prefetch_count - self.in_hand) if self.prefetch_count else most

    def can_consume(self) -> bool:
        """Tell whether anything may be fetched now."""
        return self.room() > 0

    def forget(self, numbers: set[int]) -> None:
        """Take leases that were given back out of the hand."""
        if self.channel.holder.lane is not None:
            self.channel.holder.lane.forget(numbers)
        for tag in list(self._delivered):
            lease = Lease.from_tag(tag)
            if lease is not None and lease.number in numbers:
                self._drop(tag)

    def restore_unacked(self, _client: Any = None) -> None:
        """Give back what is in hand; an agent's next connection does that, since its tasks may go on meanwhile."""
        holder = self.channel.holder
        if not holder.agent:
            for lease in filter(None, map(Lease.from_tag, reversed(self._delivered))):
                holder.say("return", lease)
            self.channel.flush_news()
        self._delivered.clear()
