"""The app's own way to the broker's Redis, by kombu's way of connecting: TLS, Sentinel and sockets are kombu's."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from threading import RLock
from typing import Any, Final

from kombu import Connection
from kombu.exceptions import BatchPublishError, OperationalError  # type: ignore[attr-defined]  # newer than the stubs
from kombu.transport.redis import Transport as RedisTransport
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from orchestra.config import OrchestraSettings, RedisUrl
from orchestra.exceptions import BrokerUnavailableError, ConfigurationError
from orchestra.patience import Patience
from orchestra.publishing import FullQueueError, PublishId, UnconfirmedError
from orchestra.queues import QueueNames

__all__ = [
    "REDIS_SCHEMES",
    "BrokerLink",
    "QueueFullError",
    "SubmissionError",
    "bound_results",
    "is_same_database",
    "location_of",
    "make_repeatable",
    "name_results",
    "named_broker",
    "patience_of",
    "publish_policy",
    "transport_options",
]

REDIS_SCHEMES: Final = ("redis", "rediss", "redis+socket", "sentinel")
_SENTINEL_OPTIONS: Final = ("master_name", "min_other_sentinels", "sentinel_kwargs")


class SubmissionError(BrokerUnavailableError, OperationalError):
    """
    A task couldn't be sent, since Redis can't be reached; code that expects kombu's OperationalError gets one.

    `may_be_enqueued` is True where the message was sent and no answer came, so that only Redis knows whether the task
    is there: look up `task_id` before sending it again. For a batch `task_id` is None.
    """

    task_id: str | None = None
    may_be_enqueued: bool = False


class QueueFullError(SubmissionError):
    """
    A task wasn't submitted, since as many tasks as may wait in its queue already, or more.

    `refused` has the places of the payloads of a batch that weren't submitted, from 0 on; the others were.
    """

    queue: str = ""
    depth: int = 0
    limit: int = 0
    refused: tuple[int, ...] = ()


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
                    errback=Patience(self._patience_seconds),
                    max_retries=len(connection.alt) or 1,
                    interval_start=0,
                    reraise_as_library_errors=False,
                )
                channel: Any = connection.channel()  # ours, which has the client
                self._held = os.getpid(), connection, channel
            client: Redis = self._held[2].script_client
            return client

    def leave(self, client: "Redis | None") -> None:
        """
        Connect anew at the next use, where `client` is the one that was used last.

        What other threads have under way on it goes on; they find out by themselves whether the server is there.
        """
        with self._lock:
            if client is None or self._held is None or self._held[2].script_client is not client:
                return  # another thread has left it, or there's none
            self._held = None
        client.connection_pool.disconnect(inuse_connections=False)

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


def transport_options(conf: Any, settings: OrchestraSettings, names: QueueNames) -> dict[str, Any]:
    """Return what our transport is told, behind what the project's `broker_transport_options` say."""
    seconds = settings.connect_timeout_seconds
    return {
        "socket_connect_timeout": seconds / 2,  # so that two attempts fit
        "socket_timeout": seconds / 2,
        "connect_retries_timeout": seconds,  # these four: of a connection that is made with the first message
        "interval_start": 0,
        "interval_step": 0.1,
        "interval_max": 0.5,
        "max_connections": 1024,  # made as they're needed, one for each thread that speaks just now; kombu's 10 are few
        "health_check_interval": 3,  # seconds; an agent's connection that says nothing any more is noticed by then
        **conf.broker_transport_options,
        "orchestra_fleet": names.fleet,
        "orchestra_default_queue": names.default,
        "orchestra_prefix": settings.key_prefix,
        "orchestra_record_ttl_seconds": settings.state_ttl_seconds,
        "orchestra_patience_seconds": seconds,
        "orchestra_beat_seconds": settings.beat_seconds,
        "orchestra_lost_after_seconds": settings.beat_seconds * settings.lost_after_beats,
    }


def bound_results(conf: Any, seconds: float) -> None:
    """Have a result backend that says nothing be left in time, where the project's configuration doesn't bound that."""
    for setting in ("redis_socket_timeout", "redis_socket_connect_timeout"):
        if not conf.value_set_for(setting):
            conf[setting] = seconds


