"""The result backend: a task's result and the last lines of its record are stored together."""

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import inf
from mmap import mmap
from queue import Empty
from typing import Any, Final, TypeVar

from celery import signals, states
from celery.backends.base import Backend
from celery.backends.redis import RedisBackend
from celery.exceptions import Reject, TaskRevokedError
from kombu.utils.encoding import bytes_to_str
from kombu.utils.objects import cached_property
from redis.exceptions import TimeoutError as RedisTimeoutError

from orchestra.cancellation import StoredResult
from orchestra.exceptions import AgentOrchestraException
from orchestra.logging_utils import get_logger
from orchestra.patience import Patience, is_full, is_loss
from orchestra.state import advance_arguments
from orchestra.store import Argument, load_script
from orchestra.types import TaskState
from orchestra.utils import error_text
from orchestra.verdicts import lease_of, verdict_of

__all__ = ["StopBound", "recording"]

STATES: Final[Mapping[str, TaskState]] = {
    states.SUCCESS: TaskState.SUCCEEDED,
    states.FAILURE: TaskState.FAILED,
    states.RETRY: TaskState.RETRYING,
    states.REVOKED: TaskState.CANCELLED,
}

_LOOK_SECONDS: Final = 0.2
_AGAIN_SECONDS: Final = 0.5
_STOPPING: Final = mmap(-1, 1)  # one byte that an agent shares with its pool processes: whether it was told to stop

Reply = TypeVar("Reply")


class StopBound:
    """
    Bounds how long a task's end is held up by a Redis that is away, once its agent is told to stop.

    Call it after each attempt that failed. Until the stop there's no bound: the task is kept until Redis is back.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since = 0.0

    def __call__(self, error: Exception | None, _interval: float = 0.0) -> None:
        """
        Return when there may be another attempt.

        Raises:
            Reject: there may not; the task goes back to its queue.

        """
        if _STOPPING[0]:
            self._since = self._since or time.monotonic()
            if time.monotonic() - self._since > self._seconds:
                raise Reject(error, requeue=True)


log = get_logger(__name__)

_StockConsumer: Any = RedisBackend.ResultConsumer  # celery-types leaves most of it out


@signals.worker_init.connect
def _note_start(**_: Any) -> None:
    _STOPPING[0] = 0


@signals.worker_shutting_down.connect
def _note_stop(**_: Any) -> None:
    _STOPPING[0] = 1


@lru_cache
def recording(backend: type[Backend]) -> type[Backend]:
    """Return `backend` with the fleet's records written beside its results; any of Celery's backends will do."""
    mix_in = _RecordingRedisBackend if issubclass(backend, RedisBackend) else _RecordingBackend
    return type(f"Recording{backend.__name__}", (mix_in, backend), {"__module__": __name__})


class _RecordingBackend:
    """
    What we add to a backend: whatever end Celery marks is recorded, stored or ignored.

    It's mixed into a backend, whose methods its `super()` reaches; mypy can't know which, hence the ignored [misc].
    """

    app: Any  # OrchestraCelery, which is built on this

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, state: str = states.SUCCESS
    ) -> Any:  # Celery's signature
        """Mark a task as succeeded."""
        marked = super().mark_as_done(task_id, result, request=request, store_result=store_result, state=state)  # type: ignore[misc]
        self._record(task_id, state, result, request, stored=store_result and not _ignores_result(request))
        return marked

    def mark_as_failure(
        self,
        task_id: str,
        exc: BaseException,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        call_errbacks: bool = True,
        state: str = states.FAILURE,
    ) -> Any:  # Celery's signature
        """Mark a task as failed."""
        _judge(self.app, state, exc, request)
        marked = super().mark_as_failure(  # type: ignore[misc]
            task_id,
            exc,
            traceback=traceback,
            request=request,
            store_result=store_result,
            call_errbacks=call_errbacks,
            state=state,
        )
        self._end_badly(task_id, state, exc, request, stored=store_result)
        return marked

    def mark_as_retry(
        self,
        task_id: str,
        exc: BaseException,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        state: str = states.RETRY,
    ) -> Any:  # Celery's signature
        """Mark a task as about to be tried again."""
        marked = super().mark_as_retry(  # type: ignore[misc]
            task_id, exc, traceback=traceback, request=request, store_result=store_result, state=state
        )
        self._record(task_id, state, exc, request, stored=store_result)
        return marked

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,
        state: str = states.REVOKED,
    ) -> Any:  # Celery's signature
        """Mark a task as revoked or expired."""
        _judge(self.app, state, reason, request)
        marked = super().mark_as_revoked(task_id, reason, request=request, store_result=store_result, state=state)  # type: ignore[misc]
        self._end_badly(task_id, state, reason, request, stored=store_result)
        return marked

    records_ride = False  # whether storing a result has recorded the state already

    def revocation(self, task_id: str, reason: str) -> StoredResult | None:  # noqa: ARG002  # what another needs
        """Return the result of a task that is cancelled, to be stored with its record; None where it has to follow."""
        return None

    def _record(self, task_id: str, state: str, result: Any, request: Any, *, stored: bool) -> None:
        step = _step(state, result)
        if step is None or (stored and self.records_ride) or getattr(request, "is_eager", False):
            return
        keep = _keeping(state, request)
        if keep is not None:
            keep("", "")
            return
        try:
            self.app.state.advance(task_id, step, **_circumstances(state, result, request))
        except AgentOrchestraException as error:  # the result is stored; the record heals with the next news
            log.warning("task state not recorded", task_id=task_id, state=step.value, error=str(error))

    def _end_badly(self, task_id: str, state: str, error: Any, request: Any, *, stored: bool) -> None:
        """Record that a task has failed, and make a dead letter of its message, where storing the result hasn't."""
        verdict, lease, step = _verdict(request), lease_of(request), _step(state, error)
        rides = stored and self.records_ride
        if verdict is None or lease is None or step is None or (rides and not _is_followed(request)):
            self._record(task_id, state, error, request, stored=stored)
            return
        store, seconds = self.app.store, self.app.settings.connect_timeout_seconds
        keys = [store.keys.redelivered, store.keys.task(task_id)]
        record = advance_arguments(
            step, ttl_seconds=self.app.settings.state_ttl_seconds, **_circumstances(state, error, request)
        )
        told = [store.keys.base, lease.holder, lease.number, lease.queue, verdict, *record]
        runs_a_task = self.app.current_worker_task is not None  # which is kept until its message is
        patience = Patience(inf, told=StopBound(seconds)) if runs_a_task else Patience(seconds)
        patience.insist(lambda: store.run("condemn", keys, told))
        log.info("message kept", task_id=request.id, reason=verdict.partition("\n")[0])


