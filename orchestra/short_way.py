"""The short way of a submission: its message is filled into a template, and pushed over a connection at hand."""

import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import ModuleType
from typing import Any, Final

from celery import signals
from celery.app.routes import MapRoute
from celery.backends.base import Backend
from celery.backends.redis import RedisBackend
from celery.utils.collections import DictAttribute
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError, ResponseError

from orchestra.amqp import OrchestraAMQP
from orchestra.patience import Patience
from orchestra.publishing import (
    WAIT_SHARE,
    FullQueueError,
    LostBatchError,
    Place,
    PublishId,
    Sample,
    note_of,
    publish,
    publish_call,
)
from orchestra.store import Argument
from orchestra.templates import Template, template_of
from orchestra.wires import Wires

__all__ = ["PER_ROUND_TRIP", "ShortWay", "Way"]

PER_ROUND_TRIP: Final = 500

_MOST_WAYS: Final = 1_000  # requirements may be made up for each call
_WATCHED: Final = ("task_always_eager", "task_send_sent_event")  # which tests and people change in a running process
_STEPS: Final = ("as_task_v2", "create_task_message", "send_task_message", "_create_task_sender")
_OPTIONS: Final = frozenset(
    (
        *("task_type", "result_cls", "add_to_parent", "ignore_result"),
        *("queue", "priority", "serializer", "time_limit", "soft_time_limit"),
    )
)


@dataclass(frozen=True, slots=True)
class Way:
    """How all calls of one kind are sent: a template of their message, and where it goes."""

    template: Template
    place: Place
    headers: Mapping[str, Any]  # of the template's message
    ttl_ms: int
    keys: Sequence[str]  # these two: what `scripts/submit.lua` is given for all calls of the kind
    words: Sequence[Argument]


class Outlook:
    """
    What an app's configuration comes to for submissions, and whether it's still the same.

    Celery looks every setting up anew through several mappings; comparing them as a whole takes a fraction of one look.
    """

    def __init__(self, app: Any) -> None:  # OrchestraCelery, which is built on this
        conf = app.conf
        self.is_eager = bool(conf.task_always_eager)  # which has the configuration read, if it wasn't
        self._conf = conf
        self._maps = tuple(conf.maps)
        self._process = os.getpid()  # which stands in every message
        seen = [_within(mapping) for mapping in self._maps[:-1]]  # without Celery's own defaults
        self._seen = [(mapping, dict(mapping)) for mapping in seen if mapping is not None]
        self._asked = self._answers() if None in seen else None
        self.inherits = bool(conf.task_inherit_parent_priority)
        self.levels = conf.task_repr_maxlevels
        self.is_plain = _is_plain(app)
        self.ways: dict[Hashable, Way | None] = {}

    def holds(self, app: Any) -> bool:  # as above
        """Tell whether the configuration is what it was."""
        conf = app.conf
        return (
            conf is self._conf
            and self._process == os.getpid()
            and len(conf.maps) == len(self._maps)
            and all(now == then for now, then in self._seen)
            and (self._asked is None or self._asked == self._answers())
        )

    def _answers(self) -> list[Any]:
        return [self._conf[name] for name in _WATCHED]


def _within(mapping: Any) -> Mapping[str, Any] | None:
    """Return what can be compared of one of a configuration's mappings; None where it has to be asked each time."""
    if isinstance(mapping, DictAttribute) and isinstance(mapping.obj, (ModuleType, type)):
        return vars(mapping.obj)
    return mapping if type(mapping) is dict else None


def _is_plain(app: Any) -> bool:  # as above
    """Tell whether messages are made as Celery makes them, alike for all calls of one kind, and nobody looks on."""
    conf = app.conf
    return (
        app.is_on_redis
        and (conf.task_protocol, bool(conf.task_send_sent_event), bool(conf.task_publish_retry)) == (2, False, True)
        and not (conf.task_always_eager or conf.task_compression or conf.value_set_for("task_publish_retry_policy"))
        and _makes_stock_messages(app.amqp)
        and all(type(route) is MapRoute or route is app.task_router for route in app.amqp.routes)
        and _does_nothing_at_calls(app.backend)
    )


def _does_nothing_at_calls(backend: Any) -> bool:  # one of Celery's, with our records
    return isinstance(backend, RedisBackend) or type(backend).on_task_call is Backend.on_task_call


def _makes_stock_messages(amqp: Any) -> bool:  # OrchestraAMQP, or what a project makes of it
    return all(getattr(type(amqp), step) is getattr(OrchestraAMQP, step) for step in _STEPS)


