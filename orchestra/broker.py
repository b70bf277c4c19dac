"""The app's own way to the broker's Redis, by kombu's way of connecting: TLS, Sentinel and sockets are kombu's."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from time import monotonic
from typing import Any, Final

from kombu import Connection
from kombu.exceptions import BatchPublishError, OperationalError  # type: ignore[attr-defined]  # newer than the stubs
from kombu.transport.redis import Transport as RedisTransport
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

from orchestra.config import RedisUrl
from orchestra.exceptions import BrokerUnavailableError, ConfigurationError

__all__ = [
    "REDIS_SCHEMES",
    "BrokerLink",
    "SubmissionError",
    "is_same_database",
    "location_of",
    "name_results",
    "named_broker",
    "within",
]

REDIS_SCHEMES: Final = ("redis", "rediss", "redis+socket", "sentinel")
_SENTINEL_OPTIONS: Final = ("master_name", "min_other_sentinels", "sentinel_kwargs")


class SubmissionError(BrokerUnavailableError, OperationalError):
    """A task couldn't be sent, since Redis can't be reached; code that expects kombu's OperationalError gets one."""


class BrokerLink:
    """A client to the broker, kept for this process and made anew after a fork or a loss."""

    def __init__(self, connect: Callable[[], Connection], *, patience_seconds: float) -> None:
        self._connect = connect
        self._patience_seconds = patience_seconds
        self._held: tuple[int, Connection, Any] | None = None  # process id, connection, channel
        self._lock = RLock()

    def client(self) -> "Redis":
        """Return a thread-safe client; the first call in a process connects."""
        with self._lock:
            if self._held is None or self._held[0] != os.getpid():
                connection = self._connect()
                if not issubclass(connection.get_transport_cls(), RedisTransport):
                    message = f"The broker's scheme is {connection.transport_cls!r}; agents and records need Redis."
                    raise ConfigurationError(message)
                connection.ensure_connection(
                    errback=within(self._patience_seconds),
                    max_retries=len(connection.alt) or 1,
                    interval_start=0,
                    reraise_as_library_errors=False,
                )
                channel: Any = connection.channel()  # ours, which has the client
                self._held = os.getpid(), connection, channel
            client: Redis = self._held[2].script_client
            return client

    def forget(self) -> None:
        """Connect anew at the next use, maybe to another server of the broker's list."""
        with self._lock:
            held, self._held = self._held, None
        if held is not None and held[0] == os.getpid():
            held[1].release()


def location_of(connection: Connection) -> str:
    """Return where a broker is, as errors say it: `host:port`, or a socket's path; never a password."""
    host = connection.hostname or "127.0.0.1"
    scheme, parted, path = host.partition("://")
    if parted:
        return f"{scheme}:{path.rpartition('@')[2].partition('?')[0]}"
    return f"{host}:{connection.port or 6379}"


def is_same_database(connection: Connection, parameters: Mapping[str, Any]) -> bool:
    """
    Tell whether a result backend's connection parameters lead to the broker's own database.

    False where that can't be told, as with Sentinel: results and records are then written one after the other.
    """
    host = connection.hostname or "127.0.0.1"
    if connection.transport_cls == "sentinel" or "://" in host or "path" in parameters:
        return False
    database = str(connection.virtual_host or "").strip("/") or "0"
    mine = host, str(connection.port or 6379), database
    return mine == tuple(str(parameters.get(name, "")) for name in ("host", "port", "db"))


def name_results(conf: Any, named: RedisUrl | None) -> None:
    """Have results go where the settings say, else to the broker's Redis, by the way that leads to the broker."""
    url = str(conf.broker_write_url or "")
    scheme = url.partition("://")[0]
    if named is not None:
        conf.result_backend = named.get_secret_value()
    elif scheme in REDIS_SCHEMES:
        conf.result_backend = url if scheme == "sentinel" else url.partition(";")[0]  # a list is Sentinel's alone
        if isinstance(conf.broker_use_ssl, Mapping) and not conf.redis_backend_use_ssl:
            conf.redis_backend_use_ssl = conf.broker_use_ssl
        if scheme == "sentinel":
            way = {name: value for name, value in conf.broker_transport_options.items() if name in _SENTINEL_OPTIONS}
            conf.result_backend_transport_options = {**way, **conf.result_backend_transport_options}


def within(seconds: float, clock: Callable[[], float] = monotonic) -> Callable[[Exception, float], None]:
    """
    Return an `errback` for kombu's retries that ends them in time.

    kombu bounds the number of attempts, not how long they take. An attempt lasts half the time at most (the
    transport's socket timeouts), so the last one begins by half-time.
    """
    last_start = clock() + seconds / 2

    def give_up_late(error: Exception, _interval: float) -> None:
        if clock() > last_start:
            raise error

    return give_up_late


@contextmanager
def named_broker(task: str, location: Callable[[], str]) -> Iterator[None]:
    """
    Say which broker a submission failed at.

    Raises:
        SubmissionError: it can't be reached.
        ConfigurationError: it refused the user name or password.

    """
    try:
        yield
    except SubmissionError:
        raise
    except (OperationalError, BatchPublishError, BrokerUnavailableError, RedisError, OSError) as error:
        if isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError):
            message = f"{task} was not submitted: Redis at {location()} refused the user name or password."
            raise ConfigurationError(message) from error
        message = f"{task} was not submitted: Redis at {location()} cannot be reached: {error.__cause__ or error}"
        raise SubmissionError(message) from error