class _StillTrue(_StockConsumer):  # type: ignore[misc]
    """Hears of results; what it hears of a failure may be old, since its task may have been replayed meanwhile."""

    def on_state_change(self, meta: Any, message: Any) -> None:  # Celery's signature
        """Take in a task's new state."""
        if meta["status"] in states.EXCEPTION_STATES:
            meta = self.backend.get_task_meta(meta["task_id"])
            if meta["status"] not in states.READY_STATES:
                return
        super().on_state_change(meta, message)


class _RecordingRedisBackend(_RecordingBackend):
    """A Redis backend, Sentinel's included: result and record in one script where both are in one database."""

    ResultConsumer = _StillTrue

    @cached_property
    def records_ride(self) -> bool:  # settled once per backend
        backend: Any = self
        return backend.compression is None and self.app.is_broker(backend.connparams)

    @cached_property
    def success_prefix(self) -> str:
        """How an encoded success begins, which tells one without decoding it."""
        backend: Any = self
        return str(bytes_to_str(backend.encode({"status": states.SUCCESS})))[:-1]

    def on_task_call(self, producer: object, task_id: str) -> None:
        """Leave out the SUBSCRIBE per submission: whoever waits for a result subscribes then."""

    def _maybe_resolve_from_buffer(self, result: Any) -> None:  # an AsyncResult
        """
        Give a result what has come for it while nobody waited, where that still holds: its task may run anew.

        Raises:
            Empty: nothing has, and Celery waits for it.

        """
        backend: Any = self
        meta = backend._pending_messages.take(result.id)
        if meta["status"] in states.EXCEPTION_STATES:
            meta = backend.get_task_meta(result.id)
            if meta["status"] not in states.READY_STATES:
                raise Empty
        result._maybe_set_cache(meta)

    def disconnect(self) -> None:
        """Close the connections to Redis; the next use makes new ones."""
        backend: Any = self
        consumer = backend.result_consumer
        consumer.stop()
        consumer._pubsub = None  # else a result that is forgotten later would connect again to unsubscribe
        consumer.subscribed_to.clear()
        if "client" in vars(backend):
            backend.client.connection_pool.disconnect()

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:  # Celery's signature
        if state not in STATES or not self.records_ride:
            return super()._store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)  # type: ignore[misc]
        backend: Any = self
        stored = self._encoded(task_id, result, state, traceback, request)
        keep = _keeping(state, request)
        if keep is not None:
            keep(bytes_to_str(stored.key), bytes_to_str(stored.encoded))
            return result
        keys = [stored.key, self.app.store.keys.task(bytes_to_str(task_id))]
        record = advance_arguments(
            _step(state, result) or STATES[state],
            ttl_seconds=self.app.settings.state_ttl_seconds,
            **_circumstances(state, result, request),
        )
        lease = self._ending_lease(state, request)
        words = [stored.encoded, stored.seconds, self.success_prefix, *record, *lease]
        backend.ensure(self._store_both, (keys, words))
        return result

    def _encoded(self, task_id: str, result: Any, state: str, traceback: Any, request: Any) -> StoredResult:
        backend: Any = self
        meta = backend._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        expires = backend.failure_expires if state == states.FAILURE else backend.expires
        encoded = backend.encode({**meta, "task_id": bytes_to_str(task_id)})
        return StoredResult(backend.get_key_for_task(task_id), encoded, int(expires or 0))

    def revocation(self, task_id: str, reason: str) -> StoredResult | None:
        """Return the result of a task that is cancelled, as Celery has it."""
        if not self.records_ride:
            return None
        backend: Any = self
        revoked = backend.prepare_exception(TaskRevokedError(reason))
        return self._encoded(task_id, revoked, states.REVOKED, None, None)

    def _ending_lease(self, state: str, request: Any) -> list[Argument]:
        """
        Return the lease that ends with a success or, as a dead letter, with a failure; in `store_result.lua`'s words.

        The agent acknowledges it as well, unless it has lost sight of the task with its connection. A part of a chord
        is acknowledged when it was counted, and a failed task's message is kept when its errbacks were sent.
        """
        lease = lease_of(request)
        if lease is None or getattr(request, "chord", None):
            return []
        ending: list[Argument] = [self.app.store.keys.base, lease.holder, lease.number, lease.queue]
        if state == states.SUCCESS:
            return ending
        verdict = None if _is_followed(request) else _verdict(request)
        if verdict is None:
            return []
        log.info("message kept", task_id=request.id, reason=verdict.partition("\n")[0])
        return [*ending, verdict]

    # ── while Redis is away ──

    def store_result(self, task_id: str, result: Any, state: str, **kwargs: Any) -> Any:  # Celery's signature
        """Store a result; an agent that runs a task tries until it has, and acknowledges nothing before."""
        store = super().store_result  # type: ignore[misc]
        return self._insist(lambda: store(task_id, result, state, **kwargs))

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:  # Celery's signature
        """
        Count a finished part of a chord, and send the chord's body after the last one, however long that takes.

        A part that was delivered before may have been the last one, of an agent that was lost while it sent the body.
        """
        part = super().on_chord_part_return  # type: ignore[misc]
        lost: list[Exception] = []

        def count() -> None:
            try:
                part(request, state, result, **kwargs)
            except Exception as error:
                lost.append(error)
                raise

        self._insist(count)
        if (lost or _was_delivered_before(request)) and request.group:
            self._insist(lambda: self._wait_for_claim(request.group))
            self._insist(count)

    def _wait_for_claim(self, group: str) -> None:
        """
        Wait until nobody is sending a chord's body.

        Who counts the last part claims that for a while. When the answer to that is lost, or who has claimed it, nobody
        goes by the claim: it has to run out, and then counting the part again takes it.
        """
        backend: Any = self
        claim = backend.get_key_for_group(group, ".c")
        while backend.client.get(claim) not in {None, b"done", "done"}:
            self._pause(_LOOK_SECONDS)

    def _insist(self, act: Callable[[], Reply]) -> Reply:
        """
        Act until Redis is there to let it happen, and takes something in, where a task's outcome depends on that.

        Elsewhere, as where a web process looks after a result, Celery's own retries are enough. They are, too, where
        the project's configuration has a word on `result_backend_always_retry`.
        """
        if self.app.current_worker_task is None or self.app.conf.value_set_for("result_backend_always_retry"):
            return act()
        while True:
            try:
                return act()
            except Exception as error:
                if not (is_loss(error) or is_full(error)):
                    raise
                log.warning("result not stored", error=str(error), then="tried again")
                # Another connection: the address may lead to another server by now.
                self.client.connection_pool.disconnect(inuse_connections=False)  # type: ignore[attr-defined]
                self._pause(_AGAIN_SECONDS, error)

    def on_connection_error(self, max_retries: Any, exc: Exception, intervals: Any, retries: int) -> Any:  # Celery's
        """Wait for the next of Celery's own retries; the broker's connection is as old as one that fell silent."""
        if isinstance(exc, RedisTimeoutError):
            self.app.store.close()
        if self.app.current_worker_task is not None:
            self._pause(0, exc)
        return super().on_connection_error(max_retries, exc, intervals, retries)  # type: ignore[misc]

    @cached_property
    def _stop_bound(self) -> StopBound:
        return StopBound(self.app.settings.connect_timeout_seconds)

    def _pause(self, seconds: float, error: Exception | None = None) -> None:
        """Sleep; when the agent is to stop, give the task back before long rather than hold the stop up."""
        self._stop_bound(error)
        time.sleep(seconds)

    def _store_both(self, keys: list[Any], args: list[Argument]) -> None:
        load_script("store_result").run(self.client, keys, args)  # type: ignore[attr-defined]


