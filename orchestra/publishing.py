"""How a message is sent: a task's message, its record and its queue's registration are written in one step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self
from uuid import uuid4

from kombu.exceptions import BatchPublishError  # type: ignore[attr-defined]  # newer than the stubs
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps
from redis.exceptions import AuthenticationError, BusyLoadingError, NoScriptError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from orchestra.channel import FleetChannel, kombu_of
from orchestra.claims import Claim, Standing
from orchestra.delays import due_at
from orchestra.followers import Follower
from orchestra.patience import Patience, is_loss
from orchestra.store import Argument, Keys, load_script, text_of
from orchestra.unroutable import FALLBACK_HEADER

__all__ = [
    "FullQueueError",
    "LostBatchError",
    "Place",
    "PublishId",
    "Publishing",
    "Sample",
    "UnconfirmedError",
    "publish",
]

_FALLBACK: Final = "fallback, as nobody could run "
_Call = list[Argument]  # the keys and arguments of one run of a script, their number first
WAIT_SHARE: Final = 0.3  # of the patience is one wait for replicas; a lost reply ends the attempt at half of it


class PublishId(str):  # noqa: SLOT000  # it has an attribute
    """
    Names one publish, however often it is attempted; it travels as the message's delivery tag.

    It is a type of its own to be told from a tag that was read from a message: who sends that on publishes anew.
    """

    unanswered = False  # whether an attempt was sent to a server that didn't say what came of it
    claim: Claim | None = None  # what its task claims
    result: Any = None  # Celery's handle of the task, which has its id set right
    standing: Standing | None = None  # the task that was there already, instead of which nothing was published
    patience: Patience | None = None  # None leaves a loss to kombu
    was_noted = False  # whether the task follows another one, whose publish noted that
    followers: tuple[Follower, ...] = ()  # what follows the task
    replicas = 0  # how many have to have the message before the publish counts as done
    queue = ""  # where it goes
    messages = 1  # how many it publishes
    most_waiting = 0  # how many may wait in its queue before it is refused; 0 for any number
    full_at: int | None = None  # how many waited where it was refused for that, or the rest of its messages were
    accepted = 0  # how many of its messages were taken then

    @classmethod
    def new(cls, patience: Patience | None = None) -> Self:
        """Return an id that nothing has had."""
        made = cls(uuid4())
        made.patience = patience
        return made

    def learn(self, reply: Any) -> None:
        """Take in what the script has answered."""
        self.full_at = None
        match reply:
            case [_, depth, accepted]:
                self.full_at, self.accepted = depth, accepted
            case [task_id, same]:
                self.standing = Standing(text_of(task_id), bool(same))
                self.hand_over()

    def hand_over(self, result: Any = None) -> None:
        """Have a handle be that of the task which was there already, now or once that is known."""
        self.result = result or self.result
        if self.standing is not None and self.result is not None:
            self.result.id, self.result.standing = self.standing.task_id, self.standing


@dataclass(frozen=True, slots=True)
class Place:
    """
    Where a message is pushed to.

    `queue` is a queue's name, `suffix` what stands for it in the table of queues ('' where it isn't the fleet's),
    `path` the list of its priority, and `paths` all its lists, by their whole names in Redis.
    """

    queue: str
    suffix: str
    path: str
    paths: tuple[str, ...]


class Sample(PublishId):  # as above
    """Names a publish that isn't carried out: the message is made, and stays here."""

    message: Mapping[str, Any] | None = None
    place: Place | None = None
    is_plain = False  # whether any connection to the broker can push it, and nothing besides it has to be done


class UnconfirmedError(RedisConnectionError):
    """The server has a message, and too few of its replicas do; a repetition enqueues it once, on whoever is master."""


