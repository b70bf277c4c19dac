"""Orchestra, the main engine: submit work, follow it, and see the fleet."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from difflib import get_close_matches
from operator import itemgetter
from time import perf_counter
from types import TracebackType
from typing import Any, Final, Self

from celery import states
from celery.backends.base import DisabledBackend
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult, EagerResult
from kombu.exceptions import OperationalError
from kombu.utils.encoding import bytes_to_str

from orchestra.agent import Agent, AgentManager
from orchestra.app import OrchestraCelery
from orchestra.backend import STATES
from orchestra.breaker import BreakerState
from orchestra.breaker_manager import BreakerManager
from orchestra.broker import QueueFullError, named_broker
from orchestra.cancellation import REASON
from orchestra.capabilities import Requirement
from orchestra.claims import refuse_other_payload
from orchestra.dead_letters import DeadLetters
from orchestra.exceptions import AgentOrchestraException, BrokerUnavailableError, UnknownTaskError, ValidationError
from orchestra.explain import explainer_of
from orchestra.explanations import Explanation
from orchestra.patience import Patience
from orchestra.queues import CapabilityQueue
from orchestra.short_way import PER_ROUND_TRIP
from orchestra.task import OrchestraTask
from orchestra.timeouts import GRACE_SECONDS
from orchestra.types import Cancelled, Health, HistoryEntry, QueueInfo, TaskRecord, TaskState, Urgency
from orchestra.validation import check_payload, validate_delay, validate_task_type, validate_timeout

__all__ = ["Orchestra", "TaskHandle"]

_NEAREST: Final = 3


@dataclass(frozen=True, slots=True)
class TaskHandle:
    """
    One submitted task. `result` is Celery's AsyncResult, for canvas and for code that knows it.

    It's `deduplicated` where the submission that gave it found the task there already.
    """

    id: str
    _app: OrchestraCelery
    _eager: EagerResult[Any] | None = field(default=None, repr=False, compare=False)  # where tasks run at once
    deduplicated: bool = field(default=False, compare=False)

    @property
    def result(self) -> AsyncResult[Any]:
        """Celery's own handle of the task."""
        return self._app.AsyncResult(self.id) if self._eager is None else self._eager

    @property
    def state(self) -> TaskState | None:
        """Where the task stands now; None when nothing is known of this id."""
        if self._eager is not None:
            return STATES.get(self._eager.state)
        record = self.record()
        return None if record is None else record.state

    def get(self, timeout: float | None = None) -> Any:  # the task's own type
        """
        Wait for the task and return what it returned.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Raises:
            celery.exceptions.TimeoutError: it isn't done in time.
            celery.exceptions.TaskRevokedError: it was cancelled, revoked, or expired before it started.
            Exception: what the task raised.

        """
        try:
            return self.result.get(timeout=timeout)
        except TaskRevokedError as error:
            if str(error) != TaskState.EXPIRED:  # Celery's word for it
                raise
            message = f"Task {self.id} expired before it started."
            raise TaskRevokedError(message) from None

    def record(self) -> TaskRecord | None:
        """Return what is written down of the task; None when nothing is known of this id."""
        return self._app.state.read(self.id)

    def history(self) -> tuple[HistoryEntry, ...]:
        """Return the task's states in the order they came, with their times and agents; empty when it isn't known."""
        record = self.record()
        return () if record is None else record.history

    def cancel(self, *, note: str = "by its submitter") -> Cancelled:
        """
        Cancel the task, whether it waits or runs, and return what it was doing; that's false where it had ended.

        It takes one step, however many tasks wait. The task's `get` raises Celery's TaskRevokedError from then on,
        whatever the task still returns. A running one's agent is asked to end it, which the prefork pool does. `note`
        is for the task's history.

        Raises:
            BrokerUnavailableError: Redis can't be reached; calling it again does no harm.

        """
        if self._eager is not None:
            return Cancelled.FINISHED
        backend: Any = self._app.backend  # with what `recording` adds to it
        result = backend.revocation(self.id, REASON)
        what, agent = self._app.state.cancel(self.id, note=note, result=result)
        if what and result is None:
            backend.mark_as_revoked(self.id, REASON)
        if what is Cancelled.RUNNING and agent:
            self._tell(agent)
        return what

    def _tell(self, agent: str) -> None:
        """Ask an agent to end the task."""
        try:
            self._app.control.broadcast("end_cancelled", arguments={"task_id": self.id}, destination=[agent])
        except OperationalError as error:
            message = f"Task {self.id} is cancelled, but {agent} wasn't told, so that it runs on: {error}"
            raise BrokerUnavailableError(message) from error