class ShortWay:
    """
    Sends what a template can express, and tells what it can't.

    That is whatever is alike in all calls of one kind but ids, arguments and who sent it. All else goes Celery's way:
    times, links, chains, chords, groups, stamps, headers, connections and policies of the caller's own, routes that are
    functions, and every message while somebody looks on by signals or `task-sent` events.
    """

    def __init__(self, app: Any, wires: Wires) -> None:  # as above
        self._app = app
        self._wires = wires
        self._outlook: Outlook | None = None

    @property
    def outlook(self) -> Outlook:
        """What the configuration comes to now."""
        outlook = self._outlook
        if outlook is None or not outlook.holds(self._app):
            outlook = self._outlook = Outlook(self._app)
        return outlook

    def takes(self, name: str, args: object, kwargs: object, options: Mapping[str, Any]) -> bool:
        """Tell whether a call may be sent this way, as far as that can be told without its message."""
        outlook = self.outlook
        return (
            outlook.is_plain
            and not (outlook.inherits and self._app.current_worker_task is not None)
            and not (signals.before_task_publish.receivers or signals.after_task_publish.receivers)
            and not signals.task_sent.receivers
            and _OPTIONS.issuperset([option for option, value in options.items() if value is not None])
            and options.get("serializer") in {None, "json"}
            and isinstance(options.get("queue"), (str, type(None)))
            and isinstance(args, (list, tuple, type(None)))
            and isinstance(kwargs, (dict, type(None)))
            and not name.startswith("celery.")
        )

    def way(
        self, name: str, options: Mapping[str, Any], make: Callable[[Sample], object], *, routed_by: object
    ) -> Way | None:
        """
        Return how calls with these options are sent; None for Celery's way.

        `routed_by` is what the task declares to require, which the catalogue may tell otherwise the next time.
        `make` has Celery make the message of one, which a sample names.
        """
        outlook = self._outlook or self.outlook  # as `takes` has seen it
        kind = (*_kind(name, options), routed_by)
        if kind not in outlook.ways:
            if len(outlook.ways) >= _MOST_WAYS:
                outlook.ways.clear()
            outlook.ways[kind] = self._made(name, outlook, make)
        return outlook.ways.get(kind)

    def _made(self, name: str, outlook: Outlook, make: Callable[[Sample], object]) -> Way | None:
        sample = Sample.new()
        make(sample)
        if not sample.is_plain or sample.message is None or sample.place is None:
            return None
        amqp = self._app.amqp
        most_args, most_kwargs = amqp.argsrepr_maxsize, amqp.kwargsrepr_maxsize
        template = template_of(sample.message, most_args=most_args, most_kwargs=most_kwargs, levels=outlook.levels)
        if template is None:
            return None
        headers, keys = sample.message["headers"], self._app.store.keys
        ttl_ms = int(self._app.settings.state_ttl_seconds * 1000)
        first = (sample.place.path, keys.queues, keys.queues_version)
        last = (sample.place.suffix, name, sample.place.queue, ttl_ms, note_of(headers, delayed=False), keys.base)
        return Way(template, sample.place, headers, ttl_ms, first, (*last, int(bool(headers.get("requires")))))

    def send(self, way: Way, messages: Sequence[tuple[str, str, str]], publish_id: PublishId) -> None:
        """
        Send messages of one kind in one round trip: of each the task's id, the publish's, and its JSON.

        `publish_id` stands for all of them. With a claim it's one message.
        """
        publish_id.queue, publish_id.messages = way.place.queue, len(messages)
        if publish_id.claim is None:
            self._insist(publish_id, "submit", _submit_call(way, messages, publish_id))
            return
        ((task_id, _, message),) = messages
        headers, keys = {**way.headers, "id": task_id}, self._app.store.keys
        self._insist(publish_id, "publish", publish_call(keys, way.place, message, headers, publish_id, way.ttl_ms))

    def send_many(
        self, way: Way, messages: Iterable[tuple[str, str, str]], *, most_waiting: int, replicas: int
    ) -> list[str]:
        """
        Send messages of one kind, as `send` takes them, in round trips of 500; return the tasks' ids.

        Raises:
            FullQueueError: the queue has no room for all; what went before is published.
            LostBatchError: Redis can't be reached for as long as a submission may take, or refused a message.

        """
        sent: list[str] = []
        rest = iter(messages)
        while part := list(islice(rest, PER_ROUND_TRIP)):
            publish_id = PublishId.new(Patience(self._app.settings.connect_timeout_seconds))
            publish_id.most_waiting, publish_id.replicas = most_waiting, replicas
            try:
                self.send(way, part, publish_id)
            except FullQueueError as error:
                error.count_before(len(sent))
                raise
            except OperationalError as error:
                lost = LostBatchError(f"A batch of messages was not sent: {error}")
                refused = isinstance(error.__cause__, ResponseError)
                lost.may_be_enqueued = bool(sent) or refused or publish_id.unanswered
                raise lost from error.__cause__
            sent += [task_id for task_id, _, _ in part]
        return sent

    def _insist(self, publish_id: PublishId, script: str, call: list[Argument]) -> None:
        wait_seconds = self._app.settings.connect_timeout_seconds * WAIT_SHARE
        while True:
            try:
                return publish(self._wires, [call], [publish_id], wait_seconds=wait_seconds, script=script)
            except (RedisError, OSError) as error:
                self._wires.drop_idle()  # the others are as old as the one that was lost
                _await_next(publish_id, error)


def _await_next(publish_id: PublishId, error: Exception) -> None:
    """Return when there may be another attempt; raise as kombu does where there may not."""
    try:
        if publish_id.patience is None:
            raise error
        publish_id.patience(error)
    except (RedisError, OSError) as last:
        raise OperationalError(str(last)) from last


def _kind(name: str, options: Mapping[str, Any]) -> tuple[Hashable, ...]:
    """Return what tells calls apart whose messages differ in more than a template's holes."""
    headers = options.get("headers")
    return (
        name,
        options.get("queue"),
        repr(options.get("priority")),  # 1 isn't 1.0, nor True
        repr(options.get("ignore_result")),
        repr(options.get("time_limit")),
        repr(options.get("soft_time_limit")),
        options.get("task_type") is None,  # then Celery looks the task's own options up
        ("time_limit" in options, "soft_time_limit" in options),
        tuple(headers.items()) if headers else None,
    )


def _submit_call(way: Way, messages: Sequence[tuple[str, str, str]], publish_id: PublishId) -> list[Argument]:
    """Return what `scripts/submit.lua` takes."""
    limit = publish_id.most_waiting if way.place.suffix else 0
    paths = way.place.paths if limit else ()
    return [3 + len(paths), *way.keys, *paths, *way.words, limit, *(word for message in messages for word in message)]