class FullQueueError(Exception):
    """
    As many messages wait in a queue as may, or more.

    Attributes:
        queue: the queue's name.
        depth: how many wait in it.
        limit: how many may.
        sent: how many messages were sent together, those that went before in the same batch included.
        refused: the places among them of those that were refused.

    """

    def __init__(self, first: PublishId, *, refused: Sequence[int], sent: int) -> None:
        super().__init__(f"{first.full_at} messages wait in {first.queue}, and {first.most_waiting} may")
        self.queue, self.depth, self.limit = first.queue, first.full_at or 0, first.most_waiting
        self.refused, self.sent = tuple(refused), sent

    def count_before(self, count: int) -> None:
        """Take in how many messages of the same batch were sent before."""
        self.refused = tuple(count + place for place in self.refused)
        self.sent += count


class LostBatchError(BatchPublishError):  # type: ignore[misc]  # newer than the stubs
    """A batch couldn't be sent; `may_be_enqueued` tells whether a part of it may have been, or has been."""

    may_be_enqueued = False


class Publishing(FleetChannel):
    """The sending half of a channel."""

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any) -> Any:  # kombu's
        """Publish a message; a sample never leaves, not even by an exchange that has other ways than `_put`."""
        if exchange and isinstance(message["properties"].get("delivery_tag"), Sample):
            return None
        return super().basic_publish(message, exchange, routing_key, **kwargs)  # type: ignore[misc]  # kombu's channel

    def _inplace_augment_message(self, message: dict[str, Any], exchange: str, routing_key: str) -> None:
        """Complete a message; one that is published again after a loss, with the same properties, keeps its id."""
        given = message["properties"].get("delivery_tag")
        super()._inplace_augment_message(message, exchange, routing_key)  # type: ignore[misc]  # kombu's channel, by method resolution
        message["properties"]["delivery_tag"] = given if isinstance(given, PublishId) else PublishId.new()

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """Push a message; a task's message takes its record and its queue's registration along."""
        headers = message.get("headers") or {}
        if "id" not in headers or "task" not in headers:  # remote control, replies, events
            super()._put(queue, message, **kwargs)  # type: ignore[misc]  # kombu's channel, by method resolution
            return
        if kombu_of(self).connection is None:  # kombu closed the channel when it declared the queue on a new connection
            raise RedisConnectionError("the channel was closed")  # which has kombu publish on the new one's
        tag = message["properties"].get("delivery_tag")
        publish_id = tag if isinstance(tag, PublishId) else PublishId()  # without one nothing is taken for a repeat
        if isinstance(publish_id, Sample):
            publish_id.message, publish_id.place = message, self._place(queue, message)
            publish_id.is_plain = not (self._has_other_servers or queue in kombu_of(self)._expires)
            return
        publish_id.queue = queue
        call = self._call(queue, message, headers, publish_id)
        batch, channel = kwargs.get("_publish_batch"), kombu_of(self)
        if batch is not None:
            batch.take(call, publish_id)
        elif publish_id.patience is None or self._has_other_servers:
            self._publish([call], [publish_id])
        else:
            publish_id.patience.insist(lambda: self._publish([call], [publish_id]))
        if queue not in channel._expires:
            return
        if batch is None:
            with channel.conn_or_acquire() as client:
                channel._maybe_update_queues_expire(client, queue)
            return
        for step in channel.priority_steps:
            batch.add("pexpire", channel._q_for_pri(queue, step), channel._expires[queue])

    def _publish(self, calls: Sequence[_Call], ids: Sequence[PublishId]) -> None:
        """Publish messages in one round trip; three waits for replicas fit into our patience."""
        publish(kombu_of(self).pool, calls, ids, wait_seconds=self.orchestra_patience_seconds * WAIT_SHARE)

    @property
    def _has_other_servers(self) -> bool:
        """Whether kombu has another server to turn to; one behind Sentinel is found by its connections themselves."""
        link = kombu_of(self).connection.client
        return len(link.alt) > 1 and link.transport_cls != "sentinel"

    def _call(self, queue: str, message: dict[str, Any], headers: Mapping[str, Any], publish_id: PublishId) -> _Call:
        ttl_ms = int(self.orchestra_record_ttl_seconds * 1000)
        return publish_call(self.fleet_keys, self._place(queue, message), dumps(message), headers, publish_id, ttl_ms)

    def _place(self, queue: str, message: Mapping[str, Any]) -> Place:
        channel = kombu_of(self)
        prefix, step = channel.global_keyprefix, channel._get_message_priority(message, reverse=False)
        return Place(
            queue,
            self._queue_names.suffix(queue) or "",
            f"{prefix}{channel._q_for_pri(queue, step)}",
            tuple(f"{prefix}{channel._q_for_pri(queue, step)}" for step in channel.priority_steps),
        )

    def create_publish_batch(self, max_size: int) -> "_Batch":
        """Return a batch for a `Producer.batch()`."""
        return _Batch(self, max_size)