class Orchestra:
    """
    The engine over one app: `with Orchestra(app) as orchestra: orchestra.submit(…)`.

    It holds no connection of its own, so it may be made where it is needed; leaving the `with` block closes nothing
    that the app still uses.
    """

    def __init__(self, app: OrchestraCelery) -> None:
        self.app = app
        self._manager = AgentManager(app)
        self._breakers = BreakerManager(app.breakers, app.registry)

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect the app's idle connections, which connect anew when they are needed; those in use go on."""
        pool: Any = self.app.pool
        pool.disconnect()
        if "wires" in vars(self.app):
            self.app.wires.drop_idle()

    def submit(
        self,
        task_type: str,
        payload: Mapping[str, Any],
        *,
        requires: str | Iterable[str] | Requirement | None = None,
        urgency: str | Urgency | None = None,
        on_unroutable: str | None = None,
        timeout: float | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,
        idempotency_key: str | None = None,
        unique: str | bool | None = None,
    ) -> TaskHandle:
        """
        Submit one task; `payload` holds its arguments by name.

        Args:
            task_type: the task's name, known to this process or published by an agent.
            payload: JSON values; checked against the task's type hints before Redis is touched.
            requires: what an agent must be able to do, in place of what the task declares.
            urgency: `critical`, `high`, `normal` or `low`, in place of what the task declares.
            on_unroutable: what becomes of it when no agent can run it, in place of what the task declares: `wait`,
                `raise`, `fallback:<requirement>` or `dead_letter_after:<seconds>`.
            timeout: seconds that an attempt may take.
            countdown: seconds to wait before it may start.
            eta: the moment before which it may not start.
            expires: seconds, or the moment, after which it is no longer to be started.
            idempotency_key: a text that names this submission: a second one with it, for a day unless it's set
                otherwise, submits nothing, and returns the first one's handle, which is `deduplicated`.
            unique: `until_started` or `until_done`, in place of what the task declares; False for neither.

        Raises:
            IdempotencyError: the key stands for a task with other arguments.
            UnknownTaskError: no code and no agent knows the task; it carries the nearest names.
            ValidationError: an argument or option isn't right; it lists every one.
            NoCapableAgentError: no agent can run it, and the policy for that is `raise`.
            QueueFullError: too many tasks wait in its queue already.
            SubmissionError: Redis can't be reached.

        """
        options = self._options(timeout, countdown, eta, expires)
        own = {"requires": requires, "urgency": urgency, "on_unroutable": on_unroutable}
        claims = {"idempotency_key": idempotency_key, "unique": unique}
        return self._handle(self._send(task_type, payload, {**options, **own, **claims}))

    def submit_many(
        self,
        task_type: str,
        payloads: Iterable[Mapping[str, Any]],
        *,
        requires: str | Iterable[str] | Requirement | None = None,
        urgency: str | Urgency | None = None,
        on_unroutable: str | None = None,
        timeout: float | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,
        idempotency_keys: Iterable[str | None] | None = None,
        unique: str | bool | None = None,
    ) -> list[TaskHandle]:
        """
        Submit a task once for each payload; the handles come in the payloads' order.

        They are sent in round trips of 500. All payloads are checked before the first is sent, so that a wrong one
        leaves nothing behind. When Redis is lost on the way, those sent before stay submitted. `idempotency_keys` has
        a key, or None, for each payload, so that a batch can be sent again.

        Raises:
            ValidationError: as for `submit`, naming the payload by its place.
            IdempotencyError: a key stands for a task with other arguments; the rest of the batch was submitted.
            QueueFullError: the queue takes no more; its `refused` has the places of the payloads that weren't
                submitted.
            NoCapableAgentError: as for `submit`; unless the fleet vanishes on the way, nothing was sent.

        """
        options = self._options(timeout, countdown, eta, expires)
        batch = list(payloads)
        keys: list[str | None] = [None] * len(batch) if idempotency_keys is None else list(idempotency_keys)
        if len(keys) != len(batch):
            message = f"{task_type} was not submitted: {len(keys)} idempotency keys came with {len(batch)} payloads."
            raise ValidationError(message)
        for place, payload in enumerate(batch):
            try:
                self._check(task_type, payload)
            except ValidationError as error:
                message = f"Payload {place} of {len(batch)}: {error}"
                raise ValidationError(message, errors=error.errors) from error
        own = {"requires": requires, "urgency": urgency, "on_unroutable": on_unroutable, "unique": unique}
        given = {name: value for name, value in {**options, **own}.items() if value is not None}
        what = f"A batch of {len(batch)} {task_type}"
        with _completed_refusal(len(batch)), named_broker(what, self.app.broker_location):
            ids = None if any(key is not None for key in keys) else self.app.send_many(task_type, batch, given)
            if ids is not None:
                return [TaskHandle(task_id, self.app) for task_id in ids]
            results = self._sent_by_celery(task_type, batch, given, keys)
        for result in results:
            refuse_other_payload(task_type, getattr(result, "standing", None))
        return [self._handle(result) for result in results]

    def _sent_by_celery(
        self, task_type: str, batch: list[Mapping[str, Any]], options: Mapping[str, Any], keys: list[str | None]
    ) -> list[Any]:  # AsyncResult
        """Send a batch task by task, by a producer that gathers the messages."""
        with (
            self.app.producer_pool.acquire(block=True) as producer,
            producer.batch(PER_ROUND_TRIP),  # type: ignore[attr-defined]  # newer than celery-types
        ):
            return [
                self._send(task_type, payload, {**options, "producer": producer, "idempotency_key": key})
                for payload, key in zip(batch, keys, strict=True)
            ]

    def _handle(self, result: Any) -> TaskHandle:  # Celery's, which knows from the publish what stood there before
        eager = result if isinstance(result, EagerResult) else None
        return TaskHandle(result.id, self.app, eager, deduplicated=getattr(result, "standing", None) is not None)

    def _send(self, task_type: str, payload: Mapping[str, Any], options: Mapping[str, Any]) -> Any:  # AsyncResult
        self._check(task_type, payload)
        given = {name: value for name, value in options.items() if value is not None}
        task = self.app.tasks.get(task_type)
        if task is not None:
            return task.apply_async(kwargs=dict(payload), **given)
        return self.app.send_task(task_type, kwargs=dict(payload), **given)

    def _check(self, task_type: str, payload: Mapping[str, Any]) -> None:
        """Refuse what isn't enforced elsewhere: here every task's type hints are."""
        name = validate_task_type(task_type)
        if not isinstance(payload, Mapping):
            kind = type(payload).__name__
            message = f"{name} was not submitted: the payload is of type {kind}; a mapping of arguments is needed."
            raise ValidationError(message)
        task = self.app.tasks.get(name)
        declared = task.declared if isinstance(task, OrchestraTask) else self._published(name)
        if declared.arguments is not None:
            declared.arguments.check(name, (), payload)
        check_payload((), payload, max_bytes=self.app.limits.max_bytes, max_depth=self.app.limits.max_depth)

    def _published(self, name: str) -> Any:  # Declared
        patience = Patience(self.app.settings.connect_timeout_seconds)
        with named_broker(name, self.app.broker_location):
            declared = patience.insist(lambda: self._in_catalogue(name))
        if declared is not None:
            return declared
        known = {one for one in (*self.app.tasks, *self.app.catalogue.names()) if not one.startswith("celery.")}
        nearest = tuple(get_close_matches(name, sorted(known), n=_NEAREST))
        hint = f"did you mean {', '.join(nearest)}?" if nearest else "is an agent that knows it running?"
        message = f"No task named {name} is known: {hint}"
        raise UnknownTaskError(message, task_type=name, nearest=nearest)

    def _in_catalogue(self, name: str) -> Any:  # Declared
        declared = self.app.catalogue.find(name)
        if declared is None:  # its agent may have joined since the catalogue was read
            self.app.catalogue.forget()
            declared = self.app.catalogue.find(name)
        return declared

    def _options(
        self,
        timeout: float | None,
        countdown: float | None,
        eta: datetime | None,
        expires: float | datetime | None,
    ) -> dict[str, Any]:
        """Return the options in Celery's words, checked."""
        if countdown is not None and eta is not None:
            message = "Give countdown= or eta=, not both."
            raise ValidationError(message)
        limit = validate_timeout(timeout, max_seconds=self.app.settings.max_timeout_seconds)
        return {
            "soft_time_limit": limit,
            "time_limit": None if limit is None else limit + GRACE_SECONDS,
            "countdown": validate_delay(countdown),
            "eta": eta,
            "expires": expires if isinstance(expires, (datetime, timedelta)) else validate_delay(expires),
        }

    def handle(self, task_id: str) -> TaskHandle:
        """Return the handle of a task that was submitted before, here or elsewhere."""
        return TaskHandle(task_id, self.app)

    def cancel(self, task_id: str) -> Cancelled:
        """Cancel a task that was submitted here or elsewhere, as `TaskHandle.cancel` does."""
        return self.handle(task_id).cancel()

    @property
    def dead_letters(self) -> DeadLetters:
        """The messages that no agent may run any more, to be looked at, replayed or purged."""
        return DeadLetters(
            self.app.store,
            self.app.queue_names,
            record_ttl_seconds=self.app.settings.state_ttl_seconds,
            result_key=self._result_key,
            forget=self._forget_failure,
        )

    def _result_key(self, task_id: str) -> str:
        backend: Any = self.app.backend
        at = getattr(backend, "connparams", None)
        return "" if at is None or not self.app.is_broker(at) else bytes_to_str(backend.get_key_for_task(task_id))

    def _forget_failure(self, task_id: str) -> None:
        """Forget how a task has ended that is to run again, or whoever waits for it would be told that at once."""
        backend: Any = self.app.backend
        if not isinstance(backend, DisabledBackend) and backend.get_state(task_id) in states.EXCEPTION_STATES:
            backend.forget(task_id)

    def agents(self) -> list[Agent]:
        """Return every agent that is known, by name; the lost ones aren't `alive`."""
        return self._manager.agents()

    def drain(self, names: Iterable[str], *, timeout_seconds: float | None = None) -> dict[str, int]:
        """
        Let agents take no more tasks, and wait until they have finished those that they fetched; they stay up.

        A name is `text@host`, or `text` alone for every `text@…`; `*` and `?` stand for any text and any character.

        Returns:
            For each agent how many tasks it still has in hand: 0, unless `timeout_seconds` came first.

        Raises:
            ValidationError: no live agent has one of the names; it tells the nearest.

        """
        return self._manager.drain(names, timeout_seconds=timeout_seconds)

    def resume(self, names: Iterable[str]) -> list[str]:
        """Let drained agents take tasks again; return their names."""
        return self._manager.resume(names)

    def breakers(self) -> list[BreakerState]:
        """Return every breaker that a task declares, that was called within a day, or that isn't closed; by name."""
        return self._breakers.breakers()

    def open_breaker(self, name: str, *, seconds: float | None = None) -> None:
        """
        Hold a service off, for so many seconds or until its breaker is closed.

        `name` is a breaker's, or `name:key` of one that has a key.

        Raises:
            ValidationError: nobody knows a breaker of this name; it tells the nearest.

        """
        self._breakers.open(name, seconds=seconds)

    def close_breaker(self, name: str) -> bool:
        """Let a service be called again; return False when its breaker was closed, raise as `open_breaker` does."""
        return self._breakers.close(name)

    def reset_breaker(self, name: str) -> bool:
        """Close a breaker and forget it until its next call; return and raise as `close_breaker` does."""
        return self._breakers.reset(name)

    def queues(self) -> list[QueueInfo]:
        """Return the capability queues, with the tasks in each and the live agents that serve it."""
        return self._queues(self.agents())

    def _queues(self, agents: list[Agent]) -> list[QueueInfo]:
        names = {self.app.queue_names.default: "general"}
        for suffix in self.app.registry.queues():
            queue = CapabilityQueue.from_suffix(suffix)
            names[self.app.queue_names.name(queue)] = queue.requirement.text
        backlogs = self.app.registry.backlogs(list(names), steps=self.app.priority_steps)
        return [
            QueueInfo(
                name=name,
                requires=requires,
                depth=backlog.waiting,
                delayed=backlog.delayed,
                leased=backlog.leased,
                parked=backlog.parked,
                agents=tuple(agent.name for agent in agents if agent.alive and name in agent.queues),
            )
            for (name, requires), backlog in sorted(zip(names.items(), backlogs, strict=True), key=itemgetter(0))
        ]

    def explain(self, about: str | Iterable[str] | Requirement) -> Explanation:
        """
        Tell why a task waits, or what became of it; who could run a task type, or what a requirement asks for.

        A text is a task's id, the name of a task, or a requirement, whichever is known; a set of texts is a
        requirement. An id that nothing is known of is an answer as well. It only reads, and takes well below a second
        with a thousand agents and a hundred thousand tasks in the queue.

        Raises:
            ValidationError: the text is empty, or a requirement that can't be read.
            BrokerUnavailableError: Redis can't be reached.

        """
        return explainer_of(self.app).explain(about)

    def health(self) -> Health:
        """
        Tell whether the fleet can work: Redis answers, an agent lives, and nothing waits where no live agent looks.

        It never raises: an unreachable Redis is a finding.
        """
        started = perf_counter()
        try:
            self.app.store.command("PING")
            redis_ms = (perf_counter() - started) * 1000
            agents = self.agents()
            queues = self._queues(agents)
        except AgentOrchestraException as error:
            return Health(ok=False, redis_ms=None, agents=0, waiting=0, unserved=(), problems=(str(error),))
        alive = sum(agent.alive for agent in agents)
        unserved = tuple(queue.name for queue in queues if queue.depth and not queue.agents)
        problems = [f"{name} has waiting tasks and no live agent" for name in unserved]
        if not alive:
            problems.append("no live agent")
        return Health(
            ok=not problems,
            redis_ms=redis_ms,
            agents=alive,
            waiting=sum(queue.depth for queue in queues),
            unserved=unserved,
            problems=tuple(problems),
        )


@contextmanager
def _completed_refusal(count: int) -> Iterator[None]:
    """Have the refusal of a batch tell of its payloads that were still to be sent, too."""
    try:
        yield
    except QueueFullError as error:
        full: Any = error.__cause__  # which knows how many went before
        error.refused = (*error.refused, *range(full.sent, count))
        raise