def patience_of(options: Mapping[str, Any], most_seconds: float) -> Patience:
    """Return the patience of one submission: a shorter `timeout` of the caller's counts, and an `errback` is called."""
    seconds = min(options.get("timeout") or inf, most_seconds)
    return Patience(seconds, told=(options.get("retry_policy") or {}).get("errback"))


def publish_policy(conf: Any, options: Mapping[str, Any], patience: Patience) -> dict[str, Any]:
    """
    Return how kombu is to repeat a publish: as long as there is patience, and at its pace.

    Where the caller or the project chose `retry` or a number of attempts, that counts instead.
    """
    given = options.get("retry_policy") or {}
    chosen = {**conf.task_publish_retry_policy, **given} if conf.value_set_for("task_publish_retry_policy") else given
    retry = options.get("retry")
    if "max_retries" in chosen or not (conf.task_publish_retry if retry is None else retry):
        return {"errback": None, **given}  # without the key kombu would take the one that the connection had last
    pace = {"interval_start": 0, "interval_step": 0, "interval_max": 0}
    return {"max_retries": None, **pace, **chosen, "errback": patience}


def make_repeatable(options: dict[str, Any], publish_id: PublishId, patience: Patience, conf: Any) -> None:
    """Give a publish its id, by which Redis knows a repetition, and its retry policy."""
    options["delivery_tag"] = publish_id
    options["retry_policy"] = publish_policy(conf, options, patience)
    if options["retry_policy"]["errback"] is patience:
        publish_id.patience = patience


@contextmanager
def named_broker(
    task: str, location: Callable[[], str], *, task_id: str | None = None, publish_id: PublishId | None = None
) -> Iterator[None]:
    """
    Say which broker a submission failed at, and whether the task may have been enqueued all the same.

    Raises:
        SubmissionError: it can't be reached.
        QueueFullError: it can, and the queue takes no more.
        ConfigurationError: it refused the user name or password.

    """
    try:
        yield
    except SubmissionError:
        raise
    except FullQueueError as error:
        raise _full(task, error, task_id) from error
    except (OperationalError, BatchPublishError, BrokerUnavailableError, RedisError, OSError) as error:
        if isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError):
            message = f"{task} was not submitted: Redis at {location()} refused the user name or password."
            raise ConfigurationError(message) from error
        reason = str(error.__cause__ or error).rstrip(".")
        what = f"Redis at {location()} {_failing(error.__cause__)}: {reason}"
        if isinstance(error, BatchPublishError):
            raise _lost_batch(task, what, may_be_enqueued=getattr(error, "may_be_enqueued", True)) from error
        if publish_id is not None and publish_id.unanswered:
            message = (
                f"{task} was not confirmed: {what}; it may have been enqueued: look it up by its id {task_id} before "
                "sending it again."
            )
            raise SubmissionError(message, task_id=task_id, may_be_enqueued=True) from error
        message = f"{task} was not submitted: {what}; it was not enqueued."
        raise SubmissionError(message, task_id=task_id) from error


def _full(task: str, error: FullQueueError, task_id: str | None) -> QueueFullError:
    message = (
        f"{task} was not submitted{'' if error.sent == 1 else ' as a whole'}: {error.depth} tasks wait in the queue "
        f"{error.queue}, and max_queue_depth allows {error.limit}. Submit again later, start more agents that serve "
        "the queue, or allow more."
    )
    return QueueFullError(
        message, task_id=task_id, queue=error.queue, depth=error.depth, limit=error.limit, refused=error.refused
    )


def _failing(cause: BaseException | None) -> str:
    if isinstance(cause, UnconfirmedError):
        return "has too few replicas in reach"
    return "refused the message" if isinstance(cause, ResponseError) else "cannot be reached"


def _lost_batch(task: str, what: str, *, may_be_enqueued: bool) -> SubmissionError:
    if not may_be_enqueued:
        return SubmissionError(f"{task} was not submitted, nor was the rest of its batch: {what}; none was enqueued.")
    message = (
        f"{task} was not confirmed, nor was the rest of its batch: {what}; some may have been enqueued: look them up "
        "before sending them again."
    )
    return SubmissionError(message, may_be_enqueued=True)