_PublishBatch: Any = kombu_redis.PublishBatch  # type: ignore[attr-defined]  # newer than the stubs


class _Batch(_PublishBatch):  # type: ignore[misc]
    """kombu's batch, which sends task messages by our script; since that may run twice, a flush is tried again."""

    def __init__(self, channel: Any, max_size: int) -> None:
        super().__init__(channel, max_size)
        self._calls: list[_Call] = []
        self._ids: list[PublishId] = []
        self._sent = 0  # how many flushes that succeeded have sent

    def take(self, call: _Call, publish_id: PublishId) -> None:
        """Take the call of one message, to be sent with the next flush."""
        self._calls.append(call)
        self._ids.append(publish_id)

    def publish(self, message: dict[str, Any], **kwargs: Any) -> Any:  # what kombu's returns
        """Take a message, and flush what is enough for a round trip."""
        result = super().publish(message, **kwargs)
        if len(self._calls) >= self.max_size:
            self.flush()
        return result

    def flush(self) -> None:
        """
        Send what was taken, in one round trip.

        Raises:
            LostBatchError: the server couldn't be reached for as long as a submission may take, or refused a message.
            FullQueueError: a queue took not all of them.

        """
        self._check_usable()
        calls, self._calls = self._calls, []
        ids, self._ids = self._ids, []
        if calls:
            try:
                Patience(self.channel.orchestra_patience_seconds).insist(lambda: self.channel._publish(calls, ids))
            except FullQueueError as error:
                self.pipeline.reset()
                error.count_before(self._sent)
                self._failed = error
                raise
            except Exception as error:
                self._failed = self._lost(error, ids)
                raise self._failed from error
            self._sent += len(calls)
        super().flush()

    def _lost(self, error: Exception, ids: Sequence[PublishId]) -> LostBatchError:
        self.pipeline.reset()
        lost = LostBatchError(f"A batch of messages was not sent: {error}")
        lost.may_be_enqueued = self._sent > 0 or isinstance(error, ResponseError) or any(one.unanswered for one in ids)
        return lost

    def discard(self) -> None:
        """Forget what was taken and not sent."""
        self._calls, self._ids = [], []
        super().discard()


def publish_call(
    keys: Keys, place: Place, message: str, headers: Mapping[str, Any], publish_id: PublishId, ttl_ms: int
) -> _Call:
    """Return what `scripts/publish.lua` takes for one message, whose `headers` these are."""
    due, limit = due_at(headers), publish_id.most_waiting if place.suffix else 0
    paths = place.paths if limit else ()
    return [
        5 + len(paths),
        place.path,
        keys.task(headers["id"]),
        keys.queues,
        keys.queues_version,
        keys.due,
        *paths,
        message,
        place.suffix,
        headers["task"],
        place.queue,
        int(headers.get("retries") or 0) + 1,
        ttl_ms,
        note_of(headers, delayed=due is not None),
        keys.base,
        publish_id,
        "" if due is None else f"{due:.6f}",
        headers["id"] if publish_id.was_noted else "",
        int(bool(headers.get("requires"))),
        publish_id.claim.packed if publish_id.claim else "",
        limit,
        *(word for one in publish_id.followers for word in (one.task_id, one.name, one.after, one.link)),
    ]


def note_of(headers: Mapping[str, Any], *, delayed: bool) -> str:
    """Return what the record is to tell of a publish: until when it waits, and that it isn't where it belongs."""
    note = f"not before {headers['eta']}" if delayed else ""
    if FALLBACK_HEADER not in headers:
        return note
    return f"{note}; {_FALLBACK}{headers[FALLBACK_HEADER]}" if note else f"{_FALLBACK}{headers[FALLBACK_HEADER]}"


