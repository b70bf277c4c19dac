"""How messages are fetched: popped and leased in one step, waited for without popping, acknowledged by the way."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import Empty
from time import monotonic
from typing import Any, Final, NamedTuple

from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from kombu.utils.objects import cached_property
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from orchestra.channel import FleetChannel, kombu_of
from orchestra.delays import due_at
from orchestra.in_hand import LeaseQoS
from orchestra.leases import (
    NOTHING_TOLD,
    TAKE_OVER_AFTER_SECONDS,
    Lease,
    LeaseHolder,
    News,
    Told,
    condemnation,
    tell,
    words,
)
from orchestra.logging_utils import get_logger
from orchestra.patience import is_full
from orchestra.queues import CapabilityQueue
from orchestra.store import Argument, load_script
from orchestra.types import DeadReason

__all__ = ["Fetching"]

WAIT_SECONDS: Final = 0.5  # the longest wait for a word of new work; what a stock producer sent is found by then
_FULL_SECONDS: Final = 0.5  # until a server that takes nothing in is asked again

log = get_logger(__name__)


class _Awaited(NamedTuple):
    """A reply that is under way, and the news that Redis has heard when it's there."""

    handle: Callable[[Sequence[News], Any], None]
    news: Sequence[News] = ()


class _Fetched(NamedTuple):
    number: int
    queue: str
    raw: bytes
    told: Told


class _List(NamedTuple):
    """A list to look into, with its queue, and up to how many messages in all it may fill the look."""

    name: str
    queue: str
    most: int


