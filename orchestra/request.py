"""From a message to a request: what an agent makes of the messages that it fetched."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from billiard.exceptions import TimeLimitExceeded
from celery import states
from celery.exceptions import InvalidTaskError, TaskRevokedError
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from redis.exceptions import RedisError

from orchestra.cancellation import REASON
from orchestra.exceptions import BrokerUnavailableError, ValidationError
from orchestra.express import ExpressLane
from orchestra.leases import Lease, LeaseHolder, Pace, condemnation
from orchestra.logging_utils import get_logger
from orchestra.losses import as_info, error_in, is_process_loss, poison_of, survivable, told_of
from orchestra.pools import InlinePool
from orchestra.queues import CapabilityQueue
from orchestra.stocktaking import take_stock
from orchestra.task import OrchestraTask
from orchestra.timeouts import end_process, had_ended, sent_again
from orchestra.types import DeadReason
from orchestra.utils import error_text

__all__ = ["OrchestraConsumer", "OrchestraRequest", "lease_holder_of"]

_BODY: Final[tuple[Any, ...]] = ((list, tuple), dict, dict)
_LIMITS: Final = ("hard, in s", "soft, in s")
REPLAYED_HEADER: Final = "replayed"

log = get_logger(__name__)


def lease_holder_of(worker: Any) -> LeaseHolder:  # Celery's worker
    """Make the holder of what a worker fetches, over all its connections."""
    return LeaseHolder(
        agent=worker.hostname,
        slots=lambda: max(worker.consumer.pool.num_processes, getattr(worker, "max_concurrency", None) or 0),
        busy=lambda: bool(worker_state.active_requests),
        pace=Pace(most_ahead=0) if worker.app.conf.worker_disable_prefetch else Pace(),
        stopping=lambda: _is_set(worker_state.should_stop) or _is_set(worker_state.should_terminate),
    )


def _is_set(flag: object) -> bool:  # an exit code, which may be 0
    return flag is not None and flag is not False


class OrchestraRequest(Request):
    """
    Celery's request, for a message that is leased.

    A delayed message has waited in Redis, so that its eta is no business of the worker's timer. A task that runs at
    most once gives its lease up when it starts, in `OrchestraTask`; it stays in hand here until it has ended.
    """

    _being_accepted = False
    _lost_by: str | None = None  # how the process was lost in which the task ran
    _is_cancelled = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        body, limits, name = _untyped(self)._payload, _untyped(self).time_limits, _untyped(self).id
        if not (len(body) == len(_BODY) and all(isinstance(*pair) for pair in zip(body, _BODY, strict=True))):
            message = "the body must be a list of arguments, a mapping of arguments, and a mapping of options"
            raise InvalidTaskError(message)
        if not (isinstance(name, str) and isinstance(limits, (list, tuple)) and len(limits) == len(_LIMITS)):
            message = f"the header id must be a text, and timelimit a pair: {_LIMITS}"
            raise InvalidTaskError(message)
        if told_of(self.message).replays or _untyped(self)._request_dict.get(REPLAYED_HEADER):
            self._run_anyway()

    def _run_anyway(self) -> None:
        """
        Run a task that was replayed, though its time is over or its id was revoked, as were the ids of expired tasks.

        So does its retry, whichever agent gets that: what stands in the request goes along with it.
        """
        request: Any = self
        request._request_dict |= {REPLAYED_HEADER: True, "expires": None}
        request.expires = None
        worker_state.revoked.discard(self.id)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Have the class that Celery derives for each task ask us first, and tell us of successes: it's to be quick."""
        super().__init_subclass__(**kwargs)
        if "execute_using_pool" in vars(cls):
            cls.execute_using_pool = _guarded(vars(cls)["execute_using_pool"])  # type: ignore[method-assign]
        if "on_success" in vars(cls):
            cls.on_success = _noted(vars(cls)["on_success"])  # type: ignore[method-assign]

    @property
    def eta(self) -> Any:  # a datetime; celery-types has it untyped
        """When the task is due, unless that was seen to before it came here."""
        return None if self._holder is not None else super().eta

    @property
    def _holder(self) -> LeaseHolder | None:
        return getattr(self.message.channel, "holder", None)

    def fail_as_poison(self) -> bool:
        """Fail here and now if too much was lost while the task ran; tell whether it has."""
        poison = poison_of(self) if told_of(self.message).times_again else None
        if poison is None:
            return False
        log.error("task dead", task=self.task.name, task_id=self.id, reason=DeadReason.POISON.value)
        _say(self.message, "condemn", condemnation(DeadReason.POISON, poison))  # before Celery acknowledges it
        self.on_failure(as_info(poison))
        return True

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        """Note that the task is with a process; Celery would acknowledge one that runs at most once already."""
        holder = self._holder
        if holder is not None:
            holder.began()
        self._being_accepted = holder is not None
        try:
            super().on_accepted(pid, time_accepted)
        finally:
            self._being_accepted = False

    def acknowledge(self) -> None:
        """Acknowledge the message, but not as early as Celery would; one whose result has been lost goes back."""
        if self._being_accepted:
            return
        if self._has_lost_its_result():
            log.warning("result lost with its server", task=self.name, task_id=self.id, then="run again")
            self.reject(requeue=True)
        else:
            super().acknowledge()

    def _has_lost_its_result(self) -> bool:
        """Tell whether the task began by another server, which may have got its result, and this one hasn't got it."""
        lease, holder = Lease.from_tag(self.message.delivery_tag), self._holder
        if lease is None or holder is None or lease.number >= holder.first_here:
            return False
        if self.acknowledged or not self.task.acks_late or self.ignore_result:
            return False
        try:
            return bool(self.task.backend.get_state(self.id) in {states.PENDING, states.STARTED})
        except (RedisError, OSError) as error:
            log.warning("result not looked for", task_id=self.id, error=str(error))
            return True

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """End the task at a cold stop; where the pool can't, it goes on: that error would be raised inside its code."""
        with suppress(NotImplementedError):
            super().cancel(pool, signal=signal, emit_retry=emit_retry)

    def end_cancelled(self, pool: Any) -> bool:
        """End the task, which was cancelled; return whether the pool can."""
        self._is_cancelled = True
        try:
            self.terminate(pool)
        except NotImplementedError:
            return False
        return True

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        super()._announce_revoked(REASON if self._is_cancelled else reason, terminated, signum, expired)  # type: ignore[misc]  # Celery's inner name

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """
        Answer a time limit: a soft one is the task's to answer, by a hard one its attempt is over, and settled here.

        Raises:
            Exception: what came of it couldn't be stored; the message has gone back to its queue.

        """
        if soft:
            super().on_timeout(soft, timeout)
            return
        end_process(_untyped(self).worker_pid)
        try:
            if _is_set(worker_state.should_terminate):  # Celery would acknowledge it, and store nothing
                self.reject(requeue=True)
            elif not had_ended(self) and not sent_again(self, TimeLimitExceeded(timeout)):
                super().on_timeout(soft, timeout)
        except Exception:
            self.reject(requeue=True)
            raise
        finally:
            self.let_go()

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """
        Answer an exception; Celery's answer to a lost process is `reject`, unless it was stopped on purpose.

        That of a hard time limit is answered by `on_timeout`, which the pool calls next.
        """
        error = error_in(exc_info)
        if isinstance(error, TimeLimitExceeded) and not return_ok:
            return None
        self._lost_by = error_text(error) if is_process_loss(error) else None
        try:
            return super().on_failure(survivable(exc_info), send_failed_event, return_ok)
        finally:
            self.let_go()

    def _success_was_stored(self) -> Any:
        """Return the result of a task whose process was lost after its end; a part of a chord has to be counted too."""
        return False if self.chord else super()._success_was_stored()  # type: ignore[misc]  # Celery's inner name

    def reject(self, requeue: bool = False) -> None:
        """Give the message back or drop it; where the task's process was lost, that is counted."""
        holder = self._holder
        stops = holder is None or holder.stopping()  # and takes its processes along
        if requeue and self._lost_by is not None and not stops and not self.acknowledged:
            _say(self.message, "orphaned", f"{_untyped(self).hostname}\n{self._lost_by[:200]}")
        super().reject(requeue)

    def let_go(self) -> None:
        """Take a message that Celery takes for acknowledged since its start out of the hand."""
        if not self.task.acks_late and not self.acknowledged:
            self.acknowledge()

    def let_acknowledgement_wait(self) -> None:
        """
        Have the acknowledgement of a success ride with the next fetch.

        Its record says that the task has ended, so that a copy isn't run; not so with a part of a chord.
        """
        lease, holder = Lease.from_tag(self.message.delivery_tag), self._holder
        if lease is not None and holder is not None and not self.chord:
            holder.no_hurry(lease)

    def note_run_time(self, seconds: float) -> None:
        """Have the next fetches sized by how long tasks take here."""
        holder = self._holder
        if holder is not None:
            lease = Lease.from_tag(self.message.delivery_tag)
            holder.pace.note(seconds, "" if lease is None else lease.queue)


