"""What rides the short way: a message with its task and arguments, and why others take Celery's own way."""

from base64 import b64decode
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from json import loads as loads_plain
from math import inf
from threading import Lock
from typing import Any, Final

from celery import signals
from celery.app.task import Context
from celery.utils.imports import symbol_by_name
from celery.worker import state as worker_state
from celery.worker.strategy import default as stock_strategy
from kombu.utils.json import loads

from orchestra.delays import due_at
from orchestra.leases import Lease
from orchestra.task import OrchestraTask

__all__ = ["Ride", "Slice", "reason_against_message", "reason_against_task", "ride_of"]

_LIMITS: Final = 2  # hard and soft
_KNOWN_HEADERS: Final = frozenset({*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"})
_JSON: Final = ("application/json", "utf-8")


@dataclass(slots=True, eq=False)
class Ride:
    """One message on the short way; `result` is what is kept of its success, under the key that is with it."""

    channel: Any  # Fetching
    lease: Lease
    payload: Mapping[str, Any]
    task: OrchestraTask[..., Any]
    args: Any
    kwargs: Any
    embed: Mapping[str, Any]
    result: tuple[str, str] = ("", "")
    kept: bool = False
    seconds: float = 0.0

    @property
    def task_id(self) -> str:
        """The task's id."""
        return str(self.payload["headers"]["id"])

    @property
    def attempt(self) -> int:
        """Which attempt it is, from 1."""
        return int(self.payload["headers"].get("retries") or 0) + 1

    def request(self, hostname: str) -> dict[str, Any]:
        """Return what Celery makes a task's request of, for the agent of this name."""
        headers, properties = self.payload["headers"], self.payload["properties"]
        return {
            **headers,
            **self.embed,
            "args": self.args,
            "kwargs": self.kwargs,
            "hostname": hostname,
            "is_eager": False,
            "properties": properties,
            "reply_to": properties.get("reply_to"),
            "correlation_id": properties.get("correlation_id"),
            "delivery_info": {
                **properties["delivery_info"],
                "priority": properties.get("priority"),
                "redelivered": False,
            },
            "headers": {name: value for name, value in headers.items() if name not in _KNOWN_HEADERS},
            "has_begun": True,
        }


@dataclass(slots=True)
class Slice:
    """What has begun and has not run yet, what has run and isn't told, and since when something has been running."""

    rest: deque[Ride] = field(default_factory=deque)
    done: list[Ride] = field(default_factory=list)
    since: float = inf
    lock: Lock = field(default_factory=Lock)


def ride_of(task: OrchestraTask[..., Any], channel: Any, payload: Mapping[str, Any], lease: Lease) -> Ride | None:
    """Return a message's ride; None where its body isn't what Celery's own way makes of one."""
    try:
        body = b64decode(payload["body"])
        args, kwargs, embed = (loads if b'"__type__"' in body else loads_plain)(body)
    except (ValueError, TypeError):  # Celery's way knows what to make of it
        return None
    if not (isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embed, dict)):
        return None
    return Ride(channel, lease, payload, task, args, kwargs, embed)


def reason_against_message(payload: Mapping[str, Any], *, is_limited: bool) -> str:
    """Return why a message takes Celery's own way; '' when it needn't. Its task may have a rate limit just now."""
    headers, properties = payload["headers"], payload["properties"]
    written = (payload.get("content-type"), payload.get("content-encoding"))
    if written != _JSON or properties.get("body_encoding") != "base64":
        return "encoding"
    against = {
        "expires": headers.get("expires"),
        "compression": headers.get("compression"),
        "stamps": headers.get("stamped_headers") or worker_state.revoked_stamps,
        "headers": not (_are_plain(headers) and isinstance(properties.get("delivery_info"), dict)),
        "revoked": headers.get("id") in worker_state.revoked,
        "rate limit": is_limited,
        "signal": signals.task_received.receivers,
    }
    return next((reason for reason, holds in against.items() if holds), "")


def reason_against_task(task: Any, app: Any) -> str:
    """Return why a task never takes the short way; '' when it may."""
    if not isinstance(task, OrchestraTask) or type(task).__call__ is not OrchestraTask.__call__:
        return "own __call__"
    against = {
        "own strategy": symbol_by_name(task.Strategy) is not stock_strategy,
        "at most once": not task.acks_late,
        "breaker": task.guard is not None,
        "track_started": task.track_started,
        "deduplicated": app.conf.worker_deduplicate_successful_tasks,
    }
    return next((reason for reason, holds in against.items() if holds), "")


def _are_plain(headers: Mapping[str, Any]) -> bool:
    """Tell whether the headers that a task's start depends on are of their kinds."""
    limits, retries = headers.get("timelimit"), headers.get("retries")
    return (
        isinstance(headers.get("id"), str)
        and (retries is None or type(retries) is int)
        and (limits is None or (isinstance(limits, list) and len(limits) == _LIMITS))
        and (headers.get("eta") is None or due_at(headers) is not None)
    )