def _was_delivered_before(request: Any) -> bool:
    return bool((getattr(request, "delivery_info", None) or {}).get("redelivered"))


def _ignores_result(request: Any) -> bool:
    return bool(request is not None and getattr(request, "ignore_result", False))


def _is_followed(request: Any) -> bool:
    """Tell whether more follows a failure than its result: then its message is kept when that has happened."""
    return bool(getattr(request, "chord", None) or getattr(request, "errbacks", None))


def _keeping(state: str, request: Any) -> Callable[[str, str], None] | None:
    """Return what keeps a plain success, to be stored with others; None where it's to be stored at once."""
    if state != states.SUCCESS or getattr(request, "chord", None):
        return None
    keep: Callable[[str, str], None] | None = getattr(request, "keep_success", None)
    return keep


def _judge(app: Any, state: str, error: Any, request: Any) -> None:
    """Note at a request whether its end makes a dead letter, while its error is at hand as it was raised."""
    step = _step(state, error)
    if request is not None and step is not None and not getattr(request, "is_eager", False):
        request.verdict = verdict_of(app, step, error, request)


def _verdict(request: Any) -> str | None:
    """Return why a request's message becomes a dead letter; None when it doesn't."""
    verdict: str | None = getattr(request, "verdict", None)
    return verdict


