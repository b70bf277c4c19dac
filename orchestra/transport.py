"""The kombu transport: a task's message, its record and its queue's registration are written in one step."""

from collections.abc import Mapping
from typing import Any, Final

import kombu.transport.base
from kombu import Connection
from kombu.connection import ConnectionPool, PooledConnection
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps
from kombu.utils.objects import cached_property
from kombu.utils.scheduling import round_robin_cycle
from redis import Redis

from orchestra.queues import CapabilityQueue, QueueNames
from orchestra.store import Argument, Keys, load_script
from orchestra.utils import mask_fields, mask_text

__all__ = ["Channel", "FleetConnection", "ScarceSkillFirst", "SentinelChannel", "SentinelTransport", "Transport"]

OPTIONS: Final = ("orchestra_fleet", "orchestra_default_queue", "orchestra_prefix", "orchestra_record_ttl_seconds")


class FleetConnection(Connection):
    """
    A kombu connection that opens our transport for Redis's schemes.

    The scheme stays what the URL says, so that `as_uri()` gives a plain Redis URL, lists of URLs fail over as ever,
    and kombu's own table of transports isn't touched: stock apps in the same process keep the stock transport.
    """

    def get_transport_cls(self) -> type[kombu.transport.base.Transport]:
        """Return our transport where kombu would take its Redis one, and kombu's choice elsewhere."""
        return _OURS.get(str(self.transport_cls)) or super().get_transport_cls()

    def info(self) -> dict[str, Any]:
        """
        Return what the connection is made of, without secrets: agents tell it to whoever asks for their statistics.

        kombu leaves those out that a URL names, but not those in a socket's URL or in options.
        """
        told: dict[str, Any] = super().info()
        return {
            **told,
            "hostname": mask_text(str(told["hostname"])),
            "transport_options": mask_fields(told["transport_options"]),
            "alternates": [mask_text(str(url)) for url in told["alternates"]],
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the connection with its secrets, as kombu does."""
        return type(self), tuple(dict(_kombu(self)._info()).values()), None

    def __eqhash__(self) -> tuple[Any, ...]:
        """Never share a pool with a stock connection to the same URL, or with one that has other servers to turn to."""
        return ("orchestra", *self.alt, super().__eqhash__())

    def Pool(self, limit: int | None = None, **_: Any) -> "FleetConnectionPool":  # noqa: N802  # kombu's name
        """Return a pool of connections like this one."""
        return FleetConnectionPool(self, limit)


class _PooledFleetConnection(FleetConnection, PooledConnection):
    """A connection that belongs to a pool."""


class FleetConnectionPool(ConnectionPool):
    """kombu's pool, which would make plain connections."""

    def new(self) -> FleetConnection:
        """Make one more connection with the first one's settings."""
        pooled: Any = _PooledFleetConnection  # its first argument is the pool, which celery-types doesn't know
        made: FleetConnection = pooled(self, **dict(self.connection._info(resolve=False)))
        return made

    def disconnect(self) -> None:
        """
        Disconnect what is idle, to connect anew when it is needed; connections in use go on.

        kombu shares a pool among the apps of one URL and never makes another, so that closing it would end them all.
        """
        idle = _kombu(self)._resource
        with idle.mutex:
            for connection in idle.queue:
                self.collect_resource(connection)


_RoundRobin: Any = round_robin_cycle  # celery-types has it generic, which it isn't at run time


class ScarceSkillFirst(_RoundRobin):  # type: ignore[misc]
    """
    The order in which an agent looks into its queues, within one urgency: the most demanding requirement first.

    An agent with a rare skill does the work that only it can do before work that others could do as well. One look in
    eight goes by turns instead, so that undemanding work is delayed but never starved.
    """

    fair_every = 8

    def __init__(self, it: list[str] | None = None) -> None:
        super().__init__(it)
        self._looks = 0

    def consume(self, n: int) -> list[str]:
        """Return the first `n` queues in the order of this look."""
        self._looks += 1
        queues: list[str] = list(self.items or ())[:n]
        if self._looks % self.fair_every == 0:
            return queues
        return sorted(queues, key=_demand, reverse=True)


def _demand(queue: str) -> int:
    """Count the terms that a queue's name asks for; a plain queue asks for none."""
    _, named, suffix = queue.partition(":")
    return suffix.count("+") + 1 if named else 0


class _FleetChannel:
    """What our channels add to kombu's, whichever server they speak to."""

    orchestra_fleet = ""
    orchestra_default_queue = ""
    orchestra_prefix = "orchestra"
    orchestra_record_ttl_seconds = 604_800.0
    queue_order_strategy = "orchestra.transport:ScarceSkillFirst"

    @cached_property
    def fleet_keys(self) -> Keys:
        """The fleet's key names, behind kombu's `global_keyprefix` if there is one."""
        return Keys(self.orchestra_prefix, self.orchestra_fleet, _kombu(self).global_keyprefix)

    @cached_property
    def _queue_names(self) -> QueueNames:
        return QueueNames(self.orchestra_fleet, self.orchestra_default_queue)

    @cached_property
    def script_client(self) -> "Redis":
        """A client without kombu's key prefixing, since scripts name their keys in full; kept, and thread-safe."""
        return Redis(connection_pool=_kombu(self).pool)

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """Push a message; a task's message takes its record and its queue's registration along."""
        headers = message.get("headers") or {}
        if "id" not in headers or "task" not in headers:  # remote control, replies, events
            super()._put(queue, message, **kwargs)  # type: ignore[misc]  # kombu's channel, by method resolution
            return
        keys, args = self._publish_arguments(queue, message, headers)
        batch, channel = kwargs.get("_publish_batch"), _kombu(self)
        if batch is None:
            load_script("publish").run(self.script_client, keys, args)
        else:
            batch.add("eval", load_script("publish").source, len(keys), *keys, *args)
        if queue not in channel._expires:
            return
        if batch is None:
            with channel.conn_or_acquire() as client:
                channel._maybe_update_queues_expire(client, queue)
            return
        for step in channel.priority_steps:
            batch.add("pexpire", channel._q_for_pri(queue, step), channel._expires[queue])

    def _publish_arguments(
        self, queue: str, message: dict[str, Any], headers: Mapping[str, Any]
    ) -> tuple[list[str], list[Argument]]:
        keys, channel = self.fleet_keys, _kombu(self)
        step = channel._q_for_pri(queue, channel._get_message_priority(message, reverse=False))
        eta = headers.get("eta")
        return (
            [f"{channel.global_keyprefix}{step}", keys.task(headers["id"]), keys.queues, keys.queues_version],
            [
                dumps(message),
                self._queue_names.suffix(queue) or "",
                headers["task"],
                queue,
                int(headers.get("retries") or 0) + 1,
                int(self.orchestra_record_ttl_seconds * 1000),
                f"not before {eta}" if eta else "",
            ],
        )

    def hand_on(self, message: Any, queue: CapabilityQueue) -> bool:
        """
        Move a message that was delivered here to another queue, in one step with giving up its delivery.

        Returns:
            False when the delivery was no longer ours, in which case nothing has happened.

        """
        keys, channel, name = self.fleet_keys, _kombu(self), self._queue_names.name(queue)
        priority = channel._get_message_priority(message._raw, reverse=False)
        prefix = channel.global_keyprefix
        moved = load_script("hand_on").run(
            self.script_client,
            [
                f"{prefix}{channel.unacked_key}",
                f"{prefix}{channel.unacked_index_key}",
                f"{prefix}{channel._q_for_pri(name, priority)}",
                keys.queues,
                keys.queues_version,
            ],
            [message.delivery_tag, dumps(message._raw), queue.suffix],
        )
        return bool(moved)


def _kombu(channel: object) -> Any:  # kombu ships no types, and a mix-in doesn't know what it is mixed into
    return channel


class Channel(_FleetChannel, kombu_redis.Channel):
    """A channel to one Redis server, by TCP, TLS or a unix socket."""

    from_transport_options = (*kombu_redis.Channel.from_transport_options, *OPTIONS)


class SentinelChannel(_FleetChannel, kombu_redis.SentinelChannel):
    """A channel to the server that Sentinel names."""

    from_transport_options = (*kombu_redis.SentinelChannel.from_transport_options, *OPTIONS)


class Transport(kombu_redis.Transport):
    """`redis://`, `rediss://` and `redis+socket://`."""

    Channel = Channel
    brpop_timeout = 0.5  # type: ignore[assignment]  # seconds; a queue that is subscribed to while running is looked into after at most this long


class SentinelTransport(kombu_redis.SentinelTransport):
    """`sentinel://`."""

    Channel = SentinelChannel
    brpop_timeout = 0.5  # type: ignore[assignment]  # seconds, as in Transport


_OURS: Final[Mapping[str, type[kombu_redis.Transport]]] = {
    "redis": Transport,
    "rediss": Transport,
    "sentinel": SentinelTransport,
}