# ── what is said to the server ──
# By redis-py's connections rather than its client, which doesn't tell whether a command was sent before it failed.
# Nor is an idle connection asked for its health first: a message that goes into a dead one is sent again.


def publish(
    pool: Any, calls: Sequence[_Call], ids: Sequence[PublishId], *, wait_seconds: float, script: str = "publish"
) -> None:
    """
    Publish messages in one round trip, by one run of a script for each call.

    Where the server doesn't know the script, one more round trip takes it along once.

    Where replicas are to confirm, the wait for them rides along behind the last message.
    """
    known = load_script(script)
    replicas = max((one.replicas for one in ids), default=0)
    commands: list[_Call] = [["EVALSHA", known.sha, *call] for call in calls]
    if replicas:
        commands.append(["WAIT", replicas, round(wait_seconds * 1000)])
    replies = _exchange(pool, commands, ids)
    if any(isinstance(reply, NoScriptError) for reply in replies):
        replies = _exchange(pool, [["SCRIPT", "LOAD", known.source], *commands], ids)[1:]
    for reply, publish_id in zip(replies, ids, strict=False):  # one more where replicas were waited for
        publish_id.learn(reply)
    _raise_refusal(replies[: len(calls)])
    if replicas:
        _check_confirmed(replies[-1], replicas, ids)
    _raise_full(ids)


def _exchange(pool: Any, commands: Sequence[_Call], ids: Sequence[PublishId]) -> list[Any]:
    """Send commands and return their replies, refusals among them; ids whose replies don't come are marked."""
    connection = pool.get_connection()  # a failure here sent nothing
    try:
        # A failure of this one neither: what isn't sent to its last byte is never run.
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        try:
            replies = [_reply(connection) for _ in commands]
        except (AuthenticationError, BusyLoadingError):  # which are answers
            raise
        except BaseException:
            for one in ids:
                one.unanswered = True
            raise
    except BaseException:
        connection.disconnect()  # with replies that nobody has read
        raise
    else:
        if any(is_loss(reply) for reply in replies) or _lacks_replicas(commands[-1], replies[-1]):
            connection.disconnect()  # in a failover its address may lead elsewhere by now
        return replies
    finally:
        pool.release(connection)


def _reply(connection: Any) -> Any:  # what the command returns, or its refusal
    try:
        return connection.read_response()
    except ResponseError as error:
        return error
    except RedisConnectionError as error:
        if isinstance(error.__context__, ReadOnlyError):  # redis-py's word for it behind Sentinel
            return error.__context__
        raise


def _raise_refusal(replies: Sequence[Any]) -> None:
    """Raise the first error among replies; one that may pass as the loss of the connection, which kombu repeats."""
    for reply in replies:
        if is_loss(reply) or isinstance(reply, NoScriptError):
            raise RedisConnectionError(str(reply)) from reply
        if isinstance(reply, Exception):
            raise reply


def _raise_full(ids: Sequence[PublishId]) -> None:
    """Raise if messages were refused since their queue is full; the others are published."""
    refused: list[int] = []
    place = 0
    for one in ids:
        if one.full_at is not None:
            refused += range(place + one.accepted, place + one.messages)
        place += one.messages
    if refused:
        raise FullQueueError(next(one for one in ids if one.full_at is not None), refused=refused, sent=place)


def _lacks_replicas(command: _Call, reply: Any) -> bool:
    return command[0] == "WAIT" and isinstance(reply, int) and reply < int(command[1])


def _check_confirmed(reply: Any, replicas: int, ids: Sequence[PublishId]) -> None:
    """Raise unless enough replicas have what was published; what became of it is as open as without any answer."""
    if isinstance(reply, int) and reply >= replicas:
        return
    for one in ids:
        one.unanswered = True
    if isinstance(reply, Exception):
        raise reply
    message = f"{reply} of {replicas} {'replica' if replicas == 1 else 'replicas'} confirmed the message in time"
    raise UnconfirmedError(message)