def _circumstances(state: str, result: Any, request: Any) -> dict[str, Any]:
    """Say who brought a state about, at which attempt, and why."""
    return {
        "agent": getattr(request, "hostname", None) or "",
        "attempt": (getattr(request, "retries", None) or 0) + 1 if request is not None else 0,
        "note": "" if state == states.SUCCESS else f"{_remark(state, request)}{_reason(result)}",
    }


def _remark(state: str, request: Any) -> str:
    """Say that a retry waits longer than its task asked for."""
    seconds = getattr(request, "put_off_seconds", 0.0) if state == states.RETRY else 0.0
    return f"put off {seconds:.1f} s by the retry budget; " if seconds > 0 else ""


def _step(state: str, result: Any) -> TaskState | None:  # an exception, its dictionary, or the reason alone
    """Return a state of Celery's in our words; it calls revoked what has expired, and the reason says which it was."""
    step = STATES.get(state)
    expired = step is TaskState.CANCELLED and _reason(result).rpartition(": ")[2] == TaskState.EXPIRED
    return TaskState.EXPIRED if expired else step


def _reason(result: Any) -> str:  # an exception, or what Celery's backends make of one
    if isinstance(result, BaseException):
        return error_text(result)
    if isinstance(result, Mapping) and "exc_type" in result:
        message = result.get("exc_message")
        words = message if isinstance(message, (list, tuple)) else [message]
        return f"{result['exc_type']}: {', '.join(str(word) for word in words)}"
    return str(result)
