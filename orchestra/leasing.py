"""What a connection that consumes has beside its channels: who holds its leases, and the pulse that keeps them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final

from kombu.transport.redis import MultiChannelPoller, SentinelChannel
from kombu.utils.url import parse_url
from redis import SSLConnection
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from orchestra.leases import LeaseHolder
from orchestra.logging_utils import get_logger
from orchestra.patience import is_full
from orchestra.pulse import Pulse, beat_arguments
from orchestra.store import load_script

__all__ = ["LeasingTransport"]

_TRY_AGAIN_SECONDS: Final = 1.0  # after Redis couldn't be told something that no fetch takes along
log = get_logger(__name__)


_KombuPoller: Any = MultiChannelPoller  # celery-types leaves out what there is to derive from


class _Poller(_KombuPoller):  # type: ignore[misc]
    """kombu's poller, which reads every answer: what was fetched is in hand, whether or not there is room for it."""

    def __init__(self) -> None:
        super().__init__()
        self.holder: LeaseHolder | None = None
        self._quiet_until = 0.0

    def on_poll_start(self) -> None:
        """Do what each turn of the loop has to: show that it turns, fetch, and tell what no fetch takes along."""
        if self.holder is not None:
            self.holder.tick()
            self.maybe_check_brpop_health()
        super().on_poll_start()
        if self.holder is not None and self.holder.untold and monotonic() >= self._quiet_until:
            self._flush(self.holder)

    def maybe_check_brpop_health(self) -> None:
        """Drop a connection that owes an answer for too long, and with it those beside it, which are as old."""
        owing = {channel: channel._in_poll for channel in self._channels}
        super().maybe_check_brpop_health()
        for channel, connection in owing.items():
            if connection and connection._sock is None:
                channel.script_client.connection_pool.disconnect()

    def _register_BRPOP(self, channel: Any) -> None:  # noqa: N802  # kombu's name
        """Fetch, by a new connection where the old one has been idle for long and may have fallen silent."""
        connection = channel.client.connection
        if connection is not None and not channel._in_poll and _is_due_for_a_check(connection):
            connection.disconnect()  # to ask it for its health would hold the loop up until that has timed out
        super()._register_BRPOP(channel)

    def _flush(self, holder: LeaseHolder) -> None:
        channel = next((one for one in self._channels if one.holds_leases), None)
        if channel is None or channel.carries_news or (channel.fetches and not holder.hurry):
            return
        try:
            channel.flush_news()
        except RedisError as error:  # kept; and where the connection is gone, the fetch finds it so
            self._quiet_until = monotonic() + _TRY_AGAIN_SECONDS
            if isinstance(error, RedisTimeoutError):  # those beside it are as old
                channel.script_client.connection_pool.disconnect(inuse_connections=False)
            log.info("leases not told", error=str(error))

    def maybe_restore_messages(self) -> Any:  # as kombu has it
        """Look now and then for what stock workers have lost."""
        with _full_server_borne():
            return super().maybe_restore_messages()

    def maybe_check_subclient_health(self) -> None:
        """Find connections that have fallen silent."""
        with _full_server_borne():
            super().maybe_check_subclient_health()

    def _update_brpop_polling(self) -> None:
        """Leave out kombu's pause for a channel without room: its answer is under way, and what comes is leased."""

    def on_readable(self, fileno: int) -> None:
        """Read what has come."""
        found = self._fd_to_chan.get(fileno)
        if found is None:
            return
        channel, kind = found
        if kind != "BRPOP" or channel._in_poll:
            with _full_server_borne():  # it answers so to the PING by which a silent connection is found
                channel.handlers[kind]()
        else:  # nothing is expected: the server has closed an idle connection
            channel.client.connection.disconnect()


def _is_due_for_a_check(connection: Any) -> bool:  # a redis-py connection
    interval = connection.health_check_interval
    return bool(interval and connection._sock is not None and monotonic() > connection.next_health_check)


@contextmanager
def _full_server_borne() -> Iterator[None]:
    """Go on where a server takes nothing in; kombu would end the agent, which has tasks whose results can wait."""
    try:
        yield
    except ResponseError as error:
        if not is_full(error):
            raise
        log.debug("redis takes nothing in", error=str(error))


class LeasingTransport:
    """A transport whose channels lease what they fetch."""

    brpop_timeout = 0.5  # s; a queue of replies that is subscribed to while others are read is found after this long

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = _Poller()
        self.lease_holder: LeaseHolder | None = None  # who leases; a consumer that isn't an agent gets one by itself
        self.session = 0  # the number of this connection among its holder's
        self._kept_alive = False

    def hold(self) -> LeaseHolder:
        """Return who holds what this connection fetches."""
        if self.lease_holder is None:
            self.lease_holder = LeaseHolder(busy=lambda: True)  # it may work on a message for any time
        if not self.session:
            self.renew_session()
        self.cycle.holder = self.lease_holder
        return self.lease_holder

    def renew_session(self) -> None:
        """Give up a fetch whose answer was lost: it brings nothing any more, and what it has brought goes back."""
        if self.lease_holder is not None:
            self.session = self.lease_holder.next_session()

    def keep_alive(self, channel: Any) -> None:
        """See to it that the holder beats while it consumes by this channel."""
        if not self._kept_alive:
            holder = self.hold()
            parameters = _parameters(channel)
            holder.beat_with(parameters, lambda: _pulse(channel, parameters, holder))
            self._kept_alive = True

    def close_connection(self, connection: Any) -> None:
        """Close the connection; one that no agent holds has nothing to live for after it."""
        super().close_connection(connection)  # type: ignore[misc]  # kombu's transport, by method resolution
        if self.lease_holder is not None and not self.lease_holder.agent:
            self.lease_holder.rest()


def _pulse(channel: Any, parameters: Mapping[str, Any], holder: LeaseHolder) -> Pulse:
    lost_after = channel.orchestra_lost_after_seconds
    keys, args = beat_arguments(
        channel.fleet_keys, holder=holder.name, agent=holder.agent, lost_after_seconds=lost_after
    )
    return Pulse(
        parameters,
        load_script("pulse"),
        keys,
        args,
        every_seconds=channel.orchestra_beat_seconds,
        lost_after_seconds=lost_after,
    )


def _parameters(channel: Any) -> dict[str, Any]:
    """Return how a channel reaches Redis, in redis-py's names, for a process that has no redis-py."""
    made = channel._connparams()
    tls = issubclass(made.pop("connection_class"), SSLConnection)
    parameters = {**made, "ssl": tls}
    provider = made.get("credential_provider")
    if provider is not None:
        username, *password = provider.get_credentials()
        parameters |= {"username": username, "password": password[0]} if password else {"password": username}
    if isinstance(channel, SentinelChannel):
        connection: Any = channel.connection
        urls = [url for url in map(parse_url, connection.client.alt) if url["transport"] == "sentinel"]
        parameters |= {
            "sentinels": [(url["hostname"], url["port"] or connection.default_port) for url in urls]
            or [(made["host"], made["port"])],
            "master_name": getattr(channel, "master_name", None),
            "sentinel_kwargs": getattr(channel, "sentinel_kwargs", None),
        }
    return parameters
