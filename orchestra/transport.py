"""The kombu transport: its connections and channels."""

from collections.abc import Mapping
from typing import Any, Final

import kombu.transport.base
from kombu import Connection
from kombu.connection import ConnectionPool, PooledConnection
from kombu.transport import redis as kombu_redis

from orchestra.channel import OPTIONS, kombu_of
from orchestra.fetching import Fetching
from orchestra.leasing import LeasingTransport
from orchestra.publishing import Publishing
from orchestra.utils import mask_fields, mask_text

__all__ = ["Channel", "FleetConnection", "SentinelChannel", "SentinelTransport", "Transport"]


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
        return type(self), tuple(dict(kombu_of(self)._info()).values()), None

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
        idle = kombu_of(self)._resource
        with idle.mutex:
            for connection in idle.queue:
                self.collect_resource(connection)


# kombu ships no types, and celery-types has its parts closed to what they are made for: to be derived from.
_Channel: Any = kombu_redis.Channel
_SentinelChannel: Any = kombu_redis.SentinelChannel
_Transport: Any = kombu_redis.Transport
_SentinelTransport: Any = kombu_redis.SentinelTransport


class _FleetChannel(Publishing, Fetching):
    """What our channels add to kombu's, whichever server they speak to."""

    queue_order_strategy = "orchestra.queue_order:ScarceSkillFirst"


def _options(theirs: tuple[str, ...]) -> tuple[str, ...]:
    """Return the options that a channel takes; kombu's switch for acknowledgements isn't one."""
    return (*(option for option in theirs if option != "ack_emulation"), *OPTIONS)


class Channel(_FleetChannel, _Channel):  # type: ignore[misc]
    """A channel to one Redis server, by TCP, TLS or a unix socket."""

    from_transport_options = _options(_Channel.from_transport_options)


class SentinelChannel(_FleetChannel, _SentinelChannel):  # type: ignore[misc]
    """A channel to the server that Sentinel names."""

    from_transport_options = _options(_SentinelChannel.from_transport_options)


class Transport(LeasingTransport, _Transport):  # type: ignore[misc]
    """`redis://`, `rediss://` and `redis+socket://`."""

    Channel = Channel
    recoverable_connection_errors = (*_Transport.connection_errors, *_Transport.channel_errors)
    recoverable_channel_errors = ()


class SentinelTransport(LeasingTransport, _SentinelTransport):  # type: ignore[misc]
    """`sentinel://`."""

    Channel = SentinelChannel
    recoverable_connection_errors = Transport.recoverable_connection_errors
    recoverable_channel_errors = ()


_OURS: Final[Mapping[str, type[kombu_redis.Transport]]] = {
    "redis": Transport,
    "rediss": Transport,
    "sentinel": SentinelTransport,
}