def _guarded(execute: Callable[..., Any]) -> Callable[..., Any]:
    def execute_unless_poison(self: OrchestraRequest, pool: Any, **kwargs: Any) -> Any:
        if self.fail_as_poison():
            raise TaskRevokedError(self.id)  # as Celery has it for what a pool isn't to be given
        try:
            return execute(self, pool, **kwargs)
        except MemoryError as error:  # outside of the task's own code, in a pool that is this very thread
            self.on_failure(as_info(error))
            raise TaskRevokedError(self.id) from error

    return execute_unless_poison


def _noted(on_success: Callable[..., Any]) -> Callable[..., Any]:
    def on_success_and_note(self: OrchestraRequest, result: tuple[Any, Any, float], **kwargs: Any) -> Any:
        if not result[0]:
            self.let_acknowledgement_wait()
        try:
            return on_success(self, result, **kwargs)
        finally:
            self.note_run_time(float(result[2] or 0.0))
            self.let_go()

    return on_success_and_note


class OrchestraConsumer(Consumer):
    """
    Celery's consumer, on whose connections messages are leased.

    What it can't run isn't dropped: a task that it doesn't know goes to an agent that does, and what is no task at all
    goes to the dead letters.
    """

    handle_message: Callable[[Any], Any]  # what is called with each message, once there is a connection

    def connect(self) -> Any:
        """
        Connect, as the holder of the leases that the worker had on its last connection.

        Raises:
            ConnectionError: the server is gone again.

        """
        connection: Any = super().connect()
        holder = connection.transport.lease_holder = _untyped(self).controller.lease_holder
        if _untyped(self.app).is_on_redis:
            store = _untyped(self.app).store
            try:
                take_stock(store, holder, store.process())
            except BrokerUnavailableError as error:
                raise ConnectionError(str(error)) from error
        return connection

    def update_strategies(self) -> None:
        """Have tasks ready to be run; on an inline pool plain ones by the short way."""
        super().update_strategies()
        holder = _untyped(self).controller.lease_holder
        if holder.lane is None and isinstance(_untyped(self).pool, InlinePool) and self._can_batch():
            holder.lane = ExpressLane(self)

    def _can_batch(self) -> bool:
        """Tell whether results go with records, by the broker's own database, and a loop is there to come back to."""
        return bool(_untyped(self).hub and getattr(self.app.backend, "records_ride", False))

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """
        Return what is called with each message.

        Nobody else may take over what waits here for its rate limit, nor a task whose own `__call__` may start it
        without ours.
        """
        handle: Callable[[Any], Any] = super().create_task_handler(*args, **kwargs)
        unseen = {name for name, task in self.app.tasks.items() if type(task).__call__ is not OrchestraTask.__call__}
        buckets = {} if _untyped(self).disable_rate_limits else _untyped(self).task_buckets

        def mark(message: Any) -> None:
            task = (message.headers or {}).get("task")
            if task in unseen:
                _say(message, "claim")
                message.channel.flush_news()  # at once: the pool may be this very thread
            elif buckets.get(task) is not None:
                _say(message, "keep")
                message.channel.qos.keep(message.delivery_tag)

        def mark_and_handle(message: Any) -> Any:
            try:
                mark(message)
                return handle(message)
            except (AttributeError, LookupError, TypeError, ValueError) as error:  # no task's headers, or body
                return self.on_invalid_task(None, message, error)

        self.handle_message = mark_and_handle
        return mark_and_handle

    def call_soon_ack(self, p: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # Celery's signature
        """
        Acknowledge or reject right now, which only notes it down, whatever the thread.

        Celery has the loop do it before long, and what the loop still has to do is gone when its connection is lost.
        """
        p(*args, **kwargs)
        hub = _untyped(self).hub
        if hub:
            hub.call_soon(_nothing)  # so that the loop turns, and Redis hears of it
        return p

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # Celery's signature
        """Hand the message on to an agent that knows the task, or leave it to Celery where the queue isn't ours."""
        queue = self._source(message)
        task = message.headers.get("task")
        if queue is None or queue.task is not None or not task:
            _say(message, "condemn", condemnation(DeadReason.UNREGISTERED, f"This agent doesn't know {task}."))
            super().on_unknown_task(body, message, exc)
            return
        target = CapabilityQueue(queue.requirement, task)
        if message.channel.hand_on(message, target):
            log.warning("task handed on", task=task, task_id=message.headers.get("id"), queue=target.suffix)
        connection: Any = self.connection  # there is one while messages arrive
        message.ack_log_error(log, connection.connection_errors)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Have a message that is no task's go to the dead letters."""
        _condemn(message, "It's no task's message.")
        super().on_unknown_message(body, message)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Have a message whose body can't be read go to the dead letters."""
        _condemn(message, exc)
        super().on_decode_error(message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Have a task's message that breaks Celery's rules go to the dead letters."""
        _condemn(message, exc)
        super().on_invalid_task(body, message, exc)

    def _source(self, message: Any) -> CapabilityQueue | None:
        """Return the capability queue that a message came from."""
        app: Any = self.app  # OrchestraCelery
        if not hasattr(message.channel, "hand_on"):
            return None
        suffix = app.queue_names.suffix(message.delivery_info.get("routing_key") or "")
        try:
            return None if suffix is None else CapabilityQueue.from_suffix(suffix)
        except ValidationError:
            return None


def _nothing() -> None: ...


def _untyped(made: object) -> Any:  # celery-types leaves some attributes out
    return made


def _condemn(message: Any, error: object) -> None:
    """Have a message that can't be read, or be what it should be, become a dead letter."""
    _say(message, "condemn", condemnation(DeadReason.UNDECODABLE, error))


def _say(message: Any, kind: str, detail: str = "") -> None:
    """Say something of a message's lease, where it has one."""
    lease, holder = Lease.from_tag(message.delivery_tag), getattr(message.channel, "holder", None)
    if lease is not None and holder is not None:
        holder.say(kind, lease, detail)
