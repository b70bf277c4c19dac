"""The result backend: a task's result and the last lines of its record are stored together."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from celery import states
from celery.backends.base import Backend
from celery.backends.redis import RedisBackend
from kombu.utils.encoding import bytes_to_str
from kombu.utils.objects import cached_property

from orchestra.exceptions import AgentOrchestraException
from orchestra.logging_utils import get_logger
from orchestra.state import advance_arguments
from orchestra.store import Argument, load_script
from orchestra.types import TaskState

__all__ = ["recording"]

STATES: Final[Mapping[str, TaskState]] = {
    states.SUCCESS: TaskState.SUCCEEDED,
    states.FAILURE: TaskState.FAILED,
    states.RETRY: TaskState.RETRYING,
    states.REVOKED: TaskState.CANCELLED,
}

log = get_logger(__name__)


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
        marked = super().mark_as_failure(  # type: ignore[misc]
            task_id,
            exc,
            traceback=traceback,
            request=request,
            store_result=store_result,
            call_errbacks=call_errbacks,
            state=state,
        )
        self._record(task_id, state, exc, request, stored=store_result)
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
        marked = super().mark_as_revoked(task_id, reason, request=request, store_result=store_result, state=state)  # type: ignore[misc]
        self._record(task_id, state, reason, request, stored=store_result)
        return marked

    records_ride = False  # whether storing a result has recorded the state already

    def _record(self, task_id: str, state: str, result: Any, request: Any, *, stored: bool) -> None:
        step = STATES.get(state)
        if step is None or (stored and self.records_ride) or getattr(request, "is_eager", False):
            return
        try:
            self.app.state.advance(task_id, step, **_circumstances(state, result, request))
        except AgentOrchestraException as error:  # the result is stored; the record heals with the next news
            log.warning("task state not recorded", task_id=task_id, state=step.value, error=str(error))


class _RecordingRedisBackend(_RecordingBackend):
    """A Redis backend, Sentinel's included: result and record in one script where both are in one database."""

    @cached_property
    def records_ride(self) -> bool:  # settled once per backend
        backend: Any = self
        return backend.compression is None and self.app.is_broker(backend.connparams)

    @cached_property
    def _success_prefix(self) -> str:
        """How an encoded success begins, which tells one without decoding it."""
        backend: Any = self
        return str(bytes_to_str(backend.encode({"status": states.SUCCESS})))[:-1]

    def on_task_call(self, producer: object, task_id: str) -> None:
        """Leave out the SUBSCRIBE per submission: whoever waits for a result subscribes then."""

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
        meta = backend._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        encoded = backend.encode({**meta, "task_id": bytes_to_str(task_id)})
        expires = backend.failure_expires if state == states.FAILURE else backend.expires
        keys = [backend.get_key_for_task(task_id), self.app.store.keys.task(bytes_to_str(task_id))]
        record = advance_arguments(
            STATES[state],
            ttl_seconds=self.app.settings.state_ttl_seconds,
            **_circumstances(state, result, request),
        )
        backend.ensure(self._store_both, (keys, [encoded, int(expires or 0), self._success_prefix, *record]))
        return result

    def _store_both(self, keys: list[Any], args: list[Argument]) -> None:
        load_script("store_result").run(self.client, keys, args)  # type: ignore[attr-defined]


def _ignores_result(request: Any) -> bool:
    return bool(request is not None and getattr(request, "ignore_result", False))


def _circumstances(state: str, result: Any, request: Any) -> dict[str, Any]:
    """Say who brought a state about, at which attempt, and why."""
    return {
        "agent": getattr(request, "hostname", None) or "",
        "attempt": (getattr(request, "retries", None) or 0) + 1 if request is not None else 0,
        "note": "" if state == states.SUCCESS else _reason(result),
    }


def _reason(result: Any) -> str:  # an exception, or what Celery's backends make of one
    if isinstance(result, BaseException):
        return f"{type(result).__name__}: {result}"
    if isinstance(result, Mapping) and "exc_type" in result:
        message = result.get("exc_message")
        words = message if isinstance(message, (list, tuple)) else [message]
        return f"{result['exc_type']}: {', '.join(str(word) for word in words)}"
    return str(result)