class Fetching(FleetChannel):
    """
    The receiving half of a channel.

    It fetches until nothing is left, and waits then for a word that something came: one connection, one call at a time.
    Queues whose consumers don't acknowledge are kombu's, as long as the channel has no others.
    """

    QoS = LeaseQoS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._acknowledged: dict[str, Callable[[Any], None]] = {}  # queue -> callback of its consumer
        self._awaiting: deque[_Awaited] = deque()  # the replies to come
        self._unknown_scripts: set[str] = set()  # which the server has to be given in full
        self._exhausted = False  # whether the last fetch left nothing behind, so that a wake-up call announces more
        self._rested = False  # whether it has not looked since every process was busy
        self._full_until = 0.0  # when to ask a server again that takes nothing in; 0 while it does
        self._now = self._due_at = 0.0  # Redis's time at the last fetch, and when the next delayed message is due
        super().__init__(*args, **kwargs)

    @cached_property
    def holder(self) -> LeaseHolder:
        """Who holds the leases; known for as long as the channel is, connected or not."""
        holder: LeaseHolder = kombu_of(self).connection.hold()
        return holder

    # ── consumers ──

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Callable[[Any], None], *args: Any, **kwargs: Any
    ) -> Any:  # as kombu has it
        """Consume from a queue; without `no_ack` its messages are leased."""
        consumed = super().basic_consume(queue, no_ack, callback, *args, **kwargs)  # type: ignore[misc]
        if not no_ack and queue not in kombu_of(self)._fanout_queues:
            self._acknowledged[queue] = callback
            self._exhausted = False
        return consumed

    def _basic_cancel(self, consumer_tag: str) -> Any:
        self._acknowledged.pop(kombu_of(self)._tag_to_queue.get(consumer_tag, ""), None)
        return super()._basic_cancel(consumer_tag)  # type: ignore[misc]

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Return a queue's next message, leased unless it needs no acknowledgement; None when there is none."""
        if no_ack:
            return super().basic_get(queue, no_ack=True, **kwargs)  # type: ignore[misc]
        lists = [kombu_of(self)._q_for_pri(queue, step) for step in kombu_of(self).priority_steps]
        keys, args = self._fetch_arguments([_List(name, queue, 1) for name in lists], 1, leased=frozenset({queue}))
        self._keep_alive()
        taken: list[Any] = []
        for fetched in self._read_fetch(self._run("fetch", keys, args)):
            self._hand_over(fetched, taken.append)
        if not taken and self.holder.untold:
            self.flush_news()
        return taken[0] if taken else None

    # ── the call: fetch, or wait and fetch ──

    def _brpop_start(self, timeout: float | None = None) -> None:
        channel = kombu_of(self)
        queues = channel._queue_cycle.consume(len(channel.active_queues))
        if not any(queue in self._acknowledged for queue in queues):
            super()._brpop_start(timeout)  # type: ignore[misc]
            return
        if monotonic() < self._full_until:
            return
        slots = self.holder.slots
        free = 0 if slots is None else slots() - channel.qos.to_do
        if self._exhausted and slots is not None and free <= 0:
            self._rested = True  # nothing is to be had, and nobody has time for it
            return
        self._keep_alive()
        if self._awaiting:  # what it brings is lost with its connection, so others are to have it
            self._awaiting.clear()
            channel.connection.renew_session()
        news, commands = self.holder.news(), []
        if self._exhausted and not self._rested:
            if self.holder.hurry:
                told: list[Argument] = [self.fleet_keys.base, self.holder.name, *words(news)]
                commands.append(self._script_command("news", [self.fleet_keys.redelivered], told))
                self._awaiting.append(_Awaited(self._on_told, news))
                news = []
            commands.append(["BLPOP", *(self.fleet_keys.wake(queue) for queue in queues), self._wait_seconds()])
            self._awaiting.append(_Awaited(self._on_woken))
        self._rested, limit = False, max(0, channel.qos.room())
        arguments = self._fetch_arguments(self._lists(queues, limit, free), limit, free=free, news=news)
        commands.append(self._script_command("fetch", *arguments))
        self._awaiting.append(_Awaited(self._on_fetched, news))
        connection = channel.client.connection
        channel._in_poll = connection
        channel._brpop_sent_at = monotonic()
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)

    def _lists(self, queues: Sequence[str], limit: int, free: int) -> list[_List]:
        """Return the lists to look into, in the order of this look; `free` is negative with tasks taken ahead."""
        channel, slots = kombu_of(self), self.holder.slots
        cycle, steps = channel._queue_cycle, channel.priority_steps
        lesser: frozenset[str] = frozenset() if slots is None else getattr(cycle, "lesser", frozenset())
        if slots is None or not lesser:  # all are equal, or how many to take is for the consumer to say
            return [_List(channel._q_for_pri(queue, step), queue, limit) for step in steps for queue in queues]
        processes, pace = slots(), self.holder.pace
        most = {queue: min(limit, max(0, free + pace.ahead_of(queue, processes))) for queue in lesser}
        first = queues if cycle.fair else ()
        return [
            *(_List(channel._q_for_pri(queue, step), queue, max(1, free)) for queue in first for step in steps),
            *(
                _List(channel._q_for_pri(queue, step), queue, most.get(queue, limit))
                for step in steps
                for queue in cycle.by_demand(queues)
            ),
        ]

    def _wait_seconds(self) -> float:
        """Return how long to wait for a word, as BLPOP takes it: until something delayed is due, if that is sooner."""
        if not self._due_at:
            return WAIT_SECONDS
        return round(min(WAIT_SECONDS, max(0.005, self._due_at - self._now)), 3)

    def _script_command(self, name: str, keys: Sequence[str], args: Sequence[Argument]) -> list[Argument]:
        script = load_script(name)
        call = ("EVAL", script.source) if name in self._unknown_scripts else ("EVALSHA", script.sha)
        return [*call, len(keys), *keys, *args]

    def _fetch_arguments(
        self,
        lists: Sequence[_List],
        limit: int,
        *,
        free: int = 0,
        news: Sequence[News] = (),
        leased: frozenset[str] = frozenset(),
    ) -> tuple[list[str], list[Argument]]:
        keys, channel = self.fleet_keys, kombu_of(self)
        prefix = channel.global_keyprefix
        holder, session = self.holder, channel.connection.session
        details = ((queue, int(queue not in (leased or self._acknowledged)), most) for _, queue, most in lists)
        shared = [(queue, name) for queue, name in self.holder.shared_breakers.items() if queue in self._acknowledged]
        return (
            [keys.holders, keys.due, keys.redelivered, keys.sessions, *(f"{prefix}{one.name}" for one in lists)],
            [
                *(keys.base, holder.name, session, holder.reserve(limit), limit, max(0, min(free, limit))),
                *(TAKE_OVER_AFTER_SECONDS, int(not holder.agent), *words(news)),
                *(len(shared), *(word for pair in shared for word in pair)),
                *(word for words_of_list in details for word in words_of_list),
            ],
        )

    def _brpop_read(self, **options: Any) -> Any:
        if not self._awaiting:
            return super()._brpop_read(**options)  # type: ignore[misc]
        connection = kombu_of(self).client.connection
        while True:
            reply = self._next_reply(connection)
            awaited = self._awaiting.popleft()
            if not self._awaiting:
                kombu_of(self)._in_poll = None
            awaited.handle(awaited.news, reply)
            if not self._awaiting:
                kombu_of(self)._flush_brpop_reauth()
                return True
            if not connection.can_read(timeout=0):
                raise Empty

    def _next_reply(self, connection: Any) -> Any:
        try:
            return connection.read_response()
        except ResponseError as error:
            return error
        except kombu_of(self).connection_errors:
            connection.disconnect()
            raise

    def _on_told(self, news: Sequence[News], reply: Any) -> None:
        if not self._is_refused("news", reply):
            self.holder.told(news)

    def _on_woken(self, _news: Sequence[News], _reply: Any) -> None:
        """Go on to the fetch, which is under way: whoever was woken, and for what, looks into all its queues."""

    def _on_fetched(self, news: Sequence[News], reply: Any) -> None:
        if self._is_refused("fetch", reply):
            self._exhausted = False
            return
        self.holder.told(news)
        fetched = list(self._read_fetch(reply))
        for queue in dict.fromkeys(one.queue for one in fetched):
            kombu_of(self)._queue_cycle.rotate(queue)
        self._deliver(fetched)

    def _is_refused(self, script: str, reply: Any) -> bool:
        """Tell whether the server has to be told a script first, or is full; any other refusal has us connect anew."""
        if isinstance(reply, NoScriptError):
            self._unknown_scripts.add(script)
            return True
        if is_full(reply):
            if not self._full_until:
                log.warning("redis takes nothing in", error=str(reply), then="asked again")
            self._full_until = monotonic() + _FULL_SECONDS
            return True
        if isinstance(reply, ResponseError):
            kombu_of(self).client.connection.disconnect()  # and with it the answers that are to come
            message = f"Redis refused to hand out messages: {reply}"
            raise RedisConnectionError(message) from reply
        self._unknown_scripts.discard(script)
        if script == "fetch":
            self._full_until = 0.0
        return False

    def _read_fetch(self, reply: Sequence[bytes]) -> Iterator[_Fetched]:
        self._exhausted = True
        if not reply:  # a connection that the holder has given up
            return
        now, due, full, *rest = reply
        self._now, self._due_at = float(now), float(due or 0)
        self._exhausted = bytes_to_str(full) == "0"
        for number, queue, raw, told in zip(*[iter(rest)] * 4, strict=True):
            yield _Fetched(int(number), bytes_to_str(queue), raw, Told.read(told) if told else NOTHING_TOLD)

    # ── delivery ──

    def _deliver(self, fetched: Sequence[_Fetched]) -> None:
        """Hand messages to their consumers; what a consumer's error or the agent's end leaves over is given back."""
        left, unwanted = deque(fetched), list[_Fetched]()
        try:
            while left and not self.holder.stopping():
                one = left.popleft()
                callback = self._acknowledged.get(one.queue)
                if callback is not None:
                    self._hand_over(one, callback)
                elif one.queue in kombu_of(self).connection._callbacks:
                    self.holder.say("settle", self._lease(one))  # it was leased if its consumer has changed meanwhile
                    kombu_of(self).connection._deliver(loads(bytes_to_str(one.raw)), one.queue)
                else:  # cancelled meanwhile
                    unwanted.append(one)
        finally:
            for one in reversed([*unwanted, *left]):  # the oldest last, which puts it in front
                self.holder.say("return", self._lease(one))

    def _lease(self, fetched: _Fetched) -> Lease:
        return Lease(self.holder.name, fetched.number, fetched.queue)

    def _hand_over(self, fetched: _Fetched, callback: Callable[[Any], None]) -> None:
        """Make a message of what was fetched; what can't be one, or isn't due, never reaches a consumer."""
        lease = self._lease(fetched)
        try:
            payload = loads(bytes_to_str(fetched.raw))
            properties = payload["properties"]
            headers = payload["headers"] = payload.get("headers") or {}
            properties["delivery_tag"] = str(lease)
            if fetched.told.times_again:
                properties.setdefault("delivery_info", {})["redelivered"] = headers["redelivered"] = True
            if not isinstance(payload["body"], str):
                raise TypeError(payload["body"])  # noqa: TRY301  # kombu takes any, and Celery stumbles over it
            due = due_at(headers)
            if (due is None or due <= self._now) and self._is_taken(fetched, payload, lease):
                return
            message = kombu_of(self).Message(payload, channel=self)
            message.told = fetched.told
        except Exception as error:  # noqa: BLE001  # anybody may have pushed it, and anything may be in it
            log.warning("message not readable", queue=lease.queue, error=repr(error), then="dead letters")
            self.holder.say("condemn", lease, condemnation(DeadReason.UNDECODABLE, error))
            return
        if due is not None and due > self._now:
            self.holder.say("delay", lease, due)
            return
        kombu_of(self).qos.append(message, message.delivery_tag)
        callback(message)

    def _is_taken(self, fetched: _Fetched, payload: dict[str, Any], lease: Lease) -> bool:
        """Tell whether the short way has taken a message; what was lost before is for Celery's own way to judge."""
        lane = self.holder.lane
        return lane is not None and not fetched.told.times_again and lane.take(self, payload, lease)

    def hand_on(self, message: Any, queue: CapabilityQueue) -> bool:
        """
        Move a message that was delivered here to another queue, in one step with giving up its lease.

        Returns:
            False when the lease was no longer ours, in which case nothing has happened.

        """
        lease = Lease.from_tag(message.delivery_tag)
        if lease is None:
            return False
        keys, channel, name = self.fleet_keys, kombu_of(self), self._queue_names.name(queue)
        target = channel._q_for_pri(name, channel._get_message_priority(message._raw, reverse=False))
        moved = load_script("hand_on").run(
            self.script_client,
            [f"{channel.global_keyprefix}{target}", keys.queues, keys.queues_version],
            [keys.base, lease.holder, lease.number, lease.queue, name, queue.suffix],
        )
        return bool(moved)

    def put_back(self, message: Any) -> None:
        """Return a message that was popped without a lease to the front of its queue."""
        channel, info = kombu_of(self), message.delivery_info
        step = channel._get_message_priority(message._raw, reverse=False)
        for queue in channel._lookup(info["exchange"], info["routing_key"]):
            self.script_client.rpush(
                f"{channel.global_keyprefix}{channel._q_for_pri(queue, step)}", dumps(message._raw)
            )

    # ── between the calls ──

    @property
    def holds_leases(self) -> bool:
        """Whether the channel can tell Redis of leases."""
        return "holder" in vars(self)

    @property
    def carries_news(self) -> bool:
        """Whether what there was to tell is under way, not held up by a wait."""
        return bool(self._awaiting and self._awaiting[0].news)

    @property
    def fetches(self) -> bool:
        """Whether a fetch is under way, so that another one follows before long."""
        return bool(self._awaiting)

    def flush_news(self) -> None:
        """Tell Redis now what no fetch is going to take along."""
        tell(self.holder, self._run, self.fleet_keys)

    def _run(self, name: str, keys: Sequence[str], args: Sequence[Argument]) -> Any:  # what the script returns
        return load_script(name).run(self.script_client, keys, args)

    def _keep_alive(self) -> None:
        kombu_of(self).connection.keep_alive(self)

    def close(self) -> None:
        """Close the channel; what a fetch that is under way may still bring is given back with its holder's session."""
        self._awaiting.clear()
        channel = kombu_of(self)
        channel._in_poll = None
        if not channel.closed and channel._qos is not None and channel._qos._delivered:
            with suppress(*channel.connection_errors):
                channel._qos.restore_unacked()
        super().close()  # type: ignore[misc]

    # ── queues ──

    def _purge(self, queue: str) -> int:
        """Drop what waits in a queue, what is delayed for it, and what waits for a breaker."""
        waiting: int = super()._purge(queue)  # type: ignore[misc]
        return waiting + self._drop_delayed(queue) + self._drop_parked(queue)

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        super()._delete(queue, *args, **kwargs)  # type: ignore[misc]
        self._drop_delayed(queue)
        self._drop_parked(queue)

    def _drop_delayed(self, queue: str) -> int:
        keys = self.fleet_keys
        with self.script_client.pipeline() as pipe:
            pipe.zcard(keys.delayed(queue))
            pipe.delete(keys.delayed(queue))
            pipe.zrem(keys.due, queue)
            dropped, *_ = pipe.execute()
        return int(dropped)

    def _drop_parked(self, queue: str) -> int:
        return int(self._run("purge_parked", [], [self.fleet_keys.base, queue]))

    def _has_queue(self, queue: str, **_: Any) -> bool:
        """Tell whether a queue holds anything; kombu forgets its key prefix here."""
        channel = kombu_of(self)
        names = [f"{channel.global_keyprefix}{channel._q_for_pri(queue, step)}" for step in channel.priority_steps]
        return bool(self.script_client.exists(*names))
